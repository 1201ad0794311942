# Copyright (c) mmpsvit contributors.
"""Tokens at free points as maps on regular grids, for dense tasks."""

import itertools
from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

from mmpsvit.models.backbones.stem import STEM_STRIDE


def check_strides(strides: Sequence[int]) -> tuple[int, ...]:
    """Return valid strides as a tuple.

    Raises:
        ValueError: If they are not increasing powers of two from the stem's on.
    """
    valid = all(
        isinstance(s, int) and s >= STEM_STRIDE and not s & (s - 1) for s in strides
    )
    if not strides or not valid or any(a >= b for a, b in itertools.pairwise(strides)):
        raise ValueError(
            f'out_strides must be increasing powers of two from {STEM_STRIDE} on, '
            f'got {strides}'
        )
    return tuple(strides)


def build_pyramid(
    tokens: Tensor,
    grid_size: tuple[int, int],
    feat: Tensor,
    strides: Sequence[int],
    image_size: tuple[int, int],
    padded_size: tuple[int, int],
) -> tuple[Tensor, ...]:
    """Lay tokens out as one map per stride, and add the stem's dense map to each.

    Not in the paper. There are no parameters. A token goes into the cell of the start
    grid that its point began in, and the grid is resized (bilinear). (To put tokens
    where their points ended detected worse, see configs/mmdet/README.md.)

    Args:
        tokens (Tensor): Encoded point tokens, (B, h * w, C), row-major.
        grid_size (tuple[int, int]): Rows and columns (h, w) of the start grid.
        feat (Tensor): The stem's map, (B, C, H, W).
        strides (Sequence[int]): Stride of each map relative to the image.
        image_size (tuple[int, int]): Size of the image. What lies beyond it on the
            backbone's own padding is cut off.
        padded_size (tuple[int, int]): Size of the image that ``feat`` was computed of.

    Returns:
        tuple[Tensor, ...]: Maps (B, C, ceil(H / stride), ceil(W / stride)), in the
        dtype of ``tokens``.
    """
    batch, _, channels = tokens.shape
    # (B, h * w, C) -> (B, C, h, w)
    grid = tokens.transpose(1, 2).reshape(batch, channels, *grid_size)
    maps = []
    for stride in strides:
        size = _size_at(stride, padded_size)
        dense = F.interpolate(grid, size, mode='bilinear', align_corners=False)
        window = stride // STEM_STRIDE
        # Not adaptive pooling, whose gradient is not deterministic on CUDA.
        pooled = feat
        if window > 1:
            pooled = F.avg_pool2d(feat, window, ceil_mode=True, count_include_pad=False)
        dense = dense + pooled.to(dense.dtype)
        height, width = _size_at(stride, image_size)
        maps.append(dense[..., :height, :width])
    return tuple(maps)


def _size_at(stride: int, image_size: tuple[int, int]) -> tuple[int, int]:
    height, width = image_size
    # Rounded up in a way that a traced network keeps, and ONNX too.
    return (height + stride - 1) // stride, (width + stride - 1) // stride
