# Copyright (c) mmpsvit contributors.
"""Measure whether explanations lie on the digit: at the true points, and on the grid.

    python projects/miniature/measure_explanations.py \
        configs/cluttered_digits/psvit.py SEED0.pth SEED1.pth SEED2.pth

Runs every checkpoint on the images of the config's test data set, cluttered digits
whose boxes are known, and prints a table in percent, mean and standard deviation over
the checkpoints. The heat of the tokens is laid at the points of each iteration: at
those of the first, the start grid, as tools for ViTs do, up to those of the last, the
true ones. The last column is the difference of these two in the same checkpoint. Rows:

- tokens: of the heat of all tokens, the share of those whose point is in the box,
- map: the share of the heat map in the box,
- hottest: how often the map's hottest pixel is in the box (the pointing game).

Of "all tokens alike", these show what their places do without any explanation.
"Uniform" is the box's share of the image.
"""

# isort: off
import mmpsvit  # noqa: F401  First: it says what to install if something is missing.
# isort: on

import argparse
import json
import sys
from collections import defaultdict
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.runner import CheckpointLoader, Runner
from report import format_mean
from torch import Tensor

from mmpsvit.cli import add_cfg_options, check_file, read_config, run_main
from mmpsvit.visualization import (
    EXPLANATION_METHODS,
    build_trained,
    explain,
    heat_map,
)

NAMES = {
    'gradcam': 'Grad-CAM',
    'attention': 'attention of the class token',
    'alike': 'all tokens alike',
}
SCORES = ('tokens', 'map', 'hottest')


def read_boxes(folder: Path) -> dict[Path, list[int]]:
    """The box of the digit in each image of a split of the cluttered digits."""
    images = json.loads((folder / 'boxes.json').read_bytes())['images']
    return {(folder / image['file']).resolve(): image['box'] for image in images}


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


def measure(cfg: Config, checkpoint: str, device: str) -> dict[str, Tensor]:
    """The scores of a checkpoint in percent.

    Returns:
        dict[str, Tensor]: Of each heat, (num_iters, 3), see :func:`scores_in_box`; of
        'uniform' heat the same, (1, 1).
    """
    weights = CheckpointLoader.load_checkpoint(checkpoint, 'cpu', 'silent')
    model, _ = build_trained(cfg, weights, checkpoint)
    model.to(device)
    loader = Runner.build_dataloader(cfg.test_dataloader)
    boxes_of = read_boxes(Path(loader.dataset.img_prefix))
    scores = defaultdict(list)
    for batch in loader:
        data = model.data_preprocessor(batch, False)
        images, size = data['inputs'], data['inputs'].shape[-2:]
        boxes = [boxes_of[Path(s.img_path).resolve()] for s in data['data_samples']]
        boxes = torch.tensor(boxes, device=images.device)
        heats = {}
        for method in EXPLANATION_METHODS:
            # The points are the same each time.
            heats[method], trajectory, grid_size = explain(model, images, method)
        heats['alike'] = torch.ones_like(heats['attention'])
        for name, heat in heats.items():
            found = [
                scores_in_box(
                    heat, points, heat_map(heat, points, size, grid_size), boxes
                )
                for points in trajectory.unbind(1)
            ]
            scores[name].append(torch.stack(found, dim=1))
        area = (boxes[:, 2:] - boxes[:, :2]).prod(dim=1) / size.numel()
        scores['uniform'].append(area[:, None, None])
    return {key: 100 * torch.cat(found).mean(0).cpu() for key, found in scores.items()}


def format_table(results: list[dict[str, Tensor]]) -> str:
    """A Markdown table of the scores of several checkpoints."""
    rows = {key: torch.stack([each[key] for each in results]) for key in results[0]}
    uniform = format_mean(rows.pop('uniform').flatten().numpy())
    last = next(iter(rows.values())).shape[1]
    header = [
        'heat',
        'in the box',
        'grid',
        *map(str, range(2, last + 1)),
        'last - grid',
    ]
    lines = [header, ['---', '---', *['---:'] * (last + 1)]]
    for name, values in rows.items():
        for score, of_score in zip(SCORES, values.unbind(2), strict=True):
            columns = [*of_score.unbind(1), of_score[:, -1] - of_score[:, 0]]
            cells = [format_mean(column.numpy()) for column in columns]
            lines.append([NAMES[name], score, *cells])
    lines.append(['uniform', 'map', uniform, *[''] * last])
    return '\n'.join(f'| {" | ".join(cells)} |' for cells in lines)


def main() -> None:
    """Measure all checkpoints and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('config', help='config file')
    parser.add_argument('checkpoints', nargs='+', help='checkpoint files')
    parser.add_argument('--device', default='cpu', help='device (default: cpu)')
    add_cfg_options(parser)
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
