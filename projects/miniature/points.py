# Copyright (c) mmpsvit contributors.
"""Where the points of a network are, and a picture of them."""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from mmpsvit.visualization import draw_sampling, movement_shares


def inside_shares(trajectories: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """The share of the sampling points that lie inside a box, in every iteration.

    Args:
        trajectories (np.ndarray): Points of B images in T iterations, (B, T, N, 2),
            (x, y) in pixels, counted from the image's left and top edges.
        boxes (np.ndarray): A box of each image, (B, 4), (x1, y1, x2, y2) in pixels;
            a point on its left or upper edge is inside, on the others outside.

    Returns:
        np.ndarray: Shares in [0, 1], mean over images and points, (T,).
    """
    low, high = (corner[:, None, None] for corner in (boxes[:, :2], boxes[:, 2:]))
    inside = (trajectories >= low) & (trajectories < high)
    return inside.all(axis=-1).mean(axis=(0, 2))


def draw_points(
    images: np.ndarray,
    trajectories: Sequence[np.ndarray],
    boxes: np.ndarray,
    titles: Sequence[str],
) -> Figure:
    """Draw where a network looks: a row for each iteration.

    Args:
        images (np.ndarray): RGB images (B, H, W, 3), uint8.
        trajectories (Sequence[np.ndarray]): Points of each image, (T, N, 2), in pixels.
        boxes (np.ndarray): A box of each image, (B, 4), (x1, y1, x2, y2) in pixels.
        titles (Sequence[str]): What stands above each.
    """
    iterations = len(trajectories[0])
    figure = Figure(figsize=(1.9 * len(images) + 0.3, 1.9 * iterations + 0.3))
    grid = figure.subplots(iterations, len(images), squeeze=False)
    figure.subplots_adjust(0.03, 0.01, 0.995, 0.96, wspace=0.03, hspace=0.03)
    for column, (x1, y1, x2, y2) in enumerate(boxes):
        grid[0, column].set_title(titles[column], size=8)
        for row, axes in enumerate(grid[:, column]):
            draw_sampling(axes, images[column], trajectories[column][: row + 1])
            style = dict(fill=False, ec='white', lw=0.9)
            axes.add_patch(Rectangle((x1, y1), x2 - x1, y2 - y1, **style))
    for row, axes in enumerate(grid[:, 0], 1):
        axes.set_ylabel(f'iteration {row}', size=9)
    return figure


def where_points_are(trajectories: np.ndarray, boxes: np.ndarray) -> dict:
    """Where points are, and how they got there.

    Args:
        trajectories (np.ndarray): (images, iterations, N, 2), in pixels.
        boxes (np.ndarray): (images, 4), (x1, y1, x2, y2) in pixels.

    Returns:
        dict: For each iteration: ``inside``, the share of points in the digit's box;
        ``shifted``, that of the start grid shifted by the mean movement over images and
        points; ``static``, that of the start grid with each point's mean movement over
        the images; ``drift`` and ``follows``, the shares of the movement up to this
        iteration, see ``movement_shares`` (None if nothing moved).
    """
    start = trajectories[:, :1]
    moved = trajectories - start
    shift = moved.mean(axis=(0, 2), keepdims=True)
    patterns = {
        'inside': trajectories,
        'shifted': start + shift,
        'static': start + moved.mean(axis=0, keepdims=True),
    }
    result = {}
    for name, points in patterns.items():
        points = np.broadcast_to(points, trajectories.shape)
        shares = inside_shares(points, boxes)
        result[name] = [round(share, 5) for share in shares.tolist()]
    shares = [
        movement_shares(trajectories[:, : last + 1]) or (None, None)
        for last in range(trajectories.shape[1])
    ]
    for name, values in zip(
        ('drift', 'follows'), zip(*shares, strict=True), strict=True
    ):
        result[name] = [value and round(value, 4) for value in values]
    return result
