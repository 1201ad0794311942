# Copyright (c) mmpsvit contributors.
"""Draws where a network looks: the sampling points of every iteration."""

import contextlib
import math
from collections.abc import Iterator, Sequence

import numpy as np
from matplotlib import patheffects
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import nn

from mmpsvit.models import ProgressiveSampling

# A bright core with a dark rim shows on light and on dark images.
_RIM = '#101418'
_START, _PATH, _END = '#ffffff', '#ffe14d', '#ff2d78'
# Longer side of a picture without margins, in pixels.
_SIDE = 720


def find_sampler(model: nn.Module) -> ProgressiveSampling:
    """Find the sampler of a model.

    Raises:
        ValueError: If the model has no or several samplers.
    """
    samplers = [m for m in model.modules() if isinstance(m, ProgressiveSampling)]
    if len(samplers) != 1:
        raise ValueError(
            'the model must have one ProgressiveSampling to show its points, it has '
            f'{len(samplers)}'
        )
    return samplers[0]


@contextlib.contextmanager
def record_sampling(model: nn.Module) -> Iterator[list[np.ndarray]]:
    """Record where a model samples while the context is open.

    Args:
        model (nn.Module): Any model with a :class:`ProgressiveSampling` in it, as a
            part of the backbone or as a neck.

    Yields:
        list[np.ndarray]: One entry per image, in order of the forward passes: the
        points of every iteration in pixels of the network's input, (num_iters, N, 2),
        (x, y), counted from the image's left and top edges: to half a pixel behind a
        padded stem, such as PS-ViT's or a ResNet's; behind one that cuts patches half a
        stride too far to the left and top.

    Raises:
        ValueError: If the model has no or several samplers.
    """
    sampler = find_sampler(model)
    trajectories: list[np.ndarray] = []

    def record(_module, _args, sampled) -> None:
        points = sampled.trajectory * sampler.feat_stride
        trajectories.extend(points.cpu().numpy())

    handle = sampler.register_forward_hook(record)
    try:
        yield trajectories
    finally:
        handle.remove()


def movement_shares(
    trajectories: Sequence[np.ndarray],
) -> tuple[float, float | None] | None:
    """How much of the points' movement is a drift, and how much follows the images.

    Of the mean square of the displacements from the first to the last iteration: the
    share of their mean over images and points, and that of what is left when each
    point's mean over the images is taken away. Of few images the second is too small:
    of n by the factor (n - 1) / n.

    Args:
        trajectories (Sequence[np.ndarray]): Of each image, (num_iters, N, 2), as
            :func:`record_sampling` has them.

    Returns:
        tuple[float, float | None] | None: The shares; a single image has only the
        first. None if nothing moves, or images have different numbers of points.
    """
    if len({points.shape for points in trajectories}) != 1:
        return None
    # (images, N, 2)
    moved = np.stack([points[-1] - points[0] for points in trajectories]).astype(float)
    total = np.square(moved).mean()
    if total == 0:
        return None
    drift = np.square(moved.mean(axis=(0, 1))).mean()
    follows = np.square(moved - moved.mean(axis=0)).mean()
    return float(drift / total), float(follows / total) if len(moved) > 1 else None


def without_drift(trajectories: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Take away what the movement of all points of all images has in common.

    Args:
        trajectories (Sequence[np.ndarray]): Of each image, (num_iters, N, 2).

    Returns:
        list[np.ndarray]: The same, without the mean displacement of each iteration.
    """
    moved = [points - points[:1] for points in trajectories]
    # (num_iters, 1, 2)
    drift = np.concatenate(moved, axis=1).mean(axis=1, keepdims=True)
    return [points - drift for points in trajectories]


def draw_sampling(
    axes: Axes, image: np.ndarray, trajectory: np.ndarray, paths: bool = True
) -> None:
    """Draw the points of one image: faint start grid, thin paths, clear end points.

    Points outside the image, where the network sees zeros, are cut off.

    Args:
        axes (Axes): Where to draw.
        image (np.ndarray): RGB image of shape (H, W, 3), uint8.
        trajectory (np.ndarray): Points of shape (num_iters, N, 2), (x, y) in pixels;
            with no iterations, only the image is drawn.
        paths (bool): Draw start grid and paths, not only the end points. Defaults to
            True.
    """
    height, width = image.shape[:2]
    # Edge coordinates: the image covers [0, W] x [0, H].
    axes.imshow(image, extent=(0, width, height, 0), interpolation='nearest')
    axes.set(xlim=(0, width), ylim=(height, 0), xticks=[], yticks=[])
    axes.set_frame_on(False)

    if len(trajectory) == 0:
        return
    count = trajectory.shape[1]
    # Marker size in points, so that the dots of a grid never touch.
    size = min(6.0, 0.3 * 72 * _width_in_inches(axes) / math.sqrt(count))
    if paths:
        # One line per point: (num_iters, N) columns
        axes.plot(
            trajectory[..., 0],
            trajectory[..., 1],
            color=_PATH,
            linewidth=0.18 * size,
            alpha=0.9,
            path_effects=[
                patheffects.withStroke(linewidth=0.18 * size + 0.8, foreground=_RIM)
            ],
        )
        axes.plot(
            *trajectory[0].T,
            'o',
            color=_START,
            markersize=0.6 * size,
            alpha=0.7,
            markeredgecolor=_RIM,
            markeredgewidth=0.1 * size,
        )
    axes.plot(
        *trajectory[-1].T,
        'o',
        color=_END,
        markersize=size,
        markeredgecolor='white',
        markeredgewidth=0.14 * size,
        path_effects=[
            patheffects.withStroke(linewidth=0.14 * size + 1.2, foreground=_RIM)
        ],
    )


def _width_in_inches(axes: Axes) -> float:
    return axes.get_position().width * axes.get_figure().get_figwidth()


def sampling_figure(
    panels: Sequence[tuple[np.ndarray, np.ndarray, str]],
    columns: int = 4,
    paths: bool = True,
) -> Figure:
    """Draw several images into one figure.

    Args:
        panels (Sequence[tuple[np.ndarray, np.ndarray, str]]): Of each image the RGB
            pixels (H, W, 3), uint8; its points, see :func:`draw_sampling`; and a line
            above it, a long one in smaller print.
        columns (int): Images per row at most. Defaults to 4.
        paths (bool): As in :func:`draw_sampling`; without paths, there is no legend.
            Defaults to True.

    Returns:
        Figure: The figure, with an opaque background.
    """
    columns = min(columns, len(panels))
    rows = math.ceil(len(panels) / columns)
    # In inches: a panel with its title, and a line for the legend.
    side, title, gap = 3.2, 0.34, 0.06
    legend = 0.4 if paths else gap
    width = columns * (side + gap) + gap
    height = rows * (side + title) + legend
    figure = Figure(figsize=(width, height), dpi=110, facecolor='white')
    grid = figure.subplots(rows, columns, squeeze=False).flatten()
    figure.subplots_adjust(
        left=gap / width,
        right=1 - gap / width,
        bottom=legend / height,
        top=1 - title / height,
        wspace=gap / side,
        hspace=title / side,
    )
    for axes, (image, trajectory, text) in zip(grid, panels, strict=False):
        draw_sampling(axes, image, trajectory, paths)
        # About 36 characters of 11 points fill the width of an image.
        size = min(11, 11 * 36 / max(1, len(text)))
        # A name such as '$5' is no formula.
        axes.set_title(text, fontsize=size, color=_RIM, parse_math=False)
    for axes in grid[len(panels) :]:
        axes.set_axis_off()
    if paths:
        figure.legend(
            handles=_legend_handles(len(panels[0][1])),
            loc='lower center',
            ncols=3,
            fontsize=10,
            frameon=False,
            labelcolor=_RIM,
        )
    return figure


def sampling_picture(
    image: np.ndarray, trajectory: np.ndarray, paths: bool = True
) -> np.ndarray:
    """Draw the points of one image into a picture without margins.

    Args:
        image (np.ndarray): RGB image of shape (H, W, 3), uint8.
        trajectory (np.ndarray): Points, see :func:`draw_sampling`.
        paths (bool): As in :func:`draw_sampling`. Defaults to True.

    Returns:
        np.ndarray: RGB picture of the image's proportions, uint8; its longer side has
        720 pixels.
    """
    height, width = image.shape[:2]
    scale, dpi = _SIDE / max(height, width), _SIDE / 3.6
    # Matplotlib rounds down to whole pixels.
    size = [(max(1, round(scale * each)) + 1e-3) / dpi for each in (width, height)]
    figure = Figure(figsize=size, dpi=dpi)
    draw_sampling(figure.add_axes((0, 0, 1, 1)), image, trajectory, paths)
    return figure_to_rgb(figure)


def figure_to_rgb(figure: Figure) -> np.ndarray:
    """Render a figure, whatever matplotlib's backend, to (H, W, 3), RGB, uint8."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def _legend_handles(num_iters: int) -> list:
    from matplotlib.lines import Line2D

    marker = dict(linestyle='none', marker='o')
    return [
        Line2D(
            [], [], **marker, color='white', mec=_RIM, markersize=4, label='start grid'
        ),
        Line2D([], [], color='#c9a400', linewidth=1.5, label='path'),
        Line2D(
            [], [], **marker, color=_END, markersize=7, label=f'iteration {num_iters}'
        ),
    ]
