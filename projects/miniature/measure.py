# Copyright (c) mmpsvit contributors.
"""Where points are and what a result was computed with."""

import datetime
import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from plan import ROOT

from mmpsvit.visualization import draw_sampling

MODULES = ('torch', 'torchvision', 'numpy', 'mmengine', 'mmcv', 'mmpretrain', 'mmpsvit')


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


def git_state() -> dict:
    """The commit of this code, and whether the code differs from it."""
    git = ['git', '-C', str(ROOT)]
    code = ['mmpsvit', 'configs', 'tools', 'projects/miniature/*.py']
    commands = [[*git, 'rev-parse', 'HEAD'], [*git, 'status', '--porcelain', *code]]
    try:
        commit, changes = (subprocess.check_output(c, text=True) for c in commands)
    except (OSError, subprocess.CalledProcessError):  # not a clone
        return {'commit': None, 'dirty': None}
    return {'commit': commit.strip(), 'dirty': bool(changes)}


def describe_setting(device: str) -> dict:
    """What the figures were computed with on a device, and when."""
    path, cpu = Path('/proc/cpuinfo'), platform.processor()
    for line in path.read_text().split('\n') if path.exists() else ():
        if line.startswith('model name'):
            cpu = line.split(':')[1].strip()
    versions = {name: sys.modules[name].__version__ for name in MODULES}
    machine = {'cpu': cpu, 'cores': os.cpu_count(), 'system': platform.system()}
    if device == 'cuda':
        machine['gpu'] = torch.cuda.get_device_name()
    return {
        'code': [git_state()],
        'versions': {'python': platform.python_version(), **versions},
        'machine': machine,
        'date': datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
    }
