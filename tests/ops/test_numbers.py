# Copyright (c) mmpsvit contributors.
"""Any coordinate, many times: no crash, no index out of range, no infinite gradient."""

import itertools
import math

import numpy as np
import pytest
import torch
from references import sample_reference, splat_reference

from mmpsvit.ops import point_sampling, sample_points, splat_points

HEIGHT, WIDTH = 5, 7
EXTREMES = [
    math.inf,
    -math.inf,
    math.nan,
    1e30,
    -1e30,
    -1.0,
    float(HEIGHT),
    float(WIDTH),
    # subnormal numbers of both precisions, and the smallest normal ones
    *(sign * value for sign in (1, -1) for value in (1e-45, 5e-324, 1.2e-38, 2.3e-308)),
    math.nextafter(-1, 0),
    math.nextafter(-1, -2),
    math.nextafter(WIDTH, 0),
    -0.0,
]


def draw_points(rng: np.random.Generator, shape: tuple, size: tuple) -> np.ndarray:
    """Points (x, y) of all kinds: inside, on pixels, near and far outside, extremes."""
    height, width = size
    kinds = [
        rng.uniform(-2, np.array([width, height]) + 1, (*shape, 2)),
        rng.integers(-2, np.array([width, height]) + 2, (*shape, 2)).astype(float),
        rng.normal(size=(*shape, 2)) * 10.0 ** rng.integers(-40, 39, (*shape, 2)),
        rng.choice(EXTREMES, (*shape, 2)),
    ]
    # Mostly of the first two: one extreme coordinate puts a point outside.
    which = rng.choice(4, (*shape, 2), p=[0.5, 0.3, 0.1, 0.1])
    return np.choose(which, kinds)


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
def test_many_points(dtype):
    """Some 35,000 points on 500 maps, in each precision."""
    rng = np.random.default_rng(0)
    tolerance = dict(rtol=0, atol=1e-12 if dtype == torch.float64 else 1e-5)
    for _ in range(500):
        batch, channels, *size = rng.integers(1, [3, 4, 7, 7]).tolist()
        count = int(rng.integers(1, 96))
        points = torch.from_numpy(draw_points(rng, (batch, count), size)).to(dtype)
        feat = torch.from_numpy(rng.normal(size=(batch, channels, *size))).to(dtype)
        tokens = torch.from_numpy(rng.normal(size=(batch, count, channels))).to(dtype)

        expected = torch.from_numpy(sample_reference(feat.numpy(), points.numpy()))
        sampled = sample_points(feat, points)
        torch.testing.assert_close(sampled, expected.to(dtype), **tolerance)

        # The reference multiplies, and infinity times zero would be NaN.
        known = points.isfinite().all(-1, keepdim=True)
        expected = splat_reference(
            torch.where(known, tokens, 0), torch.where(known, points, -9), size
        )
        splatted = splat_points(tokens, points, size)
        torch.testing.assert_close(splatted, expected, **tolerance)


@pytest.mark.parametrize(('batch', 'count'), [(0, 3), (2, 0), (0, 0)])
def test_no_points(batch, count):
    points = torch.zeros(batch, count, 2)
    feat = torch.ones(batch, 4, HEIGHT, WIDTH)
    assert sample_points(feat, points).shape == (batch, count, 4)
    splatted = splat_points(torch.ones(batch, count, 4), points, (HEIGHT, WIDTH))
    torch.testing.assert_close(splatted, torch.zeros_like(feat))


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
def test_indices_stay_in_range(dtype):
    pairs = list(itertools.product(EXTREMES, repeat=2))
    points = torch.tensor([pairs, pairs], dtype=dtype)
    index, weight = point_sampling._corners(points, HEIGHT, WIDTH)
    image = torch.arange(2).view(2, 1, 1) * HEIGHT * WIDTH
    assert (index >= image).all()
    assert (index < image + HEIGHT * WIDTH).all()
    assert weight.isfinite().all()
    assert (weight >= 0).all()
    assert (weight.sum(-1) <= 1 + 1e-6).all()


@pytest.mark.parametrize('distance', [1.5, 1e3, 1e10, 1e30, math.inf, math.nan])
def test_gradients_far_outside_are_finite(distance):
    feat = torch.randn(1, 3, HEIGHT, WIDTH, requires_grad=True)
    tokens = torch.randn(1, 5, 3, requires_grad=True)
    far = WIDTH + distance
    points = torch.tensor([[[far, 1], [-far, 1], [1, far], [1, -far], [far, far]]])
    points.requires_grad_()
    sample_points(feat, points).square().sum().backward()
    splat_points(tokens, points, (HEIGHT, WIDTH)).square().sum().backward()
    for tensor in (feat, tokens, points):
        assert (tensor.grad == 0).all()
