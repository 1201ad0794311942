# Copyright (c) mmpsvit contributors.
"""The operators, slow and obvious, every kind of coordinates, a map to sample."""

import itertools
import math

import numpy as np
import torch
from hypothesis import strategies as st
from torch import Tensor

from mmpsvit.ops import SampledMap

EXTREMES = [
    *(math.nan, math.inf, -math.inf, 1e30, -1e30, 2.0**31, -0.0),
    # Subnormal numbers of both precisions, and the smallest normal ones
    *(sign * value for sign in (1, -1) for value in (1e-45, 5e-324, 1.2e-38, 2.3e-308)),
]


def beside(number: int, precision: type[np.floating], side: float) -> float:
    """The next float below or above a number."""
    return float(np.nextafter(precision(number), precision(side)))


# For maps of up to 8 x 8 pixels: inside, on pixels and borders, just beside those, near
# and far outside, nowhere.
coordinates = st.one_of(
    st.floats(-4, 12, width=32),
    st.integers(-2, 9).map(float),
    st.floats(),
    st.sampled_from(EXTREMES),
    st.builds(
        beside,
        st.integers(-2, 9),
        st.sampled_from([np.float32, np.float64]),
        st.sampled_from([-math.inf, math.inf]),
    ),
)


def sample_reference(feat: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Corner by corner, in float64; not a finite point inside the strip: zero."""
    batch, channels, height, width = feat.shape
    out = np.zeros((batch, points.shape[1], channels))
    for b in range(batch):
        for n in range(points.shape[1]):
            x, y = (float(value) for value in points[b, n])
            if not (-1 < x < width and -1 < y < height):
                continue
            x0, y0 = math.floor(x), math.floor(y)
            for corner_y in (y0, y0 + 1):
                for corner_x in (x0, x0 + 1):
                    if 0 <= corner_x < width and 0 <= corner_y < height:
                        weight = (1 - abs(x - corner_x)) * (1 - abs(y - corner_y))
                        out[b, n] += weight * feat[b, :, corner_y, corner_x]
    return out


def splat_reference(tokens: Tensor, points: Tensor, size: tuple[int, int]) -> Tensor:
    """Pixel by pixel: every token times the hat function of its distance."""
    height, width = size
    out = torch.zeros(tokens.shape[0], tokens.shape[2], height, width).to(tokens)
    for row, column in itertools.product(range(height), range(width)):
        x, y = points.unbind(-1)
        weight = (1 - (x - column).abs()).clamp(min=0)
        weight = weight * (1 - (y - row).abs()).clamp(min=0)
        out[:, :, row, column] = (tokens * weight[..., None]).sum(1)
    return out


def inputs(
    device: str = 'cpu',
    dtype: torch.dtype = torch.float64,
    width: int = 4,
    count: int = 6,
) -> tuple:
    """A map and the points of three calls, some of them outside."""
    generator = torch.Generator().manual_seed(0)
    feat = torch.randn(2, 3, 5, width, dtype=dtype, generator=generator)
    points = 7 * torch.rand(3, 2, count, 2, dtype=dtype, generator=generator) - 1.5
    feat, points = feat.to(device), points.to(device)
    return feat.requires_grad_(), points.requires_grad_()


def gradients(sample, feat: Tensor, points: Tensor) -> list:
    """Samples, and gradients where each call weighs otherwise and one is left out."""
    outs = sample(feat, points)
    loss = outs[0].square().sum() + 3 * outs[2].sin().sum()
    return [*outs, *torch.autograd.grad(loss, (feat, points))]


def by_map(feat: Tensor, points: Tensor, kernel: str = 'mmcv') -> list:
    sampled_map = SampledMap.of(feat, kernel)
    outs = []
    for each in points:
        samples, sampled_map = sampled_map.sample(each)
        outs.append(samples)
    return outs
