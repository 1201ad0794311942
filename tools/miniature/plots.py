# Copyright (c) mmpsvit contributors.
"""The pictures of the page."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from mmengine.config import Config
from mmengine.runner import Runner

from mmpsvit.cli import set_dataloader_defaults
from mmpsvit.guard.files import AtomicBackend
from mmpsvit.visualization import draw_sampling, predict_sampling, spread_indices

from .measure import build_model, read_boxes
from .plan import (
    BY_ITERS,
    BY_POINTS,
    CANVASES,
    LONG,
    MAIN,
    NETWORKS,
    Point,
    num_clutter,
)

COLOURS = {
    'psvit': '#d81b60',
    'vit': '#5f6b7a',
    'vit_same_stem': '#1e88e5',
    'iters1': '#f0a202',
    'shared': '#2e9e6b',
}
CHANCE = 10  # percent

Results = Mapping[Point, Sequence[dict]]


def accuracies(results: Sequence[dict], when: str = 'end') -> np.ndarray:
    """The accuracy of each seed, in percent."""
    return np.array([result['accuracy'][when] for result in results])


def spread(values: np.ndarray) -> float:
    """The sample standard deviation over seeds, NaN for one seed."""
    return float(np.std(values, ddof=1)) if len(values) > 1 else float('nan')


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure as PNG; the same figure gives the same file."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format='png', dpi=100, metadata={'Software': None})
    AtomicBackend().put(buffer.getvalue(), path)


def _plot_points(
    axes: Axes, xs: Sequence[int], points: Sequence[Point], results, **style
):
    """A line with error bars through those points that have results."""
    found = [(x, results[p]) for x, p in zip(xs, points, strict=True) if results[p]]
    if not found:
        return
    values = [accuracies(each) for _, each in found]
    axes.errorbar(
        [x for x, _ in found],
        [each.mean() for each in values],
        [0 if len(each) == 1 else spread(each) for each in values],
        capsize=3,
        marker='o',
        markersize=4,
        **style,
    )


def _decorate(axes: Axes, xlabel: str, ylabel: str = 'top-1, %') -> None:
    axes.axhline(CHANCE, color='#999999', linewidth=0.8, linestyle=':')
    axes.set(xlabel=xlabel, ylabel=ylabel)
    axes.grid(color='#e6e6e6', linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[['top', 'right']].set_visible(False)


def accuracy_figure(results: Results, steps: int) -> Figure:
    """Accuracy against N, against n, and against the canvas."""
    figure = Figure(figsize=(12, 4.2), layout='constrained')
    iters, points, canvases = figure.subplots(1, 3)
    style = dict(color=COLOURS['psvit'])
    _plot_points(
        iters, list(BY_ITERS), [*map(Point, BY_ITERS.values())], results, **style
    )
    _decorate(iters, 'iterations N (total depth fixed)')
    iters.set_xticks(list(BY_ITERS))
    _plot_points(
        points, list(BY_POINTS), [*map(Point, BY_POINTS.values())], results, **style
    )
    _decorate(points, 'points per side n')
    points.set_xticks(list(BY_POINTS))
    for name in MAIN:
        _plot_points(
            canvases,
            CANVASES,
            [Point(name, canvas) for canvas in CANVASES],
            results,
            color=COLOURS[name],
            label=NETWORKS[name],
        )
    _decorate(canvases, 'canvas, px (fragments)')
    canvases.set_xticks(CANVASES, [f'{c}\n({num_clutter(c)})' for c in CANVASES])
    canvases.set_ylim(0, 100)
    handles = canvases.get_legend_handles_labels()
    if handles[0]:
        style = dict(ncols=4, fontsize=8, frameon=False)
        figure.legend(*handles, loc='outside lower center', **style)
    figure.suptitle(
        f'After {steps} steps; bars: standard deviation over seeds', size=10
    )
    return figure


def curve_figure(results: Results, steps: int) -> Figure:
    """Accuracy against training steps: the budget, and the long runs."""
    figure = Figure(figsize=(12, 4.8), layout='constrained')
    short, long = figure.subplots(1, 2, sharey=True)
    for name, colour in COLOURS.items():
        curves = [np.array(result['curve']) for result in results[Point(name)]]
        if not curves:
            continue
        at = curves[0][:, 0]
        values = np.stack([curve[:, 1] for curve in curves])
        mean, std = values.mean(axis=0), values.std(axis=0, ddof=len(values) > 1)
        for axes in (short, long):
            axes.plot(at, mean, color=colour, label=NETWORKS[name])
            axes.fill_between(at, mean - std, mean + std, color=colour, alpha=0.2, lw=0)
        for result in results.get(Point(name, length=LONG), ()):
            label = f'{NETWORKS[name]}, {LONG} times the steps'
            curve = np.array(result['curve']).T
            long.plot(*curve, color=colour, linestyle='--', label=label)
    for axes in (short, long):
        _decorate(axes, 'training steps')
    handles = long.get_legend_handles_labels()
    if handles[0]:
        # Below: there is no room between the curves.
        style = dict(ncols=3, fontsize=8, frameon=False)
        figure.legend(*handles, loc='outside lower center', **style)
    short.set(
        ylim=(0, 100), title=f'{steps} steps; band: standard deviation over seeds'
    )
    long.set(title=f'The same, and with {LONG * steps} steps')
    return figure


def sampling_rows(cfg: Config, checkpoint: Path, count: int = 6) -> Figure:
    """Where a network looks, iteration by iteration.

    Args:
        cfg (Config): Config of the network and its data.
        checkpoint (Path): Its weights.
        count (int): How many validation images, evenly spread. Defaults to 6.

    Returns:
        Figure: A row of images for each iteration, with the digit's box.
    """
    model = build_model(cfg, str(checkpoint))
    set_dataloader_defaults(cfg)
    dataset = Runner.build_dataloader(cfg.test_dataloader).dataset
    items = [dataset[index] for index in spread_indices(len(dataset), count)]
    boxes = read_boxes(Path(dataset.img_prefix))
    boxes = [boxes[Path(item['data_samples'].img_path).resolve()] for item in items]
    sampled = predict_sampling(model, items, dataset.CLASSES)

    iterations = len(sampled.trajectories[0])
    figure = Figure(figsize=(1.9 * len(items) + 0.3, 1.9 * iterations + 0.3))
    grid = figure.subplots(iterations, len(items), squeeze=False)
    figure.subplots_adjust(0.03, 0.01, 0.995, 0.96, wspace=0.03, hspace=0.03)
    for row in range(iterations):
        for axes, image, points, box in zip(
            grid[row], sampled.images, sampled.trajectories, boxes, strict=True
        ):
            draw_sampling(axes, image, points[: row + 1])
            x1, y1, x2, y2 = box
            axes.add_patch(
                Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, ec='white', lw=0.9)
            )
        grid[row][0].set_ylabel(f'iteration {row + 1}', size=9)
    for axes, title in zip(grid[0], sampled.titles, strict=True):
        axes.set_title(title, size=8)
    return figure
