# Copyright (c) mmpsvit contributors.
"""Kernels in Triton that sample a map of any floating dtype, as operators of PyTorch.

They read the map as it is, where mmcv's kernel needs a copy in float32. Points,
weights, samples and all sums are float32. A program is one point; maps are tables of
pixels, (B, H, W, C), contiguous.

With ``tokens`` they also move the points, and with a place for the ``moved`` points
embed them: what an iteration of progressive sampling does before its transformer layer.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .kernels import empty_samples, operator

_LARGEST_BLOCK = 1024


@triton.jit
def _stencil(x, y, program, count, height, width):
    """Of a point: its image, whether it sees the map, first pixel and fractions."""
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
def _load(start, index, mask):
    return tl.load(start + index, mask, 0.0).to(tl.float32)


@triton.jit
def _forward(
    table, points, samples,
    tokens, offset_weight, offset_bias, scale, position_weight, position_bias, moved,
    count, height, width, channels, BLOCK: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0)
    x = tl.load(points + 2 * program)
    y = tl.load(points + 2 * program + 1)
    own = program.to(tl.int64) * channels
    if tokens is not None:
        to_x = tl.load(offset_bias).to(tl.float32)
        to_y = tl.load(offset_bias + 1).to(tl.float32)
        for first in range(0, channels, BLOCK):
            channel = first + tl.arange(0, BLOCK)
            mask = channel < channels
            token = _load(tokens + own, channel, mask)
            to_x += tl.sum(token * _load(offset_weight, channel, mask))
            to_y += tl.sum(token * _load(offset_weight + channels, channel, mask))
        x += scale * to_x
        y += scale * to_y
    if moved is not None:
        tl.store(moved + 2 * program, x)
        tl.store(moved + 2 * program + 1, y)
    image, inside, left, top, x_part, y_part = _stencil(
        x, y, program, count, height, width
    )
    for first in range(0, channels, BLOCK):
        channel = first + tl.arange(0, BLOCK)
        mask = channel < channels
        total = tl.zeros((BLOCK,), tl.float32)
        for down in tl.static_range(2):
            for right in tl.static_range(2):
                start, visible = _pixel(
                    image, inside, left + right, top + down, height, width, channels
                )
                weight = (x_part if right else 1 - x_part) * (
                    y_part if down else 1 - y_part
                )
                total += weight * _load(table + start, channel, channel < visible)
        if moved is not None:
            total += _load(position_bias, channel, mask)
            total += x / width * _load(position_weight, 2 * channel, mask)
            total += y / height * _load(position_weight, 2 * channel + 1, mask)
        if tokens is not None:
            total += _load(tokens + own, channel, mask)
        tl.store(samples + own + channel, total, mask)


@triton.jit
def _backward(
    grad, table, points, to_table, to_points, offset_weight, scale, to_tokens,
    count, height, width, channels, BLOCK: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0)
    own = program.to(tl.int64) * channels
    x = tl.load(points + 2 * program)
    y = tl.load(points + 2 * program + 1)
    image, inside, left, top, x, y = _stencil(x, y, program, count, height, width)
    to_x = 0.0
    to_y = 0.0
    for first in range(0, channels, BLOCK):
        channel = first + tl.arange(0, BLOCK)
        given = _load(grad + own, channel, channel < channels)
        for down in tl.static_range(2):
            for right in tl.static_range(2):
                start, visible = _pixel(
                    image, inside, left + right, top + down, height, width, channels
                )
                along_x = x if right else 1 - x
                along_y = y if down else 1 - y
                mask = channel < visible
                product = tl.sum(given * _load(table + start, channel, mask))
                to_x += product * (along_y if right else -along_y)
                to_y += product * (along_x if down else -along_x)
                added = given * (along_x * along_y)
                tl.atomic_add(to_table + start + channel, added, mask, sem='relaxed')
    if to_tokens is not None:
        to_x *= scale
        to_y *= scale
        for first in range(0, channels, BLOCK):
            channel = first + tl.arange(0, BLOCK)
            mask = channel < channels
            total = _load(grad + own, channel, mask)
            total += to_x * _load(offset_weight, channel, mask)
            total += to_y * _load(offset_weight + channels, channel, mask)
            tl.store(to_tokens + own + channel, total, mask)
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
    unused = (None, None, None, 0.0, None, None, None)
    with torch.cuda.device_of(table):
        _forward[grid](table, points, samples, *unused, *sizes, block)
    return samples


def sample_with_triton_backward(
    grad: Tensor, table: Tensor, points: Tensor, grad_table: Tensor
) -> Tensor:
    """As :func:`.kernels.sample_with_mmcv_backward`."""
    args = grad, table, points, None, None, 0.0, grad_table
    return advance_with_triton_backward(*args)[0]


def _empty_inputs(
    table: Tensor, points: Tensor, tokens: Tensor | None, *layers
) -> tuple[Tensor, Tensor]:
    """What tokens to encode, and their points, look like."""
    weight = layers[-2]
    shape = (*points.shape[:2], table.shape[-1])
    return weight.new_empty(shape), torch.empty_like(points)


@operator('advance_with_triton', _empty_inputs)
def advance_with_triton(
    table: Tensor,
    points: Tensor,
    tokens: Tensor | None,
    offset_weight: Tensor | None,
    offset_bias: Tensor | None,
    scale: float,
    position_weight: Tensor,
    position_bias: Tensor,
) -> tuple[Tensor, Tensor]:
    """Move points, sample there, and add position embedding and tokens.

    Args:
        table (Tensor): Map (B, H, W, C), contiguous.
        points (Tensor): Points (B, N, 2), (x, y) in pixels, float32, contiguous.
        tokens (Tensor, optional): Tokens (B, N, C), contiguous. None leaves the points
            where they are.
        offset_weight (Tensor, optional): Weight (2, C) of the layer that predicts the
            offsets of the tokens.
        offset_bias (Tensor, optional): Its bias, (2,).
        scale (float): Factor on the offsets.
        position_weight (Tensor): Weight (C, 2) of the layer that embeds points.
        position_bias (Tensor): Its bias, (C,).

    Returns:
        tuple[Tensor, Tensor]: The sum, (B, N, C), in the dtype of ``position_weight``,
        and the moved points.
    """
    layers = offset_weight, offset_bias, scale, position_weight, position_bias
    inputs, moved = _empty_inputs(table, points, tokens, *layers)
    grid, sizes, block = _settings(table, points)
    with torch.cuda.device_of(table):
        _forward[grid](table, points, inputs, tokens, *layers, moved, *sizes, block)
    return inputs, moved


def _empty_gradients(
    grad: Tensor, table: Tensor, points: Tensor, tokens: Tensor | None, *others
) -> tuple[Tensor, Tensor]:
    """What the gradients of offsets and tokens look like."""
    to_tokens = grad.new_empty(0) if tokens is None else torch.empty_like(tokens)
    return torch.empty_like(points), to_tokens


@operator('advance_with_triton_backward', _empty_gradients, ('grad_table',))
def advance_with_triton_backward(
    grad: Tensor,
    table: Tensor,
    points: Tensor,
    tokens: Tensor | None,
    offset_weight: Tensor | None,
    scale: float,
    grad_table: Tensor,
) -> tuple[Tensor, Tensor]:
    """Add the gradient of the map to ``grad_table``.

    Args:
        grad (Tensor): Gradient of the sum, (B, N, C), contiguous.
        table (Tensor): As in the forward pass.
        points (Tensor): The moved points.
        tokens (Tensor, optional): As in the forward pass.
        offset_weight (Tensor, optional): As in the forward pass.
        scale (float): As in the forward pass.
        grad_table (Tensor): (B, H, W, C), float32, contiguous.

    Returns:
        tuple[Tensor, Tensor]: Gradients of the offsets, (B, N, 2), and of the tokens,
        without elements if there were none.
    """
    others = offset_weight, scale, grad_table
    to_offsets, to_tokens = _empty_gradients(grad, table, points, tokens, *others)
    grid, sizes, block = _settings(table, points)
    with torch.cuda.device_of(table):
        _backward[grid](
            grad, table, points, grad_table, to_offsets, offset_weight, scale,
            None if tokens is None else to_tokens, *sizes, block,
        )  # fmt: skip
    return to_offsets, to_tokens
