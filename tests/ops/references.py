# Copyright (c) mmpsvit contributors.
"""The operators, slow and obvious."""

import itertools
import math

import numpy as np
import torch
from torch import Tensor


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
