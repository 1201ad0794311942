# Copyright (c) mmpsvit contributors.
"""Bilinear sampling of a feature map at free points (PS-ViT, section 3.1), and back.

With the files beside it, the only one that knows devices, dtypes and memory formats.

Coordinates are pixels of the map, (x, y), and an integer coordinate is the
centre of a pixel. Outside the map the feature is zero: a corner of the bilinear
stencil that lies outside contributes nothing, so a point in the border strip
``(-1, 0)`` fades towards zero, and a point at or beyond -1 or the size of the map
samples zero and has no gradient. So does a point with a NaN or infinite
coordinate. (On CUDA a point within float32's rounding of that limit may count as
just inside, with a sample of zero to rounding.)
"""

import torch
from torch import Tensor

from .bilinear import corners, weighted_sums
from .sampled_map import SampledMap


def channels_last(x: Tensor) -> Tensor:
    """``x.contiguous(memory_format=torch.channels_last)``, also under ``vmap``."""
    # (B, C, H, W) -> (B, H, W, C) and back
    return x.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)


def sample_points(feat: Tensor, points: Tensor, kernel: str = 'mmcv') -> Tensor:
    """Sample a feature map bilinearly at points, with zeros outside the map.

    Value and gradients (to ``feat`` and to ``points``) are exact everywhere,
    the border strip included. On CUDA, in single or half precision, this runs a kernel;
    where there is none, in PyTorch's deterministic mode and under ``torch.func``,
    PyTorch's own operators. ``torch.onnx.export`` finds ``F.grid_sample`` here, which
    is one operator of ONNX.

    There are first derivatives only, also through ``torch.func.grad``: the backward
    pass of a gradient (a gradient penalty, a Hessian) raises a RuntimeError or its
    subclass NotImplementedError.

    Args:
        feat (Tensor): Feature map of shape (B, C, H, W), finite: a point outside may
            sample zero times a pixel.
        points (Tensor): Points of shape (B, N, 2), (x, y) in pixels of ``feat``,
            integer = pixel centre; float32 or float64.
        kernel (str): See :class:`SampledMap`. Defaults to 'mmcv'.

    Returns:
        Tensor: Samples of shape (B, N, C) in the dtype of ``feat``.

    Raises:
        TypeError: If ``feat`` is not floating point, or ``points`` are neither
            float32 nor float64.
        ValueError: If ranks, last dimension, batch sizes or devices do not fit, the
            map has no pixels or no channels, or the kernel is unknown.
    """
    dtype = feat.dtype
    _check_arguments(feat, points)
    if points.dtype == torch.float64:
        feat = feat.double()
    elif dtype == torch.float64:
        points = points.double()
    samples, _ = SampledMap.of(feat, kernel).sample(points)
    return samples.to(dtype)


def splat_points(tokens: Tensor, points: Tensor, size: tuple[int, int]) -> Tensor:
    """Scatter tokens bilinearly onto a map, the adjoint of :func:`sample_points`.

    Each token is added to the four pixels around its point, with the weights with
    which ``sample_points`` would read them: for any map F of this size,
    ``(sample_points(F, P) * T).sum() == (F * splat_points(T, P, size)).sum()``. So what
    lies outside the map is lost, and a point with a NaN or infinite coordinate adds
    nothing. The gradients (to ``tokens`` and to ``points``) are exact.

    Args:
        tokens (Tensor): Tokens of shape (B, N, C).
        points (Tensor): Points of shape (B, N, 2), (x, y) in pixels of the map,
            integer = pixel centre; float32 or float64.
        size (tuple[int, int]): Size (H, W) of the map.

    Returns:
        Tensor: The map, (B, C, H, W), channels_last, in the dtype of ``tokens``, summed
        in float32 at least.

    Raises:
        TypeError: If ``tokens`` are not floating point, or ``points`` are neither
            float32 nor float64.
        ValueError: If ranks, last dimension, batch sizes, numbers of points or devices
            do not fit, or the map has no pixels.
    """
    if tokens.ndim != 3:
        raise ValueError(f'tokens must have shape (B, N, C), got {tuple(tokens.shape)}')
    _check_points(points, 'tokens', tokens)
    if tokens.shape[1] != points.shape[1]:
        raise ValueError(
            'tokens and points must be as many, got tokens '
            f'{tuple(tokens.shape)} and points {tuple(points.shape)}'
        )
    if len(size) != 2 or min(size) < 1:
        raise ValueError(f'size must be (H, W) with at least one pixel, got {size}')
    height, width = size
    dtype = torch.promote_types(tokens.dtype, points.dtype)
    index, weight = corners(points.to(dtype), height, width)
    batch, _, channels = tokens.shape
    # One bag of tokens per pixel. Unlike a scatter, this never holds (B, N, 4, C), and
    # the order of each sum is fixed.
    index, order = index.flatten().sort(stable=True)
    pixels = torch.arange(batch * height * width, device=index.device)
    table = weighted_sums(
        order // 4,  # four corners per token
        tokens.to(dtype).flatten(0, 1),
        weight.flatten()[order],
        torch.searchsorted(index, pixels),
    )
    # (B * H * W, C) -> (B, C, H, W)
    table = table.view(batch, height, width, channels)
    return table.permute(0, 3, 1, 2).to(tokens.dtype)


def _check_arguments(feat: Tensor, points: Tensor) -> None:
    if feat.ndim != 4:
        raise ValueError(
            f'feat must have shape (B, C, H, W), got feat {tuple(feat.shape)} and '
            f'points {tuple(points.shape)}'
        )
    _check_points(points, 'feat', feat)
    if 0 in feat.shape[1:]:
        raise ValueError(
            'feat must have at least one pixel and one channel, got feat '
            f'{tuple(feat.shape)}'
        )


def _check_points(points: Tensor, name: str, other: Tensor) -> None:
    """Check points, and that the tensor called ``name`` goes with them."""
    shapes = f'{name} {tuple(other.shape)} and points {tuple(points.shape)}'
    if points.ndim != 3 or points.shape[-1] != 2:
        raise ValueError(f'points must have shape (B, N, 2), got {shapes}')
    if other.shape[0] != points.shape[0]:
        raise ValueError(
            f'{name} and points must have the same batch size, got {shapes}'
        )
    if other.device != points.device:
        raise ValueError(
            f'{name} and points must be on the same device, got {shapes} '
            f'on {other.device} and {points.device}'
        )
    if not other.is_floating_point():
        raise TypeError(f'{name} must be floating point, got {other.dtype}')
    if points.dtype not in (torch.float32, torch.float64):
        raise TypeError(
            'points must be float32 or float64 (half precision cannot place a '
            f'point), got {points.dtype}'
        )
