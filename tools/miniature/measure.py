# Copyright (c) mmpsvit contributors.
"""Measure a trained network of the miniature on its validation images.

    python tools/miniature/measure.py CONFIG CHECKPOINT --out measured.json

Accuracy, parameters, and for networks with sampling points the share of the points
inside the box of the digit, in every iteration. `tools/reproduce_mini.py` calls this.
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
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.model import BaseModel
from mmengine.registry import MODELS, init_default_scope
from mmengine.runner import Runner
from torch.utils.data import DataLoader

from mmpsvit.cli import read_config, run_main, set_dataloader_defaults
from mmpsvit.engine.machine import processor_name, stack_versions
from mmpsvit.guard import load_checkpoint
from mmpsvit.guard.files import AtomicBackend
from mmpsvit.models import ProgressiveSampling
from mmpsvit.visualization import record_sampling


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


def build_model(cfg: Config, checkpoint: str) -> BaseModel:
    """Build the network of a config with the weights of a checkpoint, in eval mode."""
    init_default_scope(cfg.default_scope)
    model = MODELS.build({'data_preprocessor': cfg.data_preprocessor, **cfg.model})
    model.load_state_dict(load_checkpoint(checkpoint, 'cpu')['state_dict'])
    return model.eval()


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
    with torch.no_grad(), _recorded(model) as trajectories:
        for batch in loader:
            samples += model.test_step(batch)
    correct = [bool(each.pred_label == each.gt_label) for each in samples]
    inside = None
    if trajectories:
        boxes = read_boxes(Path(loader.dataset.img_prefix))
        boxes = [boxes[Path(each.img_path).resolve()] for each in samples]
        shares = inside_shares(np.stack(trajectories), np.array(boxes))
        inside = [round(share, 5) for share in shares.tolist()]
    return {
        'accuracy': 100 * sum(correct) / len(correct),
        'parameters': sum(p.numel() for p in model.parameters()),
        'inside': inside,
    }


@contextlib.contextmanager
def _recorded(model: BaseModel) -> Iterator[list[np.ndarray]]:
    """Record the points of a network; of one without points, nothing."""
    if any(isinstance(module, ProgressiveSampling) for module in model.modules()):
        with record_sampling(model) as trajectories:
            yield trajectories
    else:
        yield []


def describe_machine() -> dict:
    """What the figures were computed with, and when."""
    return {
        'versions': stack_versions(),
        'machine': {
            'cpu': processor_name(),
            'cores': os.cpu_count(),
            'system': platform.system(),
        },
        'date': datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
    }


def main() -> None:
    """Measure, and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('config', help='config file')
    parser.add_argument('checkpoint', help='checkpoint file')
    parser.add_argument('--out', type=Path, required=True, help='JSON file to write')
    args = parser.parse_args()
    cfg = read_config(parser, args.config)
    MMLogger.get_instance('measure', log_level='WARNING')
    model = build_model(cfg, args.checkpoint)
    set_dataloader_defaults(cfg)
    measured = measure(model, Runner.build_dataloader(cfg.test_dataloader))
    text = json.dumps({**measured, **describe_machine()})
    AtomicBackend().put_text(text, args.out)


if __name__ == '__main__':
    run_main(main)
