# Copyright (c) mmpsvit contributors.
"""``out_type='featmap'``: sizes, strides, and where the tokens go."""

import pytest
import torch
from small import move_points, small_arch
from torch.nn import functional as F

from mmpsvit import PSViT
from mmpsvit.models.backbones.pyramid import build_pyramid


def build(**kwargs) -> PSViT:
    torch.manual_seed(0)
    kwargs.setdefault('sampler', dict(point_stride=16, num_iters=2))
    model = PSViT(small_arch(), out_type='featmap', **kwargs)
    model.init_weights()
    move_points(model.sampler, bias_std=1.0)
    return model.eval()


@pytest.mark.parametrize('size', [(64, 96), (33, 47), (5, 130), (1, 1)])
def test_sizes(size):
    maps = build()(torch.rand(2, 3, *size))
    assert len(maps) == 4
    for stride, out in zip((4, 8, 16, 32), maps, strict=True):
        height, width = (-(-length // stride) for length in size)
        assert out.shape == (2, 24, height, width)
        assert out.isfinite().all()


def test_padding_is_cut_off():
    """The backbone's own, right and bottom."""
    model, images = build(), torch.rand(1, 3, 40, 56)
    padded = model(F.pad(images, (0, 8, 0, 8)))
    for out, whole in zip(model(images), padded, strict=True):
        height, width = out.shape[-2:]
        torch.testing.assert_close(out, whole[..., :height, :width])


@pytest.mark.parametrize('dynamo', [False, True])
def test_onnx(tmp_path, dynamo):
    """By both exporters of PyTorch."""
    pytest.importorskip('onnx')
    runtime = pytest.importorskip('onnxruntime')
    model, images, path = build(), torch.rand(2, 3, 33, 47), tmp_path / 'maps.onnx'
    torch.onnx.export(model, (images,), path, dynamo=dynamo, input_names=['images'])
    maps = runtime.InferenceSession(path).run(None, {'images': images.numpy()})
    for out, expected in zip(maps, model(images), strict=True):
        torch.testing.assert_close(torch.from_numpy(out), expected, atol=1e-5, rtol=0)


def test_size_of_a_detector():
    model = build(out_strides=(8, 64))
    with torch.no_grad():
        maps = model(torch.rand(1, 3, 400, 667))
    assert [tuple(out.shape[-2:]) for out in maps] == [(50, 84), (7, 11)]


def test_tokens_are_interpolated():
    tokens = torch.tensor([0.0, 1.0]).view(1, 2, 1)
    sizes = dict(image_size=(16, 32), padded_size=(16, 32))
    (out,) = build_pyramid(tokens, (1, 2), torch.zeros(1, 1, 4, 8), [4], **sizes)
    assert out[0, 0, 0].tolist() == [0, 0, 0.125, 0.375, 0.625, 0.875, 1, 1]


def test_maps_are_row_major_with_the_stem_added():
    tokens = torch.arange(6.0).view(1, 6, 1)
    feat = torch.rand(1, 1, 8, 12)
    (out,) = build_pyramid(
        tokens, (2, 3), feat, [16], image_size=(32, 48), padded_size=(32, 48)
    )
    expected = tokens.view(1, 1, 2, 3) + F.avg_pool2d(feat, 4)
    torch.testing.assert_close(out, expected)


def test_windows_of_the_map_where_strides_do_not_divide():
    rows = torch.arange(51.0).view(1, 1, 51, 1)
    (out,) = build_pyramid(
        torch.zeros(1, 1, 1),
        (1, 1),
        rows,
        [8],
        image_size=(203, 4),
        padded_size=(203, 4),
    )
    # The last window has one row.
    expected = [*torch.arange(0.5, 50, 2), 50]
    torch.testing.assert_close(out.flatten(), torch.tensor(expected))


@pytest.mark.parametrize(
    'kwargs', [{}, dict(with_cls_token=False), dict(out_indices=0)]
)
def test_every_parameter_gets_a_gradient(kwargs):
    """But for those behind the layer that is returned, which are not trained."""
    model = build(**kwargs).train()
    maps = model(torch.rand(2, 3, 70, 90))
    sum((out * torch.randn_like(out)).sum() for out in maps).backward()
    behind = ('layers.1.', 'norm.') if 'out_indices' in kwargs else ()
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad != name.startswith(behind), name
        if parameter.requires_grad:
            assert parameter.grad.isfinite().all(), name
            assert parameter.grad.abs().max() > 0, name


def test_no_parameters_and_classifier_weights_load():
    classifier = PSViT(small_arch(), sampler=dict(num_iters=2))
    model = build()
    model.load_state_dict(classifier.state_dict())
    without = build(with_cls_token=False)
    keys = without.load_state_dict(classifier.state_dict(), strict=False)
    assert (keys.missing_keys, keys.unexpected_keys) == ([], ['cls_token'])


def test_autocast():
    model = build()
    image = torch.rand(1, 3, 64, 64)
    exact = model(image)
    with torch.autocast('cpu', torch.bfloat16):
        rounded = model(image)
    for one, other in zip(exact, rounded, strict=True):
        assert (one - other).abs().mean() < 0.01


@pytest.mark.parametrize(
    ('kwargs', 'message'),
    [
        (dict(out_strides=()), r'out_strides must be .* got \(\)'),
        (dict(out_strides=(8, 4)), r'out_strides must be increasing .* got \(8, 4\)'),
        (dict(out_strides=(4, 12)), 'powers of two'),
        (dict(out_strides=(2, 4)), 'from 4 on'),
        (dict(out_strides=(4, 4)), 'increasing'),
        (dict(out_indices=(0, 1)), r'takes one of out_indices, got \(0, 1\)'),
    ],
)
def test_bad_arguments(kwargs, message):
    with pytest.raises(ValueError, match=message):
        build(**kwargs)
