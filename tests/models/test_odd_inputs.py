# Copyright (c) mmpsvit contributors.
"""Images and uses that a user may come with: tiny, empty, threaded, copied, pickled."""

import copy
import pickle
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from small import move_points, small_arch

from mmpsvit import PSViT

ARCH = small_arch(num_layers=6, stem_channels=(16, 24))
NETWORKS = {
    'points': dict(),
    'stride': dict(sampler=dict(point_stride=16)),
    'raw': dict(out_type='raw'),
    'maps': dict(out_type='featmap', sampler=dict(point_stride=16)),
}


def make(kind: str) -> PSViT:
    torch.manual_seed(0)
    backbone = PSViT(ARCH, **NETWORKS[kind])
    move_points(backbone.sampler, std=0.1)
    return backbone.eval()


@pytest.fixture(params=NETWORKS)
def kind(request) -> str:
    return request.param


@pytest.fixture
def backbone(kind) -> PSViT:
    return make(kind)


@pytest.mark.parametrize('size', [(1, 1), (2, 3), (3, 100), (17, 5), (64, 32)])
def test_small_and_long_images(backbone, size):
    images = torch.randn(2, 3, *size)
    outs = backbone(images)
    assert all(out.isfinite().all() for out in outs)
    if backbone.out_type == 'featmap':
        height, width = (-(-side // 32) for side in size)
        assert outs[-1].shape == (2, 24, height, width)
    # An image does not depend on the others of its batch.
    for out, single in zip(outs, backbone(images[:1]), strict=True):
        torch.testing.assert_close(out[:1], single, rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings('ignore')  # traces are deprecated
def test_trace_at_other_sizes(kind, backbone):
    """Unless there is a number of points, which a trace keeps."""
    with torch.no_grad():
        traced = torch.jit.trace(backbone, torch.rand(1, 3, 32, 32))
        for size in ((32, 32), (40, 64), (33, 70)):
            images = torch.rand(2, 3, *size)
            for out, expected in zip(traced(images), backbone(images), strict=True):
                torch.testing.assert_close(out, expected)


def test_no_images(backbone):
    images = torch.zeros(0, 3, 32, 32, requires_grad=True)
    outs = backbone(images)
    expected = backbone(torch.zeros(1, 3, 32, 32))
    assert [out.shape[1:] for out in outs] == [out.shape[1:] for out in expected]
    assert all(len(out) == 0 for out in outs)
    sum(out.sum() for out in outs).backward()
    assert images.grad.shape == images.shape


def test_meta_device(kind, backbone):
    """Built without memory, tried for shapes, then filled with weights."""
    images = torch.randn(2, 3, 40, 32)
    with torch.device('meta'):
        built = PSViT(ARCH, **NETWORKS[kind]).eval()
    assert all(parameter.is_meta for parameter in built.parameters())
    expected = backbone(images)
    shapes = [out.shape for out in built(images.to('meta'))]
    assert shapes == [out.shape for out in expected]
    built.to_empty(device='cpu').load_state_dict(backbone.state_dict())
    _assert_equal(built(images), expected)


def test_copies(backbone):
    images = torch.randn(1, 3, 40, 32)
    expected = backbone(images)
    duplicate = copy.deepcopy(backbone)
    restored = pickle.loads(pickle.dumps(backbone))
    with torch.no_grad():
        for parameter in backbone.parameters():
            parameter.zero_()
    _assert_equal(duplicate(images), expected)
    _assert_equal(restored(images), expected)


def test_inference_mode(backbone):
    images = torch.randn(1, 3, 40, 32)
    expected = backbone(images)
    with torch.inference_mode():
        outs = backbone(images)
    assert all(out.is_inference() for out in outs)
    _assert_equal(outs, expected)
    # Nothing of inference mode stays behind for a training.
    sum(out.sum() for out in backbone(images)).backward()


def test_threads(backbone):
    """One network, many threads, images of different sizes at the same time."""
    sizes = [(32, 32), (40, 24), (17, 33), (64, 16)] * 4
    batches = [torch.randn(1, 3, *size) for size in sizes]

    def infer(images: torch.Tensor) -> tuple:
        with torch.inference_mode():
            return backbone(images)

    expected = [infer(images) for images in batches]
    with ThreadPoolExecutor(4) as pool:
        for outs, single in zip(pool.map(infer, batches), expected, strict=True):
            _assert_equal(outs, single)


@pytest.mark.parametrize(
    ('images', 'error', 'message'),
    [
        (torch.zeros(3, 32, 32), ValueError, r'x must have shape \(B, 3, H, W\)'),
        (torch.zeros(1, 4, 32, 32), ValueError, r'got \(1, 4, 32, 32\)'),
        (torch.zeros(1, 3, 0, 32), ValueError, 'at least one pixel'),
        (
            torch.zeros(1, 3, 32, 32).byte(),
            TypeError,
            r'floating point, got torch.uint8',
        ),
        ((torch.zeros(3, 32, 32),) * 2, TypeError, 'must be a tensor.* got a tuple'),
    ],
)
def test_not_images(images, error, message):
    with pytest.raises(error, match=message):
        make('points')(images)


def _assert_equal(outs: tuple, expected: tuple) -> None:
    for out, other in zip(outs, expected, strict=True):
        torch.testing.assert_close(out, other, rtol=1e-6, atol=1e-6)
