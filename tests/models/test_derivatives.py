# Copyright (c) mmpsvit contributors.
"""Derivatives by ``torch.func``, and a second backward pass."""

import pytest
import torch
from small import move_points, small_arch
from stack import needs_new_torch
from torch.func import functional_call, grad, vmap

from mmpsvit import PSViT


@pytest.fixture
def backbone(request) -> PSViT:
    torch.manual_seed(0)
    backbone = PSViT(
        small_arch(),
        sampler=dict(num_points=3, num_iters=3),
        with_cp=getattr(request, 'param', False),
    )
    move_points(backbone.sampler)
    return backbone.double()


@pytest.fixture
def images() -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.rand(2, 3, 32, 32, generator=generator, dtype=torch.float64)


@needs_new_torch  # which can batch attention
@pytest.mark.filterwarnings('ignore:There is a performance drop')
def test_gradients_of_each_image(backbone, images):
    backbone.eval()
    weight = torch.randn(24, dtype=torch.float64)
    parameters = {name: p.detach() for name, p in backbone.named_parameters()}

    def loss(parameters: dict, image: torch.Tensor) -> torch.Tensor:
        return (functional_call(backbone, parameters, (image[None],))[0] * weight).sum()

    actual = vmap(grad(loss), (None, 0))(parameters, images)
    for index, image in enumerate(images):
        single = grad(loss)(parameters, image)
        backbone.zero_grad()
        (backbone(image[None])[0] * weight).sum().backward()
        for name, parameter in backbone.named_parameters():
            for found in (single[name], actual[name][index]):
                torch.testing.assert_close(found, parameter.grad, atol=1e-9, rtol=1e-7)


@pytest.mark.parametrize('backbone', [False, True], indirect=True)
def test_two_backward_passes_through_one_graph(backbone, images):
    """Recomputed or not: gradients add up, and statistics count the batch once."""
    (out,) = backbone.train()(images)
    statistics = {name: b.clone() for name, b in backbone.named_buffers()}
    out[:, :12].sum().backward(retain_graph=True)
    out[:, 12:].mul(2).sum().backward()
    for name, buffer in backbone.named_buffers():
        assert torch.equal(buffer, statistics[name]), name
    twice = {name: p.grad for name, p in backbone.named_parameters()}
    backbone.zero_grad()
    (out,) = backbone(images)
    (out[:, :12].sum() + 2 * out[:, 12:].sum()).backward()
    for name, parameter in backbone.named_parameters():
        torch.testing.assert_close(twice[name], parameter.grad, atol=1e-9, rtol=1e-7)
