# Copyright (c) mmpsvit contributors.
"""``splat_points`` is the adjoint of ``sample_points``, value and gradients."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from references import coordinates, splat_reference
from torch.autograd import gradcheck

from mmpsvit.ops import sample_points, splat_points


def make(batch=2, count=9, channels=3, size=(4, 6), seed=0, device='cpu'):
    generator = torch.Generator().manual_seed(seed)

    def uniform(*shape):
        return torch.rand(shape, generator=generator, dtype=torch.float64)

    tokens = uniform(batch, count, channels) - 0.5
    # From well outside to well outside.
    extent = torch.tensor([size[1], size[0]]).double()
    points = uniform(batch, count, 2) * (extent + 5) - 3
    return tokens.to(device), points.to(device)


@pytest.mark.parametrize('size', [(4, 6), (1, 1), (1, 7), (5, 2)])
def test_against_reference(device, size):
    tokens, points = make(size=size, device=device)
    out = splat_points(tokens, points, size)
    assert out.shape == (2, 3, *size)
    assert out.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(
        out, splat_reference(tokens, points, size), atol=1e-12, rtol=0
    )
    strided = tokens.mT.contiguous().mT
    assert torch.equal(splat_points(strided, points, size), out)


@settings(deadline=None, derandomize=True, max_examples=300)
@given(
    data=st.data(),
    batch=st.integers(0, 3),
    count=st.integers(0, 7),
    channels=st.integers(1, 4),
    height=st.integers(1, 6),
    width=st.integers(1, 6),
    strided=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_adjoint_of_sampling(
    data, batch, count, channels, height, width, strided, dtype
):
    """<sample(F), T> = <F, splat(T)>, and so are the gradients, wherever a point is."""
    total = batch * count * 2
    values = data.draw(st.lists(coordinates, min_size=total, max_size=total))
    points = torch.tensor(values, dtype=torch.float64).view(batch, count, 2)
    tokens, _ = make(batch, count, channels)
    feat = make(batch, height * width, channels, seed=1)[0].mT
    feat = feat.reshape(batch, channels, height, width)
    if strided:
        tokens, points = tokens.mT.contiguous().mT, points.mT.contiguous().mT
    feat, points, tokens = inputs = [
        tensor.to(dtype).requires_grad_() for tensor in (feat, points, tokens)
    ]
    tolerance = 1e-12 if dtype == torch.float64 else 1e-5

    sampled = (sample_points(feat, points) * tokens).sum()
    splatted = (feat * splat_points(tokens, points, (height, width))).sum()
    assert abs(sampled - splatted) < tolerance
    for actual, expected in zip(
        torch.autograd.grad(splatted, inputs),
        torch.autograd.grad(sampled, inputs),
        strict=True,
    ):
        torch.testing.assert_close(actual, expected, atol=tolerance, rtol=0)


@pytest.mark.parametrize('place', ['anywhere', 'border'])
def test_gradients(device, place):
    tokens, points = make(device=device)
    if place == 'border':
        # In the strips (-1, 0) and (width - 1, width), (height - 1, height)
        extent = points.new_tensor([6, 4])
        points = points.frac().abs().clamp(0.05, 0.95)
        points[:, ::2] -= 1
        points[:, 1::2] += extent - 1
    tokens.requires_grad_()
    points.requires_grad_()
    assert gradcheck(lambda t, p: splat_points(t, p, (4, 6)), (tokens, points))


@pytest.mark.parametrize(('batch', 'count'), [(0, 3), (2, 0), (0, 0)])
def test_nothing_to_splat(device, batch, count):
    tokens, points = make(batch, count, device=device)
    tokens.requires_grad_()
    points.requires_grad_()
    out = splat_points(tokens, points, (4, 6))
    assert torch.equal(out, tokens.new_zeros(batch, 3, 4, 6))
    out.sum().backward()
    assert tokens.grad.shape == tokens.shape
    assert points.grad.shape == points.shape


def test_shape_on_meta():
    tokens, points = make(device='meta')
    out = splat_points(tokens.half(), points.float(), (4, 6))
    assert (out.shape, out.dtype) == ((2, 3, 4, 6), torch.float16)


def test_same_sum_every_time(device):
    """Many tokens on few pixels, in float32."""
    tokens, points = make(count=500, device=device)
    tokens, points = tokens.float(), points.float()
    out = splat_points(tokens, points, (4, 6))
    for _ in range(5):
        assert torch.equal(splat_points(tokens, points, (4, 6)), out)


def test_float64_on_either_side():
    tokens, points = make()
    exact = splat_points(tokens, points, (4, 6))
    assert splat_points(tokens, points.float(), (4, 6)).dtype == torch.float64
    mixed = splat_points(tokens.float(), points, (4, 6))
    assert mixed.dtype == torch.float32
    expected = splat_points(tokens.float().double(), points, (4, 6)).float()
    assert torch.equal(mixed, expected)
    torch.testing.assert_close(mixed, exact.float(), atol=1e-6, rtol=0)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float32])
def test_dtypes(device, dtype):
    """The sum is made in float32 and rounded once, also under autocast."""
    tokens, points = make(device=device)
    tokens = tokens.to(dtype)
    exact = splat_reference(tokens.double(), points.float().double(), (4, 6))
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
        (
            dict(points=torch.rand(2, 5, 2, device='meta')),
            ValueError,
            'same device.*cpu and meta',
        ),
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
