# Copyright (c) mmpsvit contributors.
"""Measure a trained network on its validation images; run.py calls this.

python projects/miniature/measure.py CONFIG CHECKPOINT OUT.json
"""

# isort: off
import mmpsvit  # noqa: F401  First: it says what to install if something is missing.
# isort: on

import argparse
import contextlib
import datetime
import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from mmengine.logging import MMLogger
from mmengine.model import BaseModel
from mmengine.registry import MODELS, init_default_scope
from mmengine.runner import Runner
from plan import HERE
from torch.utils.data import DataLoader

from mmpsvit.cli import read_config, run_main
from mmpsvit.guard import load_checkpoint, write_atomically
from mmpsvit.models import ProgressiveSampling
from mmpsvit.visualization import (
    draw_sampling,
    predict_sampling,
    record_sampling,
    spread_indices,
)

ROOT = HERE.parents[1]
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


def read_boxes(folder: Path) -> dict[Path, list[int]]:
    """The box of the digit in each image of a split of the cluttered digits."""
    images = json.loads((folder / 'boxes.json').read_bytes())['images']
    return {(folder / image['file']).resolve(): image['box'] for image in images}


def measure(model: BaseModel, loader: DataLoader) -> dict:
    """Run a network on validation images.

    Args:
        model (BaseModel): A classifier.
        loader (DataLoader): Images of the cluttered digits.

    Returns:
        dict: ``accuracy`` in percent, ``parameters``, and ``inside``: the share of
        points in the digit's box in each iteration, from the start grid on; None for
        a network without points.
    """
    samples = []
    moves = any(isinstance(module, ProgressiveSampling) for module in model.modules())
    recorded = record_sampling(model) if moves else contextlib.nullcontext()
    with torch.no_grad(), recorded as trajectories:
        for batch in loader:
            samples += model.test_step(batch)
    inside = None
    if moves:
        boxes = read_boxes(Path(loader.dataset.img_prefix))
        boxes = [boxes[Path(each.img_path).resolve()] for each in samples]
        shares = inside_shares(np.stack(trajectories), np.array(boxes))
        inside = [round(share, 5) for share in shares.tolist()]
    correct = [bool(each.pred_label == each.gt_label) for each in samples]
    return {
        'accuracy': round(100 * sum(correct) / len(correct), 3),
        'parameters': sum(p.numel() for p in model.parameters()),
        'inside': inside,
    }


def draw_points(model: BaseModel, loader: DataLoader, path: Path) -> None:
    """Draw where a network looks on six validation images: a row for each iteration."""
    dataset = loader.dataset
    items = [dataset[index] for index in spread_indices(len(dataset), 6)]
    boxes = read_boxes(Path(dataset.img_prefix))
    sampled = predict_sampling(model, items, dataset.CLASSES)
    iterations = len(sampled.trajectories[0])
    figure = Figure(figsize=(1.9 * len(items) + 0.3, 1.9 * iterations + 0.3))
    grid = figure.subplots(iterations, len(items), squeeze=False)
    figure.subplots_adjust(0.03, 0.01, 0.995, 0.96, wspace=0.03, hspace=0.03)
    for column, item in enumerate(items):
        x1, y1, x2, y2 = boxes[Path(item['data_samples'].img_path).resolve()]
        grid[0, column].set_title(sampled.titles[column], size=8)
        for row, axes in enumerate(grid[:, column]):
            points = sampled.trajectories[column][: row + 1]
            draw_sampling(axes, sampled.images[column], points)
            style = dict(fill=False, ec='white', lw=0.9)
            axes.add_patch(Rectangle((x1, y1), x2 - x1, y2 - y1, **style))
    for row, axes in enumerate(grid[:, 0], 1):
        axes.set_ylabel(f'iteration {row}', size=9)
    with write_atomically(path) as temporary:
        figure.savefig(temporary, dpi=100, metadata={'Software': None})


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


def describe_setting() -> dict:
    """What the figures were computed with, and when."""
    path, cpu = Path('/proc/cpuinfo'), platform.processor()
    for line in path.read_text().split('\n') if path.exists() else ():
        if line.startswith('model name'):
            cpu = line.split(':')[1].strip()
    versions = {name: sys.modules[name].__version__ for name in MODULES}
    return {
        'code': [git_state()],
        'versions': {'python': platform.python_version(), **versions},
        'machine': {'cpu': cpu, 'cores': os.cpu_count(), 'system': platform.system()},
        'date': datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
    }


def main() -> None:
    """Measure, and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('config', help='config file')
    parser.add_argument('checkpoint', help='checkpoint file')
    parser.add_argument('out', type=Path, help='JSON file to write')
    parser.add_argument('--picture', type=Path, help='PNG file to draw its points to')
    args = parser.parse_args()
    cfg = read_config(parser, args.config)
    MMLogger.get_instance('measure', log_level='WARNING')
    init_default_scope(cfg.default_scope)
    model = MODELS.build({'data_preprocessor': cfg.data_preprocessor, **cfg.model})
    model.load_state_dict(load_checkpoint(args.checkpoint, 'cpu')['state_dict'])
    loader = Runner.build_dataloader(cfg.test_dataloader)
    measured = {**measure(model.eval(), loader), **describe_setting()}
    if args.picture is not None:
        draw_points(model, loader, args.picture)
    with write_atomically(args.out) as temporary:
        temporary.write_text(json.dumps(measured))


if __name__ == '__main__':
    run_main(main)
