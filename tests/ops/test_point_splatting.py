# Copyright (c) mmpsvit contributors.
"""``splat_points`` is the adjoint of ``sample_points``, value and gradients."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd import gradcheck

from mmpsvit.ops import sample_points, splat_points

DEVICES = [
    'cpu',
    pytest.param(
        'cuda',
        marks=[
            pytest.mark.cuda,
            pytest.mark.skipif(not torch.cuda.is_available(), reason='needs CUDA'),
        ],
    ),
]
on_all_devices = pytest.mark.parametrize('device', DEVICES)


def reference(tokens, points, size):
    """Pixel by pixel: every token times the hat function of its distance."""
    height, width = size
    out = torch.zeros(tokens.shape[0], tokens.shape[2], height, width).to(tokens)
    for row, column in itertools.product(range(height), range(width)):
        x, y = points.unbind(-1)
        weight = (1 - (x - column).abs()).clamp(min=0)
        weight = weight * (1 - (y - row).abs()).clamp(min=0)
        out[:, :, row, column] = (tokens * weight[..., None]).sum(1)
    return out


def make(batch=2, count=9, channels=3, size=(4, 6), seed=0, device='cpu'):
    generator = torch.Generator().manual_seed(seed)

    def uniform(*shape):
        return torch.rand(shape, generator=generator, dtype=torch.float64)

    tokens = uniform(batch, count, channels) - 0.5
    # From well outside to well outside.
    extent = torch.tensor([size[1], size[0]]).double()
    points = uniform(batch, count, 2) * (extent + 5) - 3
    return tokens.to(device), points.to(device)


@on_all_devices
@pytest.mark.parametrize('size', [(4, 6), (1, 1), (1, 7), (5, 2)])
def test_against_reference(device, size):
    tokens, points = make(size=size, device=device)
    out = splat_points(tokens, points, size)
    assert out.shape == (2, 3, *size)
    assert out.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(out, reference(tokens, points, size), atol=1e-12, rtol=0)
    strided = tokens.mT.contiguous().mT
    assert torch.equal(splat_points(strided, points, size), out)


@settings(deadline=None, derandomize=True, max_examples=300)
@given(
    batch=st.integers(0, 3),
    count=st.integers(0, 7),
    height=st.integers(1, 6),
    width=st.integers(1, 6),
    seed=st.integers(0, 10_000),
)
def test_adjoint_of_sampling(batch, count, height, width, seed):
    """<sample(F), T> = <F, splat(T)>."""
    tokens, points = make(batch, count, size=(height, width), seed=seed)
    generator = torch.Generator().manual_seed(seed)
    shape = (batch, 3, height, width)
    feat = torch.randn(shape, generator=generator, dtype=torch.float64)
    sampled = (sample_points(feat, points) * tokens).sum()
    splatted = (feat * splat_points(tokens, points, (height, width))).sum()
    assert abs(sampled - splatted) < 1e-12


@pytest.mark.parametrize('value', [float('nan'), float('inf'), -float('inf'), 1e30])
def test_points_that_are_nowhere_add_nothing(value):
    tokens, points = make(count=1)
    points[..., 1] = value
    points.requires_grad_()
    out = splat_points(tokens, points, (4, 6))
    assert torch.equal(out, torch.zeros_like(out))
    (gradient,) = torch.autograd.grad(out.sum(), points)
    assert torch.equal(gradient, torch.zeros_like(gradient))


def test_gradients():
    tokens, points = make()
    tokens.requires_grad_()
    points.requires_grad_()
    assert gradcheck(lambda t, p: splat_points(t, p, (4, 6)), (tokens, points))


@on_all_devices
@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float32])
def test_dtypes(device, dtype):
    """The sum is made in float32 and rounded once, also under autocast."""
    tokens, points = make(device=device)
    tokens = tokens.to(dtype)
    exact = reference(tokens.double(), points.float().double(), (4, 6))
    with torch.autocast(device, torch.bfloat16):
        out = splat_points(tokens, points.float(), (4, 6))
    assert out.dtype == dtype
    tolerance = max(2 * torch.finfo(dtype).eps, 1e-5)
    torch.testing.assert_close(out.double(), exact, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize(
    ('arguments', 'error', 'message'),
    [
        (
            dict(tokens=torch.rand(2, 5)),
            ValueError,
            r'tokens must have .* got \(2, 5\)',
        ),
        (dict(points=torch.rand(2, 5, 3)), ValueError, r'points must have shape'),
        (dict(points=torch.rand(1, 5, 2)), ValueError, 'the same batch size'),
        (dict(points=torch.rand(2, 4, 2)), ValueError, 'must be as many, got tokens'),
        (dict(points=torch.rand(2, 5, 2).half()), TypeError, 'float32 or float64'),
        (dict(tokens=torch.ones(2, 5, 3).int()), TypeError, 'tokens must be floating'),
        (dict(size=(0, 4)), ValueError, r'size must be \(H, W\) .* got \(0, 4\)'),
        (dict(size=(4,)), ValueError, r'size must be \(H, W\) .* got \(4,\)'),
    ],
)
def test_bad_arguments(arguments, error, message):
    good = dict(tokens=torch.rand(2, 5, 3), points=torch.rand(2, 5, 2), size=(4, 4))
    with pytest.raises(error, match=message):
        splat_points(**{**good, **arguments})
