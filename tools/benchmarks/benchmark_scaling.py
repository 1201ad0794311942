# Copyright (c) mmpsvit contributors.
"""Time and peak memory against image size and number of points, for PS-ViT and a ViT.

    python tools/benchmarks/benchmark_scaling.py --out scaling
    python tools/benchmarks/benchmark_scaling.py --train --batch-size 2 --out train

Three sweeps: the image grows and the points with it (one per 16 pixels), the image
grows and the number of points stays, the points grow at a fixed size of the image. At
each setting the PS-ViT runs interleaved with a plain ViT of as many tokens and with its
own parts, each part alone on the inputs it has in the network. A side of the ViT's
patches is the image's side over the points per side, rounded down, and its image has
as many whole patches.

Growth is the exponent of a power law fitted to each sweep (least squares in log-log):
time ~ side ** exponent, where the side is the image's or the points' per side, so a
cost linear in the number of tokens has 2, a quadratic one 4.
"""

# isort: off
import mmpsvit  # noqa: F401  First: it says what to install if something is missing.
# isort: on

import argparse
import copy
import io
import math
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import mmpretrain
import numpy as np
import torch
from _measuring import (
    DEFAULT_CONFIG,
    add_amp_argument,
    add_common_arguments,
    add_device_argument,
    describe,
    heading,
    inference_step,
    markdown_table,
    measure,
    mebibytes,
    positive,
    report,
    training_step,
    write,
)
from _parts import part_steps
from matplotlib.figure import Figure
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmpretrain.models import VisionTransformer
from torch import nn

from mmpsvit import PSViT
from mmpsvit.cli import read_config, run_main
from mmpsvit.models.backbones.arch import resolve_arch

POINT_STRIDE = 16
SIZES = (224, 320, 448, 640, 896)
POINTS = (10, 14, 20, 28, 40, 56)
QUICK_SIZES = (224, 448)
QUICK_POINTS = (14, 28)
PSVIT = 'PS-ViT'
# Of the whole PS-ViT; its iterations are attention and FFN of some of its layers.
PARTS = ('stem', 'sampling', 'attention', 'FFN')
VITS = ('deit-small', 'deit-tiny', 'deit-base', 'same')


@dataclass
class Setting:
    """One place on a sweep.

    Attributes:
        sweep (str): The name of the sweep.
        side (int): What the growth is fitted to: pixels, or points per side.
        size (int): Side of the image in pixels.
        points (int): Points per side.
        strided (bool): Whether the PS-ViT has ``point_stride`` and no ``num_points``.
    """

    sweep: str
    side: int
    size: int
    points: int
    strided: bool = False


def settings_of(args: argparse.Namespace) -> list[Setting]:
    """All settings of the three sweeps."""
    growing, fixed, points = (
        f'image size, one point per {POINT_STRIDE} px',
        f'image size, {args.num_points} points per side',
        f'points per side, {args.size} px',
    )
    return [
        *(
            Setting(growing, size, size, math.ceil(size / POINT_STRIDE), True)
            for size in args.sizes
        ),
        *(Setting(fixed, size, size, args.num_points) for size in args.sizes),
        *(Setting(points, count, args.size, count) for count in args.points),
    ]


def build_psvit(cfg: Config, setting: Setting) -> nn.Module:
    """The PS-ViT of a config with the points of a setting."""
    cfg = copy.deepcopy(cfg)
    sampler = cfg.model.backbone.sampler
    sampler.pop('num_points', None)
    sampler.pop('point_stride', None)
    if setting.strided:
        sampler.point_stride = POINT_STRIDE
    else:
        sampler.num_points = setting.points
    return mmpretrain.get_model(cfg)


def build_vit(cfg: Config, vit: str, setting: Setting) -> tuple[nn.Module, int]:
    """A ViT with as many tokens, and the side of its image."""
    cfg = copy.deepcopy(cfg)
    theirs = cfg.model.backbone
    patch = setting.size // setting.points
    size = patch * setting.points
    same = vit == 'same'
    arch = resolve_arch(theirs.get('arch', 'base'), PSViT.arch_zoo) if same else vit
    cfg.model.backbone = dict(
        type='VisionTransformer',
        arch=arch,
        img_size=size,
        patch_size=patch,
        qkv_bias=not same,
        drop_rate=theirs.get('drop_rate', 0.0),
        drop_path_rate=theirs.get('drop_path_rate', 0.0),
    )
    if not same:
        cfg.model.head.in_channels = VisionTransformer.arch_zoo[vit]['embed_dims']
    return mmpretrain.get_model(cfg), size


def modules_of(model: nn.Module) -> dict[str, list[nn.Module]]:
    """The parts of a network that are timed; sampling is another one."""
    backbone = model.backbone
    layers = list(backbone.layers)
    modules = {}
    if isinstance(backbone, PSViT):
        modules['stem'] = [backbone.stem]
        modules['iterations'] = list(backbone.sampler.layers)
        layers += modules['iterations']
    modules['attention'] = [layer.attn for layer in layers]
    modules['FFN'] = [layer.ffn for layer in layers]
    return modules


def measure_setting(setting: Setting, cfg: Config, args: argparse.Namespace) -> dict:
    """The figures of both networks and their parts at one setting."""
    networks = {
        PSVIT: (build_psvit(cfg, setting), setting.size),
        args.vit: build_vit(cfg, args.vit, setting),
    }
    steps = {}
    for name, (model, size) in networks.items():
        model.to(args.device, memory_format=torch.channels_last).train(args.train)
        images = torch.rand(args.batch_size, 3, size, size, device=args.device)
        images = images.to(memory_format=torch.channels_last)
        forward = partial(model, mode='tensor')
        if args.train:
            step = training_step(forward, model.parameters(), images, args.amp)
        else:
            step = inference_step(forward, images, args.amp)
        steps[name, 'whole'] = step
        parts = part_steps(model, modules_of(model), images, args.train, args.amp)
        steps.update({(name, part): step for part, step in parts.items()})
    memory = [(name, 'whole') for name in networks]
    figures = measure(steps, args.runs, args.warmup, args.device, memory)
    return {
        'sweep': setting.sweep,
        'side': setting.side,
        'tokens': setting.points**2,
        'networks': {
            name: {
                'image_size': size,
                'milliseconds': {
                    part: 1e3 * figures[of, part].median
                    for of, part in steps
                    if of == name
                },
                'peak_bytes': figures[name, 'whole'].peak_bytes,
            }
            for name, (_, size) in networks.items()
        },
    }


def exponent(sides: list[int], values: list[float | None]) -> float | None:
    """The exponent of a power law fitted to values, None where there is none."""
    if len(set(sides)) < 2 or not all(value and value > 0 for value in values):
        return None
    return float(np.polyfit(np.log(sides), np.log(values), 1)[0])


def growth_of(rows: list[dict]) -> list[dict]:
    """The fitted exponents of every sweep, network and part."""
    growth = []
    for sweep in dict.fromkeys(row['sweep'] for row in rows):
        chosen = [row for row in rows if row['sweep'] == sweep]
        sides = [row['side'] for row in chosen]
        for name in chosen[0]['networks']:
            figures = [row['networks'][name] for row in chosen]
            times = {
                part: exponent(sides, [f['milliseconds'][part] for f in figures])
                for part in figures[0]['milliseconds']
            }
            wholes = [f['milliseconds']['whole'] for f in figures]
            growth.append(
                {
                    'sweep': sweep,
                    'network': name,
                    'time': times,
                    'end': exponent(sides[-2:], wholes[-2:]),
                    'peak': exponent(sides, [f['peak_bytes'] for f in figures]),
                }
            )
    return growth


def markdown_of(rows: list[dict], growth: list[dict], vit: str) -> list[str]:
    """One table for each sweep, and one of the growth."""
    lines = []
    for sweep in dict.fromkeys(row['sweep'] for row in rows):
        header = [sweep, 'tokens', f'{PSVIT}, ms', f'{vit}, ms', f'{PSVIT} to {vit}']
        header += [f'{PSVIT}, MiB', f'{vit}, MiB', *PARTS, 'rest', 'iterations']
        cells = []
        for row in rows:
            if row['sweep'] != sweep:
                continue
            ours, theirs = (row['networks'][name] for name in (PSVIT, vit))
            times = ours['milliseconds']
            shares = {part: time / times['whole'] for part, time in times.items()}
            largest = max(PARTS, key=shares.get)
            rest = 1 - sum(shares[part] for part in PARTS)
            cells.append(
                [
                    row['side'],
                    row['tokens'],
                    f'{times["whole"]:.1f}',
                    f'{theirs["milliseconds"]["whole"]:.1f}',
                    f'{theirs["milliseconds"]["whole"] / times["whole"]:.2f}',
                    mebibytes(ours['peak_bytes']),
                    mebibytes(theirs['peak_bytes']),
                    *(
                        f'**{shares[part]:.0%}**'
                        if part == largest
                        else f'{shares[part]:.0%}'
                        for part in PARTS
                    ),
                    f'{rest:.0%}',
                    f'{shares["iterations"]:.0%}',
                ]
            )
        lines += [*markdown_table(header, cells), '']
    lines += [
        f'"{PSVIT} to {vit}" is a ratio of images/s. Percentages are of the time of '
        f'{PSVIT}, the largest in bold: attention and FFN of all layers; what no part '
        'accounts for, such as norms and AdamW; and the layers of the sampling '
        'iterations, whose attention and FFN are counted in the columns before. Peak '
        'memory is beyond the weights.',
        '',
    ]
    names = dict.fromkeys(part for entry in growth for part in entry['time'])
    cells = [
        [
            f'{entry["sweep"]}: {entry["network"]}',
            *(number(entry['time'].get(part)) for part in names),
            number(entry['end']),
            number(entry['peak']),
        ]
        for entry in growth
    ]
    header = ['growth, exponent', *names, 'whole, last two', 'peak memory']
    return lines + markdown_table(header, cells)


def number(value: float | None) -> str:
    """A cell with an exponent."""
    return '' if value is None else f'{value:.2f}'


def plot(rows: list[dict], vit: str) -> bytes:
    """A PNG of time, peak memory and shares of the parts, a column for each sweep."""
    sweeps = list(dict.fromkeys(row['sweep'] for row in rows))
    figure = Figure(figsize=(5 * len(sweeps), 11), layout='tight')
    axes = figure.subplots(3, len(sweeps))
    for column, sweep in zip(axes.T, sweeps, strict=True):
        chosen = [row for row in rows if row['sweep'] == sweep]
        sides = [row['side'] for row in chosen]
        for name in (PSVIT, vit):
            figures = [row['networks'][name] for row in chosen]
            times = [f['milliseconds']['whole'] for f in figures]
            peaks = [(f['peak_bytes'] or math.nan) / 2**20 for f in figures]
            column[0].loglog(sides, times, marker='o', label=name)
            column[1].loglog(sides, peaks, marker='o', label=name)
        ours = [row['networks'][PSVIT]['milliseconds'] for row in chosen]
        for part in PARTS:
            shares = [100 * times[part] / times['whole'] for times in ours]
            column[2].semilogx(sides, shares, marker='o', label=part)
        labels = ('ms', 'peak memory, MiB', f'% of the time of {PSVIT}')
        for axis, label in zip(column, labels, strict=True):
            axis.set_ylabel(label)
            axis.set_xticks(sides, labels=map(str, sides))
            axis.set_xticks([], minor=True)
            axis.grid(alpha=0.3)
            axis.legend()
        column[0].set_title(sweep)
    png = io.BytesIO()
    figure.savefig(png, format='png', dpi=120)
    return png.getvalue()


def parse_args() -> tuple[argparse.Namespace, argparse.ArgumentParser]:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument(
        'config',
        nargs='?',
        default=DEFAULT_CONFIG,
        help='config of a PS-ViT (default: b14.py)',
    )
    parser.add_argument(
        '--vit',
        choices=VITS,
        default=VITS[0],
        help="the ViT; 'same' has the PS-ViT's layers and channels "
        '(default: %(default)s)',
    )
    add_device_argument(parser)
    parser.add_argument('--train', action='store_true', help='time training steps')
    add_amp_argument(parser)
    parser.add_argument('--batch-size', type=positive, default=1)
    parser.add_argument('--quick', action='store_true', help='two settings per sweep')
    parser.add_argument(
        '--sizes', type=positive, nargs='+', help='sides of the image in pixels'
    )
    parser.add_argument('--points', type=positive, nargs='+', help='points per side')
    parser.add_argument(
        '--size', type=positive, default=224, help='image side while the points grow'
    )
    parser.add_argument(
        '--num-points', type=positive, default=14, help='points while the image grows'
    )
    add_common_arguments(parser, '5')
    args = parser.parse_args()
    args.runs = args.runs or 5
    args.sizes = args.sizes or (QUICK_SIZES if args.quick else SIZES)
    args.points = args.points or (QUICK_POINTS if args.quick else POINTS)
    for option, points, size in (
        ('--points', max(args.points), args.size),
        ('--num-points', args.num_points, min(args.sizes)),
    ):
        if points > size:
            parser.error(
                f'argument {option}: {points} points do not fit on {size} pixels'
            )
    if args.threads:
        torch.set_num_threads(args.threads)
    return args, parser


def main() -> None:
    """Measure, print the tables, and write what ``--out`` asks for."""
    args, parser = parse_args()
    # Otherwise MMPretrain's remarks stand before the table.
    MMLogger.get_instance('benchmark_scaling', log_level='WARNING')
    cfg = read_config(parser, args.config)
    backbone = cfg.get('model', {}).get('backbone', {})
    types = backbone.get('type'), backbone.get('sampler', {}).get('type')
    if types != ('mmpsvit.PSViT', 'mmpsvit.ProgressiveSampling'):
        parser.error(f'argument config: {args.config} has no PSViT that moves points')
    torch.manual_seed(0)
    rows = [measure_setting(setting, cfg, args) for setting in settings_of(args)]
    growth, about = growth_of(rows), describe(args.device)
    title = (
        f'Scaling of {"training steps" if args.train else "inference"}: {args.config}, '
        f'batch {args.batch_size}, {"autocast" if args.amp else "float32"}, '
        f'channels_last, medians of {args.runs} interleaved rounds.'
    )
    lines = [*heading(title, about), *markdown_of(rows, growth, args.vit)]
    if args.out:
        write(Path(f'{args.out}.png'), plot(rows, args.vit))
    report(lines, about, args, results=rows, growth=growth)


if __name__ == '__main__':
    run_main(main)
