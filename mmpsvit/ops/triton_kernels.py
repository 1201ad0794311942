# Copyright (c) mmpsvit contributors.
"""Kernels in Triton that sample a map of any floating dtype, as operators of PyTorch.

They read the map as it is, where mmcv's kernel needs a copy in float32. Points,
weights, samples and all sums are float32. A program is one point; maps are tables of
pixels, (B, H, W, C), contiguous.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .kernels import empty_point_gradients, empty_samples, operator

_LARGEST_BLOCK = 1024


@triton.jit
def _stencil(points, program, count, height, width):
    """Of a point: its image, whether it sees the map, first pixel and fractions."""
    x = tl.load(points + 2 * program)
    y = tl.load(points + 2 * program + 1)
    # False for NaN as well: what follows sees finite numbers only.
    inside = (x > -1) & (x < width) & (y > -1) & (y < height)
    x = tl.where(inside, x, 0.0)
    y = tl.where(inside, y, 0.0)
    left = tl.floor(x)
    top = tl.floor(y)
    return (
        program // count,
        inside,
        left.to(tl.int32),
        top.to(tl.int32),
        x - left,
        y - top,
    )


@triton.jit
def _pixel(image, inside, column, row, height, width, channels):
    """Where a pixel's channels start; how many of them a point sees: all or none."""
    seen = inside & (column >= 0) & (column < width) & (row >= 0) & (row < height)
    # Elements are addressed with 64 bits.
    pixel = (image.to(tl.int64) * height + row) * width + column
    return pixel * channels, tl.where(seen, channels, 0)


@triton.jit
def _forward(
    table, points, samples, count, height, width, channels, BLOCK: tl.constexpr
):
    program = tl.program_id(0)
    image, inside, left, top, x, y = _stencil(points, program, count, height, width)
    for first in range(0, channels, BLOCK):
        channel = first + tl.arange(0, BLOCK)
        total = tl.zeros((BLOCK,), tl.float32)
        for down in tl.static_range(2):
            for right in tl.static_range(2):
                start, visible = _pixel(
                    image, inside, left + right, top + down, height, width, channels
                )
                weight = (x if right else 1 - x) * (y if down else 1 - y)
                value = tl.load(table + start + channel, channel < visible, 0.0)
                total += weight * value.to(tl.float32)
        place = program.to(tl.int64) * channels + channel
        tl.store(samples + place, total, channel < channels)


@triton.jit
def _backward(
    grad, table, points, to_table, to_points, count, height, width, channels,
    BLOCK: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0)
    image, inside, left, top, x, y = _stencil(points, program, count, height, width)
    to_x = 0.0
    to_y = 0.0
    for first in range(0, channels, BLOCK):
        channel = first + tl.arange(0, BLOCK)
        place = program.to(tl.int64) * channels + channel
        given = tl.load(grad + place, channel < channels, 0.0)
        for down in tl.static_range(2):
            for right in tl.static_range(2):
                start, visible = _pixel(
                    image, inside, left + right, top + down, height, width, channels
                )
                along_x = x if right else 1 - x
                along_y = y if down else 1 - y
                mask = channel < visible
                value = tl.load(table + start + channel, mask, 0.0)
                product = tl.sum(given * value.to(tl.float32))
                to_x += product * (along_y if right else -along_y)
                to_y += product * (along_x if down else -along_x)
                added = given * (along_x * along_y)
                tl.atomic_add(to_table + start + channel, added, mask, sem='relaxed')
    tl.store(to_points + 2 * program, to_x)
    tl.store(to_points + 2 * program + 1, to_y)


def _settings(table: Tensor, points: Tensor) -> tuple[tuple[int], tuple[int, ...], int]:
    """The grid of programs, the sizes that the kernels take, and channels at a time."""
    batch, count, _ = points.shape
    _, height, width, channels = table.shape
    block = min(_LARGEST_BLOCK, triton.next_power_of_2(channels))
    return (batch * count,), (count, height, width, channels), block


@operator('sample_with_triton', empty_samples)
def sample_with_triton(table: Tensor, points: Tensor) -> Tensor:
    """As :func:`.kernels.sample_with_mmcv`, of maps in half precision too."""
    samples = empty_samples(table, points)
    grid, sizes, block = _settings(table, points)
    with torch.cuda.device_of(table):
        _forward[grid](table, points, samples, *sizes, BLOCK=block)
    return samples


@operator('sample_with_triton_backward', empty_point_gradients, ('grad_table',))
def sample_with_triton_backward(
    grad: Tensor, table: Tensor, points: Tensor, grad_table: Tensor
) -> Tensor:
    """As :func:`.kernels.sample_with_mmcv_backward`."""
    to_points = torch.empty_like(points)
    grid, sizes, block = _settings(table, points)
    with torch.cuda.device_of(table):
        _backward[grid](grad, table, points, grad_table, to_points, *sizes, BLOCK=block)
    return to_points
