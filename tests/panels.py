# Copyright (c) mmpsvit contributors.
"""Reads the pictures of sampling points."""

from pathlib import Path

import numpy as np
from PIL import Image, ImageColor

from mmpsvit.visualization.sampling import _END


def all_panels_have_points(path: Path, rows: int, columns: int) -> bool:
    """Whether each panel shows final points, by their colour."""
    picture = np.asarray(Image.open(path).convert('RGB')).astype(int)
    y, x = (np.abs(picture - ImageColor.getrgb(_END)).sum(-1) < 30).nonzero()
    height, width = picture.shape[:2]
    panels = set(zip(rows * y // height, columns * x // width, strict=True))
    return len(panels) == rows * columns
