# Copyright (c) mmpsvit contributors.
"""Bilinear sampling in PyTorch's own operators, on any device and in any dtype.

Maps are tables of pixels, (B, H, W, C).
"""

import torch
import torch.nn.functional as F
from packaging.version import Version
from torch import Tensor

# Before, F.embedding_bag fails if its weights have a gradient and its table has none.
BAG_NEEDS_GRADIENT_OF_TABLE = Version(torch.__version__) < Version('2.6')


def sample_with_torch(table: Tensor, points: Tensor) -> Tensor:
    """Sample with ``F.embedding_bag``: the map is the table, the stencil the bag.

    On the CPU this is several times faster than ``F.grid_sample``, see
    ``tools/benchmarks/benchmark_sampling.py``.
    """
    batch, height, width, channels = table.shape
    index, weight = corners(points, height, width)
    rows = table.reshape(batch * height * width, channels)
    samples = weighted_sums(index.flatten(0, 1), rows, weight.flatten(0, 1))
    return samples.view(batch, points.shape[1], channels)


def weighted_sums(
    index: Tensor, table: Tensor, weight: Tensor, starts: Tensor | None = None
) -> Tensor:
    """Weighted sums of rows of a table, see ``F.embedding_bag``."""
    if BAG_NEEDS_GRADIENT_OF_TABLE and weight.requires_grad and not table.requires_grad:
        table = table.detach().requires_grad_()
    return F.embedding_bag(index, table, starts, per_sample_weights=weight, mode='sum')


def corners(points: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """The four pixels around each point, as rows of a table of pixels.

    Args:
        points (Tensor): Points of shape (B, N, 2).
        height (int): Height of the map.
        width (int): Width of the map.

    Returns:
        tuple[Tensor, Tensor]: Indices in [0, B * height * width) and bilinear weights,
        both (B, N, 4). A pixel outside the map has weight 0.
    """
    x, y = points.unbind(-1)
    inside = _inside(points, height, width)
    x_index, x_weight = _stencil(torch.where(inside, x, 0), width)
    y_index, y_weight = _stencil(torch.where(inside, y, 0), height)

    # (B, N, 2, 1) and (B, N, 1, 2) -> (B, N, 2, 2)
    weight = y_weight.unsqueeze(-1) * x_weight.unsqueeze(-2)
    weight = weight * inside[..., None, None]
    index = y_index.unsqueeze(-1) * width + x_index.unsqueeze(-2)
    image = torch.arange(points.shape[0], device=points.device) * (height * width)
    index = index + image.view(-1, 1, 1, 1)
    return index.flatten(2), weight.flatten(2)


def _inside(points: Tensor, height: int, width: int) -> Tensor:
    """Which points (B, N, 2) see a pixel of the map, (B, N).

    False for NaN as well: where such points are replaced, every later operation sees
    finite numbers only.
    """
    x, y = points.unbind(-1)
    return (x > -1) & (x < width) & (y > -1) & (y < height)


def _stencil(coords: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """The two pixels around each coordinate of one axis and their weights.

    Args:
        coords (Tensor): Coordinates in (-1, size), of any shape.
        size (int): Number of pixels on this axis.

    Returns:
        tuple[Tensor, Tensor]: Indices in [0, size) and weights, both with a last
        dimension of 2. A pixel outside the map has weight 0.
    """
    low = coords.detach().floor()
    pixels = torch.stack((low, low + 1), dim=-1)
    fraction = coords - low
    weights = torch.stack((1 - fraction, fraction), dim=-1)
    weights = weights * ((pixels >= 0) & (pixels < size))
    return pixels.clamp(0, size - 1).long(), weights


def sample_with_grid_sample(table: Tensor, points: Tensor) -> Tensor:
    """Sample with ``F.grid_sample``, the only one of these ways that ONNX has."""
    height, width = table.shape[1:3]
    # None of the four pixels around -2 is in the map, whatever the rounding. Runtimes
    # turn coordinates into integers, which huge numbers and NaN do not survive.
    inside = _inside(points, height, width)
    x, y = torch.where(inside.unsqueeze(-1), points, -2.0).unbind(-1)
    grid = torch.stack(((2 * x + 1) / width - 1, (2 * y + 1) / height - 1), dim=-1)
    feat = table.permute(0, 3, 1, 2)
    # (B, N, 2) -> (B, N, 1, 2), as an image of one column
    samples = F.grid_sample(feat, grid.unsqueeze(2), align_corners=False)
    # (B, C, N, 1) -> (B, N, C)
    return samples.squeeze(-1).transpose(1, 2)
