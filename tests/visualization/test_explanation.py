# Copyright (c) mmpsvit contributors.
"""What a decision rests on: the heat of tokens, and the map of it on the image."""

import math
import sys

import numpy as np
import pytest
import torch
from small_network import small_config, small_model

from mmpsvit.visualization import blend_heat, explain, heat_map, record_sampling


@pytest.fixture
def model():
    return small_model(small_config())


@pytest.fixture
def images():
    return torch.randn(2, 3, 32, 48, generator=torch.Generator().manual_seed(0))


def heat_of_pixel(x, y, heat, points, cell) -> float:
    """The map at a pixel, from the four pixels that each token is splatted to."""
    warmth = weight = 0
    for value, (px, py) in zip(heat.tolist(), (points - 0.5).tolist(), strict=True):
        for cx in (math.floor(px), math.floor(px) + 1):
            for cy in (math.floor(py), math.floor(py) + 1):
                if not (0 <= cx < 13 and 0 <= cy < 9):
                    continue
                share = (1 - abs(px - cx)) * (1 - abs(py - cy))
                squares = ((x - cx) / cell[0]) ** 2 + ((y - cy) / cell[1]) ** 2
                # The variance of a triangle from -1 to 1 is 1 / 6.
                near = share * math.exp(-squares / (2 / 6))
                warmth, weight = warmth + near * value, weight + near
    return warmth / max(weight, 1)


def test_heat_map_is_that_of_loops():
    """Inside, at the border and outside, dense and sparse; the image is 13 x 9."""
    random = torch.Generator().manual_seed(0)
    heat = torch.rand(2, 12, generator=random, dtype=torch.float64)
    points = torch.rand(2, 12, 2, generator=random, dtype=torch.float64)
    points = points * torch.tensor([16.0, 12.0]) - 1.5
    points[1] = points[1] / 4  # dense
    maps = heat_map(heat, points, (9, 13), (3, 4))
    assert maps.shape == (2, 9, 13)
    for image in range(2):
        for y in range(9):
            for x in range(13):
                expected = heat_of_pixel(x, y, heat[image], points[image], (13 / 4, 3))
                assert maps[image, y, x].item() == pytest.approx(expected, abs=1e-12)


def test_density_is_no_heat():
    """Many lukewarm points on one place stay so; far from all points, there is none."""
    points = torch.tensor([[[10.5, 10.5]] * 8 + [[50.5, 30.5]]])
    heat = torch.tensor([[0.2] * 8 + [1.0]])
    (hot,) = heat_map(heat, points, (64, 64), (6, 6))
    assert hot[10, 10].item() == pytest.approx(0.2)
    assert hot[30, 50].item() == pytest.approx(1)
    assert hot.argmax() == 30 * 64 + 50
    assert hot[60, 5] < 1e-6


def test_attention_is_that_of_the_layer(model, images):
    """Weights by hand, which also give what the layer adds to the class token."""
    layer, seen = model.backbone.layers[-1].attn, {}
    handle = layer.register_forward_hook(
        lambda _, args, kwargs, out: seen.update(
            tokens=args[0], added=out - kwargs['identity']
        ),
        with_kwargs=True,
    )
    explanation = explain(model, images, 'attention')
    handle.remove()

    heads, dims = layer.num_heads, layer.head_dims
    expected, added = [], []
    for tokens in seen['tokens']:
        query, key, value = layer.qkv(tokens).split(heads * dims, dim=-1)
        weights, outputs = [], []
        for head in range(heads):
            part = slice(head * dims, (head + 1) * dims)
            scores = query[0, part] @ key[:, part].T / math.sqrt(dims)
            weights.append(scores.softmax(dim=-1))
            outputs.append(weights[-1] @ value[:, part])
        expected.append(sum(weights)[1:] / heads)
        added.append(layer.proj(torch.cat(outputs)))
    torch.testing.assert_close(explanation.heat, torch.stack(expected))
    torch.testing.assert_close(seen['added'][:, 0], torch.stack(added))
    assert not explanation.heat.requires_grad


def test_grad_cam_is_gradient_times_activation(model, images):
    pytest.importorskip('pytorch_grad_cam', reason='needs grad-cam')
    tokens = []
    handle = model.backbone.layers[-1].ln1.register_forward_hook(
        lambda _, args, out: tokens.append(out)
    )
    logits = model(images)
    handle.remove()
    (gradient,) = torch.autograd.grad(logits.amax(dim=1).sum(), tokens)
    weights = gradient[:, 1:].mean(dim=1, keepdim=True)
    heat = (weights * tokens[0][:, 1:]).sum(dim=-1).relu()
    # The package scales the coldest token to 0, the hottest to 1.
    heat = heat - heat.amin(dim=1, keepdim=True)

    # Also of a frozen network, and where gradients are switched off.
    model.requires_grad_(False)
    with torch.no_grad():
        explanation = explain(model, images, 'gradcam')
    expected = heat / heat.amax(dim=1, keepdim=True)
    torch.testing.assert_close(explanation.heat, expected.detach())


@pytest.mark.parametrize('method', ['attention', 'gradcam'])
@pytest.mark.parametrize(
    ('changes', 'grid_size'),
    [
        ({}, (3, 3)),
        ({'model.backbone.sampler': dict(point_stride=40, num_iters=2)}, (1, 2)),
        ({'model.backbone.out_type': 'avg_featmap'}, (3, 3)),
        ({'model.backbone.out_indices': 0}, (3, 3)),
    ],
)
def test_points_are_those_that_were_sampled(images, method, changes, grid_size):
    if method == 'gradcam':
        pytest.importorskip('pytorch_grad_cam', reason='needs grad-cam')
    model = small_model(small_config(**changes)).train()
    model.head.eval()
    explanation = explain(model, images, method)
    assert model.training and not model.head.training
    assert all(parameter.grad is None for parameter in model.parameters())
    with record_sampling(model.eval()) as recorded, torch.no_grad():
        model.backbone(images)
    np.testing.assert_array_equal(explanation.trajectory.numpy(), np.stack(recorded))
    assert explanation.grid_size == grid_size
    assert explanation.heat.shape == (2, math.prod(grid_size))


def test_blended_image():
    image = np.full((2, 3, 3), (90, 60, 30), dtype=np.uint8)
    heat = np.array([[0, 0, 0], [0, 0.2, 0.4]])
    blended = blend_heat(image, heat)
    assert (blended[heat == 0] == 60).all()
    assert blended[1, 2].sum() > blended[1, 1].sum() > 0
    np.testing.assert_array_equal(blend_heat(image, 10 * heat), blended)
    assert (blend_heat(image, 0 * heat) == 60).all()


def test_mistakes(model, images, monkeypatch):
    with pytest.raises(ValueError, match=r"method must be one of .*, got 'rollout'"):
        explain(model, images, 'rollout')
    with pytest.raises(ValueError, match=r'PSViT as its backbone .*, got Linear'):
        explain(torch.nn.ModuleDict(dict(backbone=torch.nn.Linear(1, 1))), images)
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, 'pytorch_grad_cam', None)
        with pytest.raises(ImportError, match='pip install grad-cam'):
            explain(model, images, 'gradcam')
    model.head = None
    with pytest.raises(ValueError, match="'gradcam' needs a model with a class"):
        explain(model, images, 'gradcam')
    assert explain(model, images).heat.shape == (2, 9)
    with pytest.raises(ValueError, match='needs a class token'):
        changes = dict(with_cls_token=False, out_type='avg_featmap')
        cfg = small_config(**{f'model.backbone.{k}': v for k, v in changes.items()})
        explain(small_model(cfg), images)
