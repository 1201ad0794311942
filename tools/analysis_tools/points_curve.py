# Copyright (c) mmpsvit contributors.
"""Test one checkpoint at several numbers of points: metric, operations and speed.

    python tools/analysis_tools/points_curve.py configs/psvit/b_elastic.py \
        work_dirs/b_elastic/epoch_300.pth --num-points 10 12 14 16 18 --out curve

No weight depends on the number of points. Prints a table, and writes it and a picture
of the curve (OUT.md, OUT.png). Images/s are those of the network alone, on random
images in the dtype of the test; the numbers of points take turns, so that whatever else
the machine does slows all of them.
"""

# isort: off
import mmpsvit  # noqa: F401  First: it says what to install if something is missing.
# isort: on

import argparse
import copy
import statistics
import time

import torch
from get_flops import analyse
from mmengine.config import Config
from mmengine.dist import is_main_process
from mmengine.runner import Runner, autocast

from mmpsvit.cli import (
    add_common_arguments,
    build_runner,
    check_file,
    load_config,
    one_line_errors,
    run_main,
    set_dataloader_defaults,
    set_test_precision,
)
from mmpsvit.guard import type_name, unwrap, write_atomically
from mmpsvit.visualization import in_channels


def parse_args() -> tuple[argparse.Namespace, Config]:
    """Parse the command line and return it with the config that it asks for."""
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    add = parser.add_argument
    add('config', help='config file of a classifier')
    add('checkpoint', help='checkpoint file')
    add_common_arguments(parser)
    add('--num-points', nargs='+', type=int, required=True, help='points per side')
    add('--out', help='writes OUT.md and OUT.png')
    add('--batch-size', type=int, default=8, help='of the timed images')
    add('--runs', type=int, default=10, help='timed rounds')
    args = parser.parse_args()
    cfg = load_config(parser, args)
    check_file(parser, 'checkpoint', args.checkpoint)
    cfg.load_from, cfg.resume = args.checkpoint, False
    backbone = cfg.model.get('backbone', {})
    if type_name(backbone) != 'PSViT':
        parser.error(f'argument config: the backbone of {args.config} is no PSViT')
    # Absent or None means the default one.
    backbone.sampler = backbone.get('sampler') or {}
    if backbone.sampler.get('point_stride'):
        parser.error(f'argument config: {args.config} has no num_points')
    if min(args.num_points) < 1:
        parser.error(f'argument --num-points: at least 1, got {min(args.num_points)}')
    if args.amp:
        set_test_precision(cfg, args.amp_dtype)
    set_dataloader_defaults(cfg, not args.no_pin_memory)
    return args, cfg


def test(runner: Runner, num_points: list[int]) -> list[dict]:
    """The metrics of each number of points."""
    rows = []
    for count in num_points:
        unwrap(runner.model).backbone.sampler.num_points = count
        rows.append(dict(num_points=count, **runner.test()))
    return rows


def speeds(
    runner: Runner, num_points: list[int], size: tuple[int, int], args
) -> list[float]:
    """Images/s of the network at each number of points."""
    model = runner.model
    sampler = unwrap(model).backbone.sampler
    device = next(model.parameters()).device
    images = torch.rand(args.batch_size, in_channels(model), *size, device=device)
    seconds = {count: [] for count in num_points}
    with torch.no_grad(), autocast(enabled=args.amp):
        for turn in range(-2, args.runs):  # two are not timed
            for count in num_points:
                sampler.num_points = count
                start = time.perf_counter()
                model(images, mode='tensor')
                if device.type == 'cuda':
                    torch.cuda.synchronize(device)
                if turn >= 0:
                    seconds[count].append(time.perf_counter() - start)
    return [args.batch_size / statistics.median(taken) for taken in seconds.values()]


def draw(rows: list[dict], metric: str, path: str) -> None:
    """A picture of the metric against images/s."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout='constrained')
    axes = figure.add_subplot()
    x, y = ([row[key] for row in rows] for key in ('images/s', metric))
    axes.plot(x, y, 'o-', color='tab:blue')
    for row, *place in zip(rows, x, y, strict=True):
        axes.annotate(
            f'n = {row["num_points"]}', place, xytext=(5, 5), textcoords='offset points'
        )
    axes.set(xlabel='images/s', ylabel=metric)
    axes.grid(alpha=0.3)
    with write_atomically(path) as temporary:
        figure.savefig(temporary, dpi=150, format='png')


def main() -> None:
    """Test, time, print and write."""
    args, cfg = parse_args()
    num_points = sorted(set(args.num_points))
    with one_line_errors(cfg):
        runner = build_runner(cfg)
        rows = test(runner, num_points)
        images = next(iter(runner.test_dataloader))['inputs']
        size = tuple(images[0].shape[-2:])
        for row, speed in zip(
            rows, speeds(runner, num_points, size, args), strict=True
        ):
            single = copy.deepcopy(cfg)
            single.model.backbone.sampler.num_points = row['num_points']
            row['GMACs'] = analyse(single, size)[1] / 1e9
            row['images/s'] = speed
    if not is_main_process():
        return
    lines = [' | '.join(rows[0]), ' | '.join(['---:'] * len(rows[0]))]
    for row in rows:
        values = row.values()
        lines.append(
            ' | '.join(f'{v:.2f}' if isinstance(v, float) else str(v) for v in values)
        )
    table = ''.join(f'| {line} |\n' for line in lines)
    print(table, end='')
    if args.out:
        with write_atomically(f'{args.out}.md') as temporary:
            temporary.write_text(table)
        metric = next(key for key in rows[0] if key != 'num_points')
        draw(rows, metric, f'{args.out}.png')


if __name__ == '__main__':
    run_main(main)
