# Copyright (c) mmpsvit contributors.
"""Tokens at free points as maps on regular grids, for dense tasks."""

import itertools
import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from mmpsvit.models.necks import SampledTokens
from mmpsvit.ops import splat_points

FEATMAP_MODES = ('index', 'splat')


def check_strides(strides: Sequence[int], smallest: int) -> tuple[int, ...]:
    """Return valid strides as a tuple.

    Raises:
        ValueError: If they are not increasing powers of two from ``smallest`` on.
    """
    valid = all(
        isinstance(s, int) and s >= smallest and not s & (s - 1) for s in strides
    )
    if not strides or not valid or any(a >= b for a, b in itertools.pairwise(strides)):
        raise ValueError(
            f'out_strides must be increasing powers of two from {smallest} on, got '
            f'{strides}'
        )
    return tuple(strides)


def build_pyramid(
    tokens: Tensor,
    sampled: SampledTokens,
    feat: Tensor,
    strides: Sequence[int],
    image_size: tuple[int, int],
    padded_size: tuple[int, int],
    mode: str,
) -> tuple[Tensor, ...]:
    """Lay tokens out as one map per stride, and add the stem's dense map to each.

    Not in the paper. There are no parameters. The modes differ in where a token goes:

    - ``'index'``: into the cell of the start grid that it began in; the grid is then
      resized (bilinear).
    - ``'splat'``: to its final point p, at u = p * (map size / feat size) - 0.5 on each
      axis, which puts points that never moved onto cells. Tokens are scattered
      bilinearly and divided by the scattered weight; cells that no token reaches are
      filled from the start grid's map, and there from the token that began there.

    On a map of the size of the start grid both are equal if no point has moved.

    Args:
        tokens (Tensor): Encoded point tokens, (B, N, C).
        sampled (SampledTokens): What the sampler returned for them.
        feat (Tensor): The stem's map, (B, C, H, W).
        strides (Sequence[int]): Stride of each map relative to the image.
        image_size (tuple[int, int]): Size of the image. What lies beyond it on the
            backbone's own padding is cut off.
        padded_size (tuple[int, int]): Size of the image that ``feat`` was computed of.
        mode (str): 'index' or 'splat'.

    Returns:
        tuple[Tensor, ...]: Maps (B, C, ceil(H / stride), ceil(W / stride)), in the
        dtype of ``tokens``.
    """
    batch, _, channels = tokens.shape
    # (B, h * w, C) -> (B, C, h, w)
    grid = tokens.mT.reshape(batch, channels, *sampled.grid_size)
    if mode == 'splat':
        grid = _splat(tokens, sampled.points, feat, grid)
    maps = []
    for stride in strides:
        size = _size_at(stride, padded_size)
        dense = F.interpolate(grid, size, mode='bilinear', align_corners=False)
        if mode == 'splat':
            dense = _splat(tokens, sampled.points, feat, dense)
        dense = dense + F.adaptive_avg_pool2d(feat, size).to(dense.dtype)
        height, width = _size_at(stride, image_size)
        maps.append(dense[..., :height, :width])
    return tuple(maps)


def _size_at(stride: int, image_size: tuple[int, int]) -> tuple[int, int]:
    height, width = image_size
    return math.ceil(height / stride), math.ceil(width / stride)


def _splat(tokens: Tensor, points: Tensor, feat: Tensor, fallback: Tensor) -> Tensor:
    """Scatter tokens onto a map like ``fallback``, which fills what none reaches."""
    height, width = fallback.shape[-2:]
    # Scaled by numbers: a tensor of them would wait for a copy to the device.
    x, y = points.unbind(-1)
    x, y = x * (width / feat.shape[-1]), y * (height / feat.shape[-2])
    points = torch.stack((x, y), dim=-1) - 0.5
    # One more channel collects the weights.
    ones = tokens.new_ones(*tokens.shape[:2], 1)
    # In the precision of the points: half precision could not hold the weights' sums.
    splatted = splat_points(
        torch.cat((tokens, ones), dim=-1).to(points.dtype), points, (height, width)
    )
    total, weight = splatted[:, :-1], splatted[:, -1:]
    reached = weight > 1e-6
    mean = total / torch.where(reached, weight, 1)
    return torch.where(reached, mean.to(fallback.dtype), fallback)
