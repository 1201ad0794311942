# Copyright (c) mmpsvit contributors.
"""``sample_points`` against a slow, obvious reference."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from references import coordinates, sample_reference
from stack import skip_without_autocast
from torch.autograd import gradcheck

from mmpsvit.ops import KERNELS, SampledMap, channels_last, sample_points

repeatable = settings(deadline=None, derandomize=True, max_examples=300)


def reference_gradient(feat, points, grad_out, step=1e-6):
    """Gradients by central differences; the function is piecewise bilinear."""
    grad_points = np.zeros_like(points)
    for index in np.ndindex(points.shape):
        high, low = points.copy(), points.copy()
        high[index] += step
        low[index] -= step
        change = sample_reference(feat, high) - sample_reference(feat, low)
        grad_points[index] = (change * grad_out).sum() / (2 * step)
    return grad_points


def make_points(kind: str, batch: int, count: int, height: int, width: int):
    """Points of one kind, at least 0.05 away from every integer coordinate."""
    rng = np.random.default_rng(len(kind))
    fraction = rng.uniform(0.05, 0.95, (batch, count, 2))
    size = np.array([width, height])
    if kind == 'inside':
        return rng.integers(0, size - 1, (batch, count, 2)) + fraction
    if kind == 'border':
        side = rng.integers(0, 2, (batch, count, 2))
        return np.where(side == 0, -1, size - 1) + fraction
    if kind == 'outside':
        side = rng.integers(0, 2, (batch, count, 2))
        return np.where(side == 0, -3, size + 1) + fraction
    # Anything from well outside to well outside
    return rng.integers(-3, size + 3, (batch, count, 2)) + fraction


@pytest.mark.parametrize('kind', ['inside', 'border', 'outside', 'anywhere'])
@pytest.mark.parametrize('layout', ['nchw', 'channels_last', 'strided', 'transposed'])
@pytest.mark.parametrize('size', [(7, 5), (4, 9), (2, 2)])
def test_values_and_gradients(device, kind, layout, size):
    height, width = size
    rng = np.random.default_rng(0)
    feat = rng.standard_normal((2, 3, height, width))
    points = make_points(kind, 2, 11, height, width)
    grad_out = rng.standard_normal((2, 11, 3))

    base = torch.from_numpy(feat).to(device)
    if layout == 'channels_last':
        base = base.contiguous(memory_format=torch.channels_last)
    elif layout == 'strided':
        base = torch.stack((base, -base), dim=-1)[..., 0]
    elif layout == 'transposed':
        base = base.transpose(2, 3).contiguous().transpose(2, 3)
    base.requires_grad_()
    # Non-contiguous points as well
    xy = torch.from_numpy(points[..., ::-1].copy()).to(device).flip(-1)
    xy = torch.stack((xy, xy), dim=-2)[..., 0, :].requires_grad_()

    out = sample_points(base, xy)
    np.testing.assert_allclose(
        out.detach().cpu(), sample_reference(feat, points), atol=1e-12
    )
    out.backward(torch.from_numpy(grad_out).to(device))

    np.testing.assert_allclose(
        xy.grad.cpu(), reference_gradient(feat, points, grad_out), atol=1e-8
    )
    # The function is linear in feat: its gradient is the adjoint.
    probe = rng.standard_normal(feat.shape)
    expected = (sample_reference(probe, points) * grad_out).sum()
    actual = (base.grad.cpu().numpy() * probe).sum()
    assert actual == pytest.approx(expected, abs=1e-10)


def test_corners_and_integers(device):
    feat = torch.arange(12.0, device=device).view(1, 1, 3, 4) + 1
    points = torch.tensor([[[0, 0], [3, 0], [0, 2], [3, 2], [1, 1]]], device=device)
    out = sample_points(feat, points.float())
    # mmcv's kernel on CUDA rounds.
    expected = torch.tensor([1.0, 4, 9, 12, 6], device=device)
    torch.testing.assert_close(out.flatten(), expected)
    edges = torch.tensor([[[-1.0, 0], [4, 0], [0, -1], [0, 3], [-1, -1], [4, 3]]])
    assert sample_points(feat, edges.to(device)).abs().max() == 0


@pytest.mark.parametrize('kind', ['inside', 'border', 'anywhere'])
def test_gradcheck(device, kind):
    generator = torch.Generator().manual_seed(0)
    feat = torch.randn(2, 2, 3, 4, dtype=torch.float64, generator=generator)
    feat = feat.to(device).requires_grad_()
    points = torch.from_numpy(make_points(kind, 2, 6, 3, 4)).to(device).requires_grad_()
    assert gradcheck(sample_points, (feat, points))


@repeatable
@given(
    data=st.data(),
    batch=st.integers(0, 3),
    count=st.integers(0, 6),
    channels=st.integers(1, 5),
    height=st.integers(1, 8),
    width=st.integers(1, 8),
    double=st.booleans(),
)
def test_any_shape_any_coordinate(data, batch, count, channels, height, width, double):
    size = batch * count * 2
    values = data.draw(st.lists(coordinates, min_size=size, max_size=size))
    dtype = torch.float64 if double else torch.float32
    points = torch.tensor(values, dtype=torch.float64).view(batch, count, 2).to(dtype)
    generator = torch.Generator().manual_seed(size)
    feat = torch.randn(batch, channels, height, width, generator=generator, dtype=dtype)
    feat.requires_grad_()
    points.requires_grad_()

    out = sample_points(feat, points)
    assert out.shape == (batch, count, channels)
    expected = sample_reference(feat.detach().numpy(), points.detach().numpy())
    np.testing.assert_allclose(out.detach(), expected, atol=1e-12 if double else 1e-5)

    out.sum().backward()
    assert feat.grad.isfinite().all()
    assert points.grad.isfinite().all()
    outside = ~(
        (points > -1) & (points < torch.tensor([width, height], dtype=dtype))
    ).all(-1)
    assert (points.grad[outside] == 0).all()


def test_not_finite_points_sample_zero(device):
    feat = torch.ones(1, 2, 3, 3, device=device)
    points = torch.tensor(
        [[[math.nan, 1], [1, math.inf], [-math.inf, 1], [1e30, 1], [1, -1e30]]],
        device=device,
        requires_grad=True,
    )
    out = sample_points(feat, points)
    out.sum().backward()
    assert (out == 0).all()
    assert (points.grad == 0).all()


@pytest.mark.parametrize('shape', [(0, 3, 4, 4), (2, 3, 1, 1), (2, 1, 1, 5)])
@pytest.mark.parametrize('count', [0, 1, 5])
def test_degenerate_sizes(device, shape, count):
    feat = torch.ones(shape, device=device, requires_grad=True)
    points = torch.zeros(shape[0], count, 2, device=device, requires_grad=True)
    out = sample_points(feat, points)
    assert out.shape == (shape[0], count, shape[1])
    assert (out == 1).all()
    out.sum().backward()
    assert feat.grad.shape == feat.shape
    assert points.grad.shape == points.shape


@pytest.mark.parametrize('size', [56, 256])
@pytest.mark.parametrize('autocast', [False, True])
@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float32])
def test_half_map_keeps_points_exact(device, dtype, autocast, size):
    """Points are never rounded: half precision's steps are up to a pixel at 256."""
    half = torch.bfloat16 if dtype == torch.float32 else dtype
    skip_without_autocast(half, device)
    torch.manual_seed(0)
    feat = torch.randn(2, 4, size, size, device=device).to(dtype)
    points = torch.rand(2, 150, 2, device=device) * size
    with torch.autocast(device, half, enabled=autocast):
        out = sample_points(feat, points)
    assert out.dtype == dtype
    # Only the result is rounded: the same as sampling the same map in float32.
    assert torch.equal(out, sample_points(feat.float(), points).to(dtype))
    exact = sample_points(feat.double(), points.double())
    tolerance = max(1e-3, torch.finfo(dtype).eps) * exact.abs().max()
    assert (out - exact).abs().max() <= tolerance


def test_float64_on_either_side():
    feat, points = torch.randn(1, 4, 8, 8), torch.rand(1, 9, 2) * 8
    exact = sample_points(feat.double(), points.double())
    assert sample_points(feat.double(), points).dtype == torch.float64
    mixed = sample_points(feat, points.double())
    assert mixed.dtype == torch.float32
    torch.testing.assert_close(mixed, exact.float(), atol=0, rtol=0)


def test_channels_last_map_is_not_copied():
    feat = channels_last(torch.randn(2, 8, 6, 6))
    assert SampledMap.of(feat).table.data_ptr() == feat.data_ptr()


@pytest.mark.parametrize(
    ('feat', 'points', 'message'),
    [
        ((3, 4, 4), (1, 2, 2), r'feat must have shape .* \(3, 4, 4\)'),
        ((1, 3, 4, 4), (2, 2), r'points must have shape .* \(2, 2\)'),
        ((1, 3, 4, 4), (1, 2, 3), r'points must have shape .* \(1, 2, 3\)'),
        ((1, 3, 4, 4), (2, 2, 2), r'same batch size.*\(1, 3, 4, 4\).*\(2, 2, 2\)'),
        ((1, 3, 0, 4), (1, 2, 2), r'at least one pixel.*\(1, 3, 0, 4\)'),
        ((1, 0, 4, 4), (1, 2, 2), r'and one channel.*\(1, 0, 4, 4\)'),
    ],
)
def test_wrong_shapes(feat, points, message):
    with pytest.raises(ValueError, match=message):
        sample_points(torch.zeros(feat), torch.zeros(points))


def test_wrong_devices_and_dtypes():
    feat, points = torch.zeros(1, 2, 3, 3), torch.zeros(1, 4, 2)
    with pytest.raises(ValueError, match=r'same device.*\(1, 2, 3, 3\).*cpu and meta'):
        sample_points(feat, points.to('meta'))
    with pytest.raises(TypeError, match=r'float32 or float64.*float16'):
        sample_points(feat, points.half())
    with pytest.raises(TypeError, match=r'feat must be floating point'):
        sample_points(feat.long(), points)


def test_unknown_kernel():
    with pytest.raises(ValueError, match=r"kernel must be one of .*got 'fast'"):
        sample_points(torch.zeros(1, 2, 3, 3), torch.zeros(1, 4, 2), kernel='fast')


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs CUDA')
@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
@pytest.mark.parametrize('kernel', KERNELS)
def test_cuda_at_the_limits_of_the_map(dtype, kernel):
    """Just below, at and just above the size: never a pixel of the next image."""
    for size in (29, 49, 56, 61):
        feat = torch.zeros(2, 4, size, size, device='cuda', dtype=dtype)
        feat[1] = 1e6
        limit = torch.tensor(float(size), dtype=dtype)
        inf = torch.tensor(float('inf'), dtype=dtype)
        values = [torch.nextafter(limit, -inf), limit, torch.nextafter(limit, inf)]
        points = torch.stack(values).to('cuda')[None, :, None].expand(2, -1, 2)
        assert (sample_points(feat, points, kernel)[0] == 0).all()
