# Copyright (c) mmpsvit contributors.
"""The sampling neck on its own."""

from types import SimpleNamespace

import pytest
import torch
from mmengine.registry import init_default_scope
from mmpretrain.registry import MODELS
from mmpretrain.structures import DataSample
from small import move_points
from stack import skip_without_autocast
from torch import nn
from torch.nn import functional as F

from mmpsvit import ProgressiveSampling, SampledTokens
from mmpsvit.ops import sampled_map as module_of_map

SMALL = dict(embed_dims=24, num_heads=3, feedforward_channels=48)


def moving(neck: ProgressiveSampling) -> ProgressiveSampling:
    torch.manual_seed(0)
    neck.init_weights()
    move_points(neck, bias_std=0.3)
    return neck


def test_result_on_non_square_map():
    neck = moving(ProgressiveSampling(**SMALL, num_points=(3, 5), num_iters=3))
    result = neck(torch.randn(2, 24, 12, 20))
    assert isinstance(result, SampledTokens)
    assert result.tokens.shape == (2, 15, 24)
    assert result.points.shape == (2, 15, 2)
    assert result.trajectory.shape == (2, 3, 15, 2)
    assert result.grid_size == (3, 5)
    assert not result.points.requires_grad
    assert not result.trajectory.requires_grad
    # Row-major cell centres, (x, y): cells are 4 x 4 pixels here
    start = result.trajectory[0, 0].view(3, 5, 2)
    assert start[1, 3].tolist() == [14, 6]


def test_zero_offsets_keep_the_grid():
    neck = ProgressiveSampling(**SMALL, num_points=14)
    neck.init_weights()
    result = neck(torch.randn(1, 24, 56, 56))
    assert (result.trajectory == result.trajectory[:, :1]).all()
    assert result.points[0, :3].tolist() == [[2, 2], [6, 2], [10, 2]]
    assert result.points[0, -1].tolist() == [54, 54]
    # On a map of few pixels, the last ones lie in its border.
    assert neck.start_points((8, 7))[-1].tolist() == pytest.approx([6.75, 54 / 7])


def test_one_iteration_has_no_offset_layer():
    for share_weights in (False, True):
        neck = ProgressiveSampling(**SMALL, num_iters=1, share_weights=share_weights)
        assert len(neck.offset_layers) == 0
        assert neck(torch.randn(1, 24, 8, 8)).trajectory.shape[1] == 1


def test_one_step_by_hand():
    """Tokens and points of two iterations, written out."""
    neck = moving(ProgressiveSampling(**SMALL, num_points=2, num_iters=2)).double()
    neck.offset_scale = 0.5
    feat = torch.randn(1, 24, 4, 4, dtype=torch.float64)
    result = neck(feat)

    start = torch.tensor([[1.0, 1], [3, 1], [1, 3], [3, 3]], dtype=torch.float64)[None]
    sampled = torch.stack([feat[0, :, int(y), int(x)] for x, y in start[0]])[None]
    tokens = neck.layers[0](sampled + neck.position_layer(start / 4))
    points = start + 0.5 * neck.offset_layers[0](tokens)
    torch.testing.assert_close(result.points, points.detach(), atol=1e-12, rtol=0)

    x, y = points[0].unbind(-1)
    feat = torch.nn.functional.pad(feat, (9, 9, 9, 9))  # zeros outside
    samples = []
    for px, py in zip(x + 9, y + 9, strict=True):
        x0, y0 = int(px), int(py)
        fx, fy = px - x0, py - y0
        samples.append(
            feat[0, :, y0, x0] * (1 - fx) * (1 - fy)
            + feat[0, :, y0, x0 + 1] * fx * (1 - fy)
            + feat[0, :, y0 + 1, x0] * (1 - fx) * fy
            + feat[0, :, y0 + 1, x0 + 1] * fx * fy
        )
    inputs = torch.stack(samples)[None] + neck.position_layer(points.detach() / 4)
    expected = neck.layers[1](inputs + tokens)
    torch.testing.assert_close(result.tokens, expected, atol=1e-12, rtol=0)


def test_point_stride_follows_the_map():
    neck = ProgressiveSampling(**SMALL, point_stride=16)
    coarse = ProgressiveSampling(**SMALL, feat_stride=32, point_stride=64)
    for sampler, size, grid in [
        (neck, (56, 56), (14, 14)),
        (neck, (200, 336), (50, 84)),
        (neck, (9, 12), (3, 3)),
        (coarse, (7, 5), (4, 3)),
    ]:
        result = sampler(torch.randn(1, 24, *size))
        assert result.grid_size == grid
        limit = torch.tensor([size[1] - 1.0, size[0] - 1.0])
        start = result.trajectory[:, 0]
        assert (start >= 0).all()
        assert (start <= limit).all()
    same = ProgressiveSampling(**SMALL, num_points=14)
    assert torch.equal(same.start_points((56, 56)), neck.start_points((56, 56)))


def test_shared_weights():
    own = ProgressiveSampling(**SMALL, drop_path_rate=[0, 0.1, 0.2, 0.3])
    shared = ProgressiveSampling(
        **SMALL, drop_path_rate=[0, 0.1, 0.2, 0.3], share_weights=True
    )
    assert (len(own.layers), len(own.offset_layers)) == (4, 3)
    assert (len(shared.layers), len(shared.offset_layers)) == (1, 1)
    rates = [layer.attn.out_drop.drop_prob for layer in own.layers]
    assert rates == [0, 0.1, 0.2, 0.3]
    assert shared.layers[0].attn.out_drop.drop_prob == pytest.approx(0.15)
    # Shared weights equal four copies of them.
    moving(shared)
    for layer in own.layers:
        layer.load_state_dict(shared.layers[0].state_dict())
    for layer in own.offset_layers:
        layer.load_state_dict(shared.offset_layers[0].state_dict())
    own.position_layer.load_state_dict(shared.position_layer.state_dict())
    feat = torch.randn(2, 24, 20, 20)
    expected, result = own.eval()(feat), shared.eval()(feat)
    assert torch.equal(result.tokens, expected.tokens)
    assert torch.equal(result.trajectory, expected.trajectory)


def test_offset_scale_reaches_every_iteration():
    feat = torch.randn(1, 24, 20, 20)
    plain = moving(ProgressiveSampling(**SMALL)).eval()
    scaled = moving(ProgressiveSampling(**SMALL, offset_scale=2.0)).eval()
    for layer in scaled.offset_layers:
        layer.weight.data /= 2
        layer.bias.data /= 2
    torch.testing.assert_close(plain(feat).trajectory, scaled(feat).trajectory)


def test_layer_cfg():
    neck = ProgressiveSampling(**SMALL, layer_cfg=dict(qkv_bias=True, num_fcs=3))
    for layer in neck.layers:
        assert layer.attn.qkv.bias is not None
        linear = [m for m in layer.ffn.modules() if isinstance(m, torch.nn.Linear)]
        assert len(linear) == 3


def test_half_and_double_models():
    feat = torch.randn(1, 24, 16, 16)
    for dtype, precise in [(torch.bfloat16, torch.float32), (torch.float64,) * 2]:
        for in_channels in (24, 8):
            neck = moving(ProgressiveSampling(**SMALL, in_channels=in_channels))
            result = neck.to(dtype).eval()(feat[:, :in_channels].to(dtype))
            assert result.tokens.dtype == dtype
            assert result.points.dtype == precise


def test_centered_offsets():
    """All points of an image move by offsets without a mean; images differ."""
    torch.manual_seed(0)
    kwargs = dict(num_points=3, num_iters=3)
    free = ProgressiveSampling(24, 3, 48, **kwargs).double()
    move_points(free, bias_std=1.0)
    centered = ProgressiveSampling(24, 3, 48, center_offsets=True, **kwargs).double()
    centered.load_state_dict(free.state_dict())
    feat = torch.randn(2, 24, 8, 8, dtype=torch.float64)
    expected, steps = (net(feat).trajectory.diff(dim=1) for net in (free, centered))
    assert expected.mean(dim=2).abs().min() > 1e-3
    assert steps.mean(dim=2).abs().max() < 1e-12 < steps[0].sub(steps[1]).abs().max()
    first = expected[:, 0]
    torch.testing.assert_close(
        steps[:, 0], first - first.mean(1, keepdim=True), atol=1e-12, rtol=0
    )


@pytest.mark.parametrize(
    ('kwargs', 'message'),
    [
        (dict(num_iters=0), 'num_iters must be at least 1, got 0'),
        (dict(num_points=0), r'num_points must be a positive int, .* got 0'),
        (dict(num_points=(3, 0)), r'num_points must .* got \(3, 0\)'),
        (dict(num_points=[(3, 3), (3, 3, 3)]), 'num_points must'),
        (dict(num_points=3.5), r'num_points must .* got 3\.5'),
        (dict(num_points=[]), 'num_points must'),
        (dict(num_points=7, point_stride=16), 'exclude each other'),
        (dict(point_stride=10), 'multiple of feat_stride = 4.* got 10'),
        (dict(point_stride=4), 'at least 8, got 4'),
        (dict(drop_path_rate=[0.1, 0.2]), 'num_iters = 4 numbers'),
        (dict(num_heads=5), 'multiple of num_heads, got 24 and 5'),
        (dict(kernel='fast'), r"kernel must be one of .* got 'fast'"),
    ],
)
def test_bad_arguments(kwargs, message):
    with pytest.raises(ValueError, match=message):
        ProgressiveSampling(**{**SMALL, **kwargs})


def test_in_the_neck_slot_of_a_classifier():
    """Behind somebody else's CNN, in MMPretrain's ImageClassifier."""
    init_default_scope('mmpretrain')
    model = MODELS.build(
        dict(
            type='ImageClassifier',
            backbone=dict(
                type='ResNet',
                depth=18,
                zero_init_residual=False,
                num_stages=1,
                strides=(1,),
                dilations=(1,),
                out_indices=(0,),
            ),
            neck=dict(
                type='mmpsvit.ProgressiveSampling',
                in_channels=64,
                num_points=4,
                **SMALL,
            ),
            head=dict(
                type='mmpsvit.PSViTClsHead', num_classes=5, in_channels=24, pool='mean'
            ),
        )
    )
    model.init_weights()
    images = torch.randn(2, 3, 64, 64)
    labels = [DataSample().set_gt_label(label) for label in (1, 4)]
    model(images, labels, mode='loss')['loss'].backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad.abs().sum() > 0, name
    assert [len(s.pred_score) for s in model(images, mode='predict')] == [5, 5]


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_offsets_of_a_half_network(dtype):
    """They are not rounded to half precision."""
    skip_without_autocast(dtype)
    neck = moving(ProgressiveSampling(**SMALL, num_points=4, num_iters=2))
    neck, tokens = neck.to(dtype).eval(), []
    neck.layers[0].register_forward_hook(lambda *args: tokens.append(args[-1]))
    points = neck(torch.randn(1, 24, 56, 56).to(dtype)).trajectory.double()
    layer = neck.offset_layers[0].double()
    exact = F.linear(tokens[0].double(), layer.weight, layer.bias)
    torch.testing.assert_close(points[:, 1] - points[:, 0], exact, atol=1e-4, rtol=0)


def test_kernel_is_asked_for(monkeypatch):
    asked = []
    monkeypatch.setattr(module_of_map, '_has_kernel', lambda feat, k: asked.append(k))
    ProgressiveSampling(**SMALL, kernel='triton')(torch.zeros(1, 24, 8, 8))
    assert asked == ['triton']


def test_what_one_kernel_does():
    """Not what it does not know, nor what somebody replaced or hooks."""

    def advances(neck: ProgressiveSampling, channels: int = 24) -> bool:
        table = torch.zeros(1, 2, 2, channels)
        return neck._advances(SimpleNamespace(table=table, advances=True))

    neck = ProgressiveSampling(**SMALL)
    assert advances(neck) and not advances(neck, channels=8)
    assert not neck._advances(SimpleNamespace(advances=False))
    for kwargs in (dict(center_offsets=True), dict(in_channels=8)):
        assert not advances(ProgressiveSampling(**SMALL, **kwargs))
    layer = neck.offset_layers[1]
    for hook in ('forward_pre', 'forward', 'full_backward_pre', 'full_backward'):
        with getattr(layer, f'register_{hook}_hook')(lambda *_: None):
            assert not advances(neck), hook
    layer.forward = layer.forward  # as some libraries wrap a layer
    assert not advances(neck)
    neck = ProgressiveSampling(**SMALL)
    neck.position_layer = nn.Sequential(neck.position_layer)
    assert not advances(neck)


def test_last_of_several_maps():
    neck = moving(ProgressiveSampling(**SMALL)).eval()
    feat, other = torch.randn(2, 1, 24, 9, 9)
    assert torch.equal(neck((other, feat)).tokens, neck(feat).tokens)


def test_initial_projection():
    neck = ProgressiveSampling(**SMALL, in_channels=64)
    neck.init_weights()
    assert neck.in_proj.weight.std().item() == pytest.approx(0.02, rel=0.2)
    assert (neck.in_proj.bias == 0).all()
    same = ProgressiveSampling(**SMALL, in_channels=24)
    assert isinstance(same.in_proj, torch.nn.Identity)


def test_pretrained_neck(tmp_path):
    """The checkpoint has the last word, and the first call of two."""
    first = moving(ProgressiveSampling(**SMALL, in_channels=64))
    torch.save(first.state_dict(), tmp_path / 'neck.pth')
    init_cfg = dict(type='Pretrained', checkpoint=str(tmp_path / 'neck.pth'))
    neck = ProgressiveSampling(**SMALL, in_channels=64, init_cfg=init_cfg)
    for _ in range(2):
        neck.init_weights()
        for name, value in neck.state_dict().items():
            assert torch.equal(value, first.state_dict()[name]), name
