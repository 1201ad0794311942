# Copyright (c) mmpsvit contributors.
"""Time networks side by side: inference, or with --train a whole training step.

    python tools/benchmarks/benchmark_speed.py --out speed
    python tools/benchmarks/benchmark_speed.py b14 plain-b14 deit-b --train
    python tools/benchmarks/benchmark_speed.py --channels-last --fuse

A model is a config file, a name of MMPretrain's model index, `torchvision:NAME`, one
of the short names below, or `plain:CONFIG`: the network of a PS-ViT config restated in
plain PyTorch, see plain_psvit.py. Every round runs each model once, in another order,
so that whatever else the machine does slows all of them; figures are medians over the
rounds. Images are random and on the device already. Inference ends with the logits; a
training step is forward, label-smoothed cross entropy, backward and AdamW.

--channels-last, --fuse and --compile go for all models alike, except the plain ones:
those stay as they are written, in NCHW, unfused and uncompiled.
"""

# isort: off
import mmpsvit  # noqa: F401  First: it says what to install if something is missing.
# isort: on

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import mmpretrain
import torch
import torchvision
from _measuring import (
    CONFIGS,
    Figures,
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
)
from mmcv.cnn import fuse_conv_bn
from mmengine.config import Config
from mmengine.logging import MMLogger
from plain_psvit import PlainPSViT
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from mmpsvit.cli import read_config, run_main

OURS = {path.stem: str(path) for path in sorted(CONFIGS.glob('*.py'))}
# Peers of the paper's Table 9. MMPretrain has no RegNetY.
PEERS = {
    'deit-s': 'deit-small_4xb256_in1k',
    'deit-b': 'deit-base_16xb64_in1k',
    'vit-b16-384': 'vit-base-p16_in21k-pre_3rdparty_in1k-384px',
    'resnet18': 'resnet18_8xb32_in1k',
    'resnet50': 'resnet50_8xb32_in1k',
    'resnet101': 'resnet101_8xb32_in1k',
    'regnety-8gf': 'torchvision:regnet_y_8gf',
}
ALIASES = {
    **OURS,
    **{f'plain-{name}': f'plain:{path}' for name, path in OURS.items()},
    **PEERS,
}
DEFAULT = ['ti14', 'b10', 'b14', 'b18', *PEERS]
# The paper's ratios of images/s in inference: one V100, batch 128, mean of 50 runs.
PAPER = {('b14', 'deit-b'): 2.0, ('b10', 'vit-b16-384'): 13.7}


@dataclass
class Candidate:
    """A model in the race.

    Attributes:
        name (str): Its name in the table.
        model (nn.Module): The model.
        forward (Callable): Images to logits.
        shape (tuple[int, int]): Size (H, W) of its images.
        plain (bool): Whether it stays as it is written.
        parameters (int): Number of its parameters.
        step (Callable): One step of what is timed.
        figures (Figures): What was measured.
    """

    name: str
    model: nn.Module
    forward: Callable[[Tensor], Tensor]
    shape: tuple[int, int] = (224, 224)
    plain: bool = False
    parameters: int = 0
    step: Callable[[], None] = field(default=lambda: None)
    figures: Figures = field(default_factory=Figures)


def input_size(cfg: Config) -> tuple[int, int]:
    """The size that the test pipeline crops or resizes to, 224 if it does neither."""
    loader = cfg.get('test_dataloader') or {}
    size = 224
    for transform in loader.get('dataset', {}).get('pipeline', []):
        size = transform.get('crop_size', transform.get('scale', size))
    height, width = (size, size) if isinstance(size, int) else size
    return height, width


def short_name(config: str) -> str | None:
    """What a config of this project is called in short, None for other files."""
    path = Path(config).resolve()
    return path.stem if path.parent == CONFIGS else None


def build_candidate(parser: argparse.ArgumentParser, name: str) -> Candidate:
    """Build a model from what the user calls it; its weights are random."""
    full = ALIASES.get(name, name)
    if full.startswith('plain:'):
        path = full.removeprefix('plain:')
        path = OURS.get(path, path)
        cfg = read_config(parser, path)
        try:
            model = PlainPSViT.from_config(cfg.model)
        except ValueError as error:
            parser.error(f'argument models: {name!r}: {error}')
        short = short_name(path)
        name = name if short is None else f'plain-{short}'
        return Candidate(name, model, model, input_size(cfg), plain=True)
    if full.startswith('torchvision:'):
        if full.split(':')[1] not in torchvision.models.list_models(torchvision.models):
            parser.error(f'argument models: torchvision has no classifier {full!r}')
        model = torchvision.models.get_model(full.split(':')[1])
        return Candidate(name, model, model)
    if full.endswith('.py'):
        cfg = read_config(parser, full)
        name = short_name(full) or full
        model = mmpretrain.get_model(cfg)
    elif full in mmpretrain.list_models():
        model = mmpretrain.get_model(full)
        cfg = model._config
    else:
        parser.error(
            f'argument models: {name!r} is no config file, no name of MMPretrain and '
            f'none of {", ".join([*OURS, *PEERS])}, plain-{", plain-".join(OURS)}'
        )
    return Candidate(
        name, model, lambda images: model(images, mode='tensor'), input_size(cfg)
    )


def fuse(candidate: Candidate) -> None:
    """Fold the BatchNorms into the convolutions before them, and check the logits."""
    norms = [m for m in candidate.model.modules() if isinstance(m, _BatchNorm)]
    if not norms:
        return
    candidate.model.eval()
    # With the statistics of a new network, a wrong fold would change next to nothing.
    for norm in norms:
        norm.running_mean.normal_(0, 0.1)
        norm.running_var.uniform_(0.8, 1.2)
    images = torch.rand(1, 3, *candidate.shape)
    with torch.inference_mode():
        before = candidate.forward(images)
    backbone = getattr(candidate.model, 'backbone', None)
    if hasattr(backbone, 'switch_to_deploy'):  # as MMPretrain calls it
        backbone.switch_to_deploy()
    fuse_conv_bn(candidate.model)
    with torch.inference_mode():
        error = (candidate.forward(images) - before).abs().max() / before.abs().max()
    if not error < 1e-3:
        sys.exit(
            f'benchmark_speed.py: error: folding the BatchNorms of {candidate.name} '
            f'changes its logits by {error:.1e} of the largest'
        )


def turn_off_dropout(model: nn.Module) -> None:
    """Train without dropout and stochastic depth, of which each recipe has its own."""
    for module in model.modules():
        if isinstance(module, (nn.Dropout, torchvision.ops.StochasticDepth)):
            module.p = 0.0
        elif hasattr(module, 'drop_prob'):
            module.drop_prob = 0.0


def prepare(candidate: Candidate, args: argparse.Namespace) -> None:
    """Give a candidate the step that is timed."""
    if args.shape:
        candidate.shape = (args.shape[0], args.shape[-1])
    # Before folding: a BatchNorm's two numbers per channel become one bias.
    candidate.parameters = sum(p.numel() for p in candidate.model.parameters())
    if args.fuse and not candidate.plain:
        fuse(candidate)
    if args.no_dropout:
        turn_off_dropout(candidate.model)
    layout = torch.contiguous_format
    if args.channels_last and not candidate.plain:
        layout = torch.channels_last
    model = candidate.model.to(args.device, memory_format=layout).train(args.train)
    images = torch.rand(args.batch_size, 3, *candidate.shape, device=args.device)
    images = images.to(memory_format=layout)
    forward = candidate.forward
    if args.compile and not candidate.plain:
        forward = torch.compile(forward)
    if args.train:
        step = training_step(forward, model.parameters(), images, args.amp)
    else:
        step = inference_step(forward, images, args.amp)
    candidate.step = step


def rows_of(candidates: list[Candidate], args: argparse.Namespace) -> list[dict]:
    """The figures of each candidate, also those relative to the baselines."""
    speeds = {c.name: args.batch_size / c.figures.median for c in candidates}
    return [
        {
            'model': c.name,
            'height': c.shape[0],
            'width': c.shape[1],
            'parameters': c.parameters,
            'images_per_second': speeds[c.name],
            'milliseconds': 1e3 * c.figures.median,
            'milliseconds_quartiles': [1e3 * q for q in c.figures.quartiles],
            'peak_bytes': c.figures.peak_bytes,
            'ratios': {name: speeds[c.name] / speeds[name] for name in args.baseline},
            'seconds': c.figures.seconds,
        }
        for c in candidates
    ]


def markdown_of(rows: list[dict], args: argparse.Namespace, about: dict) -> list[str]:
    """The table, what it was measured with, and the paper's ratios."""
    given = {
        'autocast': args.amp,
        'channels_last': args.channels_last,
        'BatchNorms folded': args.fuse,
        'no dropout': args.no_dropout,
        'torch.compile': args.compile,
    }
    options = ', '.join(option for option in given if given[option])
    title = (
        f'Speed of {"training steps" if args.train else "inference"}: batch '
        f'{args.batch_size}, {options or "float32, NCHW"}, medians of {args.runs} '
        'interleaved rounds.'
    )
    header = ['model', 'px', 'parameters', 'images/s', 'ms, quartiles']
    header += ['peak memory, MiB', *(f'to {name}' for name in args.baseline)]
    cells = []
    for row in rows:
        low, high = row['milliseconds_quartiles']
        size = row['height'], row['width']
        cells.append(
            [
                row['model'],
                size[0] if size[0] == size[1] else size,
                f'{row["parameters"]:,}',
                f'{row["images_per_second"]:.1f}',
                f'{row["milliseconds"]:.1f}, {low:.1f} to {high:.1f}',
                mebibytes(row['peak_bytes']),
                *(f'{row["ratios"][name]:.2f}' for name in args.baseline),
            ]
        )
    lines = [*heading(title, about), *markdown_table(header, cells), '']
    speeds = {row['model']: row['images_per_second'] for row in rows}
    for (model, peer), paper in PAPER.items():
        if not args.train and {model, peer} <= set(speeds):
            ratio = speeds[model] / speeds[peer]
            lines += [f'{model} to {peer}: {ratio:.2f} here, {paper} in the paper.', '']
    lines.append('The paper: one V100, batch 128. Peak memory is beyond the weights.')
    return lines


def parse_args() -> tuple[argparse.Namespace, argparse.ArgumentParser]:
    """Parse the command line; what depends on the device is filled in."""
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument(
        'models',
        nargs='*',
        default=DEFAULT,
        help=f"configs or names (default: the paper's Table 9; {', '.join(PEERS)}, "
        f'{", ".join(OURS)}, plain-NAME, plain:CONFIG)',
    )
    add_device_argument(parser)
    parser.add_argument('--train', action='store_true', help='time training steps')
    parser.add_argument(
        '--batch-size', type=positive, help='default: 128 on CUDA, else 8'
    )
    add_common_arguments(parser, '50 on CUDA, else 10')
    parser.add_argument('--shape', type=positive, nargs='+', help='H W, or one number')
    add_amp_argument(parser)
    parser.add_argument('--channels-last', action='store_true', help='of all models')
    parser.add_argument(
        '--no-dropout', action='store_true', help='nor stochastic depth, in any model'
    )
    parser.add_argument(
        '--fuse', action='store_true', help='fold BatchNorms into convolutions'
    )
    parser.add_argument('--compile', action='store_true', help='torch.compile')
    parser.add_argument(
        '--baseline', nargs='+', help='what ratios are to (default: deit-b)'
    )
    args = parser.parse_args()
    on_cuda = args.device.type == 'cuda'
    args.batch_size = args.batch_size or (128 if on_cuda else 8)
    args.runs = args.runs or (50 if on_cuda else 10)
    if args.shape and len(args.shape) > 2:
        parser.error(f'argument --shape: H W or one number, got {args.shape}')
    if args.fuse and args.train:
        parser.error('argument --fuse: only for inference, not with --train')
    if args.threads:
        torch.set_num_threads(args.threads)
    return args, parser


def main() -> None:
    """Measure, print the table, and write what ``--out`` asks for."""
    args, parser = parse_args()
    # Otherwise MMPretrain's remarks stand before the table.
    MMLogger.get_instance('benchmark_speed', log_level='WARNING')
    torch.manual_seed(0)
    built = (build_candidate(parser, name) for name in dict.fromkeys(args.models))
    # Two ways to name one model make one row.
    candidates = list({candidate.name: candidate for candidate in built}.values())
    names = [candidate.name for candidate in candidates]
    if args.baseline is None:
        args.baseline = ['deit-b' if 'deit-b' in names else names[0]]
    for name in args.baseline:
        if name not in names:
            parser.error(
                f'argument --baseline: {name!r} is none of the models, {names}'
            )
    for candidate in candidates:
        prepare(candidate, args)
    steps = {candidate.name: candidate.step for candidate in candidates}
    figures = measure(steps, args.runs, args.warmup, args.device, memory=steps)
    for candidate in candidates:
        candidate.figures = figures[candidate.name]
    rows, about = rows_of(candidates, args), describe(args.device)
    report(markdown_of(rows, args, about), about, args, results=rows)


if __name__ == '__main__':
    run_main(main)
