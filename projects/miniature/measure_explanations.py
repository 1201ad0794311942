# Copyright (c) mmpsvit contributors.
"""Measure whether explanations lie on the digit: at the true points, and on the grid.

    python projects/miniature/measure_explanations.py \
        configs/cluttered_digits/psvit.py SEED0.pth SEED1.pth SEED2.pth

Runs every checkpoint on the images of the config's test data set, cluttered digits
whose boxes are known, and prints a table in percent, mean and standard deviation over
the checkpoints. Of the heat of all tokens, "tokens" is the share of those whose point
lies in the digit's box; "map" is the share of the heat map in there, and "hottest" how
often the hottest pixel of the map is (the pointing game). A difference is that of the
same checkpoint at the points and on the grid. "All tokens alike" shows what their
places do without any explanation; "uniform" is the box's share of the image.
"""

# isort: off
import mmpsvit  # noqa: F401  First: it says what to install if something is missing.
# isort: on

import argparse
import sys
from collections import defaultdict
from itertools import product
from pathlib import Path

import torch
from measure import read_boxes
from mmengine.config import Config, DictAction
from mmengine.logging import MMLogger
from mmengine.runner import Runner
from report import format_mean
from torch import Tensor

from mmpsvit.cli import check_file, read_config, run_main
from mmpsvit.guard import load_checkpoint
from mmpsvit.visualization import (
    EXPLANATION_METHODS,
    Explanation,
    build_trained,
    explain,
    heat_map,
)

NAMES = {
    'gradcam': 'Grad-CAM',
    'attention': 'attention of the class token',
    'alike': 'all tokens alike',
    'uniform': 'uniform',
}
# The iteration whose points the heat is laid at.
PLACES = {'grid': 0, 'points': -1}


def scores_in_box(heat: Tensor, points: Tensor, maps: Tensor, boxes: Tensor) -> Tensor:
    """How much of the heat lies in a box.

    Args:
        heat (Tensor): Heat of the tokens of B images, (B, N), not negative.
        points (Tensor): Their points, (B, N, 2), (x, y) in pixels from the edges.
        maps (Tensor): Heat maps (B, H, W), not negative.
        boxes (Tensor): A box of each image, (B, 4), (x1, y1, x2, y2) in pixels; a point
            on its left or upper edge is inside, on the others outside.

    Returns:
        Tensor: Shares of the tokens' heat, of the map, and of its hottest pixels, which
        usually is one, (B, 3); 0 without any heat.
    """
    y, x = torch.meshgrid(
        *(torch.arange(length, device=maps.device) for length in maps.shape[1:]),
        indexing='ij',
    )
    pixels = torch.stack((x, y), dim=-1).flatten(0, 1)
    maps = maps.flatten(1)
    hottest = (maps == maps.amax(1, keepdim=True)) * maps
    shares = [
        (inside(places, boxes) * values).sum(1) / values.sum(1).clamp(min=1e-12)
        for places, values in ((points, heat), (pixels, maps), (pixels, hottest))
    ]
    return torch.stack(shares, dim=1)


def inside(points: Tensor, boxes: Tensor) -> Tensor:
    """Which points (N, 2) or (B, N, 2) lie in boxes (B, 4), as a mask (B, N)."""
    low, high = boxes[:, None].split(2, dim=-1)
    return ((points >= low) & (points < high)).all(dim=-1)


def measure(cfg: Config, checkpoint: str, device: str) -> dict[tuple[str, str], Tensor]:
    """The scores of a checkpoint in percent, by heat and place."""
    model, _ = build_trained(cfg, load_checkpoint(checkpoint, 'cpu'), checkpoint)
    model.to(device)
    loader = Runner.build_dataloader(cfg.test_dataloader)
    boxes_of = read_boxes(Path(loader.dataset.img_prefix))
    scores = defaultdict(list)
    for batch in loader:
        data = model.data_preprocessor(batch, False)
        images, size = data['inputs'], data['inputs'].shape[-2:]
        boxes = [boxes_of[Path(s.img_path).resolve()] for s in data['data_samples']]
        boxes = torch.tensor(boxes, device=images.device)
        explained = {name: explain(model, images, name) for name in EXPLANATION_METHODS}
        # The points are the same each time.
        heat, trajectory, grid_size = explained['attention']
        explained['alike'] = Explanation(torch.ones_like(heat), trajectory, grid_size)
        for (name, (heat, *_)), (place, iteration) in product(
            explained.items(), PLACES.items()
        ):
            points = trajectory[:, iteration]
            maps = heat_map(heat, points, size, grid_size)
            scores[name, place].append(scores_in_box(heat, points, maps, boxes))
        area = (boxes[:, 2:] - boxes[:, :2]).prod(dim=1, keepdim=True) / size.numel()
        scores['uniform', ''].append(area.expand(-1, 3))
    return {key: 100 * torch.cat(found).mean(0).cpu() for key, found in scores.items()}


def format_table(results: list[dict]) -> str:
    """A Markdown table of the scores of several checkpoints."""
    rows = {key: torch.stack([each[key] for each in results]) for key in results[0]}
    lines = ['| | laid at | tokens | map | hottest |', '| --- | --- |' + ' ---: |' * 3]
    for (name, place), values in rows.items():
        parts = {place: values}
        if place == 'points':
            parts['difference'] = values - rows[name, 'grid']
        for part, scores in parts.items():
            cells = (NAMES[name], part, *map(format_mean, scores.T.numpy()))
            lines.append(f'| {" | ".join(cells)} |')
    return '\n'.join(lines)


def main() -> None:
    """Measure all checkpoints and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('config', help='config file')
    parser.add_argument('checkpoints', nargs='+', help='checkpoint files')
    parser.add_argument('--device', default='cpu', help='device (default: cpu)')
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=DictAction,
        help='settings of the config to override, as key=value',
    )
    args = parser.parse_args()
    for path in args.checkpoints:
        check_file(parser, 'checkpoints', path)
    cfg = read_config(parser, args.config, args.cfg_options)
    MMLogger.get_instance('measure', log_level='WARNING')
    try:
        results = [measure(cfg, each, args.device) for each in args.checkpoints]
    except (ImportError, OSError, ValueError) as error:
        sys.exit(f'measure_explanations.py: error: {error}')
    print(format_table(results))


if __name__ == '__main__':
    run_main(main)
