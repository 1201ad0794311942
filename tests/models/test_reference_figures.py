# Copyright (c) mmpsvit contributors.
"""The network against figures of the official network classes, in float64.

In those, two-vectors are (y, x) and tokens are column-major: point i has x index
i // 7 and y index i % 7.
"""

from types import ModuleType

import pytest
import torch
from scripts import load_script

from mmpsvit import PSViT, PSViTClsHead

POINTS = 7
# Row-major position of each official token, and the other way round.
ORDER = torch.arange(POINTS**2).view(POINTS, POINTS).t().flatten()


@pytest.fixture(scope='module')
def converter() -> ModuleType:
    """The tool that converts the authors' weights, as a module."""
    return load_script('tools/model_converters/psvit_to_mmpretrain.py')


def parts(figures: dict, prefix: str) -> dict:
    """The figures of one kind, under the official names."""
    return {
        k.removeprefix(prefix): v for k, v in figures.items() if k.startswith(prefix)
    }


class Network(torch.nn.Module):
    """Backbone and head, as a classifier puts them together."""

    def __init__(self, **kwargs):
        super().__init__()
        arch = dict(
            embed_dims=48,
            num_layers=6,
            num_heads=3,
            feedforward_channels=144,
            stem_channels=(64, 48),
        )
        self.backbone = PSViT(arch, sampler=dict(num_points=POINTS), **kwargs)
        self.head = PSViTClsHead(10, 48)

    def forward(self, images):
        return self.head(self.backbone(images))


@pytest.fixture
def network(figures, converter):
    network = Network().double().eval()
    weights, _ = converter.convert(parts(figures, 'state/'))
    network.load_state_dict(weights)
    return network


def test_tokens_points_and_logits(figures, network):
    sampled = []
    tokens = []
    backbone = network.backbone
    backbone.sampler.register_forward_hook(lambda *args: sampled.append(args[-1]))
    for layer in backbone.sampler.layers:
        layer.register_forward_hook(lambda *args: tokens.append(args[-1]))

    logits = network(figures['in/images'])

    assert (logits - figures['out/logits']).abs().max() < 1e-9
    (result,) = sampled
    assert result.grid_size == (POINTS, POINTS)
    for iteration in range(4):
        points = result.trajectory[:, iteration, ORDER].flip(-1)
        assert (points - figures['out/points_yx'][iteration]).abs().max() < 1e-9
        difference = tokens[iteration][:, ORDER] - figures['out/tokens'][iteration]
        assert difference.abs().max() < 1e-9
    assert torch.equal(result.points, result.trajectory[:, -1])
    assert torch.equal(result.tokens, tokens[-1])


@pytest.mark.parametrize('with_cp', [False, True])
def test_gradients(figures, network, converter, with_cp):
    if with_cp:
        state = network.state_dict()
        network = Network(with_cp=True, norm_eval=True).double().train()
        network.load_state_dict(state)
    images = figures['in/images'].clone().requires_grad_()
    (network(images) * figures['out/grad_weight']).sum().backward()

    assert (images.grad - figures['out/grad_input']).abs().max() < 1e-8
    gradients = {key: param.grad for key, param in network.named_parameters()}
    expected = parts(figures, 'out/grad/')
    assert len(expected) == 8
    for name, value in expected.items():
        ours = gradients[converter.convert_name(name)]
        assert (ours - converter.swap_axes(name, value)).abs().max() < 1e-8, name


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs CUDA')
@pytest.mark.parametrize(
    ('dtype', 'tolerance'), [(torch.float64, 1e-9), (torch.float32, 1e-2)]
)
def test_logits_on_cuda(figures, network, dtype, tolerance):
    logits = network.to('cuda', dtype)(figures['in/images'].to('cuda', dtype))
    assert (logits.cpu() - figures['out/logits']).abs().max() < tolerance
