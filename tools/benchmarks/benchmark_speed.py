# Copyright (c) mmpsvit contributors.
"""Time networks side by side: inference, latency, training steps, memory, scaling.

    python tools/benchmarks/benchmark_speed.py --channels-last --fuse --out speed
    python tools/benchmarks/benchmark_speed.py b14 plain-b14 deit-b --train
    python tools/benchmarks/benchmark_speed.py b14 deit-s --sizes 224 448 --parts

A model is a config file, a name of MMPretrain's model index, `torchvision:NAME` or one
of the short names of --help. `plain-NAME` is the PS-ViT of that name in plain PyTorch,
see plain_psvit.py, and `NAME+cp` the one with `with_cp=True`.

Every round runs each row's step once, in another order, so that whatever else the
machine does slows all of them; figures are medians over the rounds, and ratios are
those of images/s, to a baseline in the same dtype, mode and setting. Images are random
and on the device already. Inference ends with the logits; a training step is forward,
label-smoothed cross entropy, backward and AdamW. --compile and --cuda-graphs add rows
to those of eager execution; both together compile with mode='reduce-overhead'. The
plain networks stay as they are written: NCHW, BatchNorms unfolded, eager.

With --sizes and --points images grow, points per side grow, or both, side by side. A
plain ViT then gets as many tokens as the PS-ViTs: patches of the image's side over the
points per side, rounded down, in an image of as many whole patches.
"""

# isort: off
import mmpsvit  # noqa: F401  First: it says what to install if something is missing.
# isort: on

import argparse
import contextlib
import itertools
import sys
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import mmpretrain
import torch
import torchvision
from _measuring import (
    DTYPES,
    OURS,
    Figures,
    Step,
    add_common_arguments,
    autocast,
    clock,
    inference_step,
    input_size,
    markdown_table,
    measure,
    mebibytes,
    positive,
    report,
    training_step,
)
from mmcv.cnn import fuse_conv_bn
from mmengine.config import Config, DictAction
from mmengine.logging import MMLogger
from plain_psvit import PlainPSViT
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.profiler import profile

from mmpsvit.cli import read_config, run_main
from mmpsvit.guard import write_atomically

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
DEFAULT = ['ti14', 'b10', 'b14', 'b18', *PEERS]
EAGER, GRAPHS, COMPILED = 'eager', 'CUDA graphs', 'compiled'
COMPILED_GRAPHS = 'compiled, CUDA graphs'


@dataclass
class Candidate:
    """A model in the race, one row for each of its steps.

    Attributes:
        name (str): Its name in the table.
        model (nn.Module): The model.
        forward (Callable): Images to logits, or to maps with --backbone.
        shape (tuple[int, int]): Size (H, W) of its images.
        points (int | None): Points per side, where the command line says.
        setting (int): The number of the setting, of those with --sizes and --points.
        dtype (str): One of ``DTYPES``.
        parameters (int): Number of its parameters.
        parts (dict[str, float]): Share of its time of each part, with --parts.
        steps (dict[str, Step]): What is timed, by mode.
        figures (dict[str, Figures]): What was measured, by mode.
    """

    name: str
    model: nn.Module
    forward: Callable[[Tensor], Tensor]
    shape: tuple[int, int] = (224, 224)
    points: int | None = None
    setting: int = 0
    dtype: str = DTYPES[0]
    parameters: int = 0
    parts: dict[str, float] = field(default_factory=dict)
    steps: dict[str, Step] = field(default_factory=dict)
    figures: dict[str, Figures] = field(default_factory=dict)


def change_config(
    cfg: Config, args: argparse.Namespace, side: int, points: int | None, with_cp: bool
) -> int:
    """Set what the command line says in a config; return the side of the images."""
    backbone = cfg.model.get('backbone', {})
    if backbone.get('type') == 'mmpsvit.PSViT':
        cfg.merge_from_dict(args.cfg_options or {})
        if with_cp:
            cfg.model.backbone.with_cp = True
        if points:
            cfg.model.backbone.sampler.num_points = points
            cfg.model.backbone.sampler.pop('point_stride', None)
    elif backbone.get('type') == 'VisionTransformer' and points:
        backbone.patch_size = side // points
        backbone.img_size = side = side // points * points
    return side


def build_candidate(
    parser: argparse.ArgumentParser,
    args: argparse.Namespace,
    name: str,
    size: int | None = None,
    points: int | None = None,
) -> Candidate:
    """Build a model from what the user calls it; its weights are random."""
    base, _, suffix = name.removeprefix('plain-').partition('+')
    plain, with_cp = name.startswith('plain-'), suffix == 'cp'
    base = name if suffix not in ('', 'cp') else base
    full = OURS.get(base) or PEERS.get(base, base)
    shape = (size, size) if size else args.shape and (args.shape[0], args.shape[-1])
    if full.startswith('torchvision:'):
        if full.split(':')[1] not in torchvision.models.list_models(torchvision.models):
            parser.error(f'argument models: torchvision has no classifier {full!r}')
        model = torchvision.models.get_model(full.split(':')[1])
        return Candidate(name, model, model, shape or (224, 224), points)
    if full.endswith('.py'):
        cfg = read_config(parser, full)
    elif full in mmpretrain.list_models():
        cfg = mmpretrain.get_model(full)._config
    else:
        parser.error(
            f'argument models: {name!r} is no config file, no name of MMPretrain and '
            f'none of {", ".join([*OURS, *PEERS])}, plain-{", plain-".join(OURS)}'
        )
    shape = shape or input_size(cfg)
    side = change_config(cfg, args, shape[0], points, with_cp)
    if size:
        shape = (side, side)
    model = mmpretrain.get_model(cfg)
    if str(Path(full).resolve()) in OURS.values():
        name = f'{"plain-" * plain}{Path(full).stem}{"+cp" * with_cp}'
    if plain:
        try:
            model = PlainPSViT(model)
        except ValueError as error:
            parser.error(f'argument models: {name!r}: {error}')
        return Candidate(name, model, model, shape, points)

    def forward(images: Tensor) -> Tensor | tuple[Tensor, ...]:
        if args.backbone:
            return model.backbone(images)
        return model(images, mode='tensor')

    return Candidate(name, model, forward, shape, points)


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


def graphed(step: Step) -> Step:
    """Capture a step as a CUDA graph; the step that replays it."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay


def prepare(candidate: Candidate, args: argparse.Namespace) -> None:
    """Give a candidate the steps that are timed."""
    plain = isinstance(candidate.model, PlainPSViT)
    # Before folding: a BatchNorm's two numbers per channel become one bias.
    candidate.parameters = sum(p.numel() for p in candidate.model.parameters())
    if args.fuse and not plain:
        fuse(candidate)
    if args.no_dropout:
        turn_off_dropout(candidate.model)
    form = dict(
        device=args.device,
        dtype=torch.bfloat16 if candidate.dtype == 'bfloat16' else torch.float32,
        memory_format=torch.channels_last
        if args.channels_last and not plain
        else torch.contiguous_format,
    )
    model = candidate.model.to(**form)
    model.train(args.train)
    images = torch.rand(args.batch_size, 3, *candidate.shape).to(**form)

    def step_of(forward: Callable) -> Step:
        if args.train:
            return training_step(forward, model.parameters(), images, candidate.dtype)
        return inference_step(forward, images, candidate.dtype)

    candidate.steps[EAGER] = step_of(candidate.forward)
    if args.parts and not plain:
        candidate.parts = shares_of_parts(candidate, images)
    if args.cuda_graphs and not args.train and not plain:
        candidate.steps[GRAPHS] = graphed(candidate.steps[EAGER])
    if args.compile and not plain:
        mode = 'reduce-overhead' if args.cuda_graphs else None
        compiled = torch.compile(candidate.forward, mode=mode)
        name = COMPILED_GRAPHS if args.cuda_graphs else COMPILED
        candidate.steps[name] = step_of(compiled)


def shares_of_parts(candidate: Candidate, images: Tensor) -> dict[str, float]:
    """The share of each part in the time of a pass of inference."""
    backbone = candidate.model.backbone
    modules = {
        part: [m for key, m in backbone.named_modules() if key.endswith(f'.{name}')]
        for part, name in (('attention', 'attn'), ('FFN', 'ffn'))
    }
    if hasattr(backbone, 'sampler'):
        modules['stem'], modules['sampler'] = [backbone.stem], [backbone.sampler]
        modules['iterations'] = list(getattr(backbone.sampler, 'layers', ()))
    seconds, started = defaultdict(float), {}

    def start(module: nn.Module, _) -> None:
        started[module] = clock(images.device)

    def stop(part: str) -> Callable:
        def add(module: nn.Module, *_) -> None:
            seconds[part] += clock(images.device) - started.pop(module)

        return add

    training = candidate.model.training
    candidate.model.eval()
    with contextlib.ExitStack() as stack:
        for part, module in ((p, m) for p, group in modules.items() for m in group):
            stack.callback(module.register_forward_pre_hook(start).remove)
            stack.callback(module.register_forward_hook(stop(part)).remove)
        with torch.inference_mode(), autocast(images.device, candidate.dtype):
            for _ in range(3):  # the last one counts
                seconds.clear()
                begin = clock(images.device)
                candidate.forward(images)
                whole = clock(images.device) - begin
    candidate.model.train(training)
    if 'sampler' in seconds:
        # What the sampler does besides encoding
        seconds['sampling'] = seconds.pop('sampler') - seconds['iterations']
    return {part: taken / whole for part, taken in seconds.items()}


def rows_of(candidates: list[Candidate], args: argparse.Namespace) -> list[dict]:
    """The figures of each step, also those relative to the baselines."""
    figures = {
        (c.name, c.setting, c.dtype, mode): (c, found)
        for c in candidates
        for mode, found in c.figures.items()
    }
    rows = []
    for (name, setting, dtype, mode), (c, found) in figures.items():
        ratios = {}
        for baseline in args.baseline:
            key = (baseline, setting, dtype)
            # The plain networks have one mode.
            _, other = figures.get((*key, mode)) or figures[(*key, EAGER)]
            ratios[baseline] = other.milliseconds / found.milliseconds
        rows.append(
            {
                'model': name,
                'shape': c.shape,
                'points': c.points,
                'dtype': dtype,
                'mode': mode,
                'parameters': c.parameters,
                'images_per_second': 1e3 * args.batch_size / found.milliseconds,
                'milliseconds': found.milliseconds,
                'milliseconds_quartiles': found.quartiles,
                'peak_bytes': found.peak_bytes,
                'ratios': ratios,
                'parts': c.parts if mode == EAGER else {},
                'seconds': found.seconds,
            }
        )
    return rows


def markdown_of(rows: list[dict], baselines: list[str]) -> list[str]:
    """The table."""
    cells = []
    for row in rows:
        low, high = row['milliseconds_quartiles']
        cells.append(
            {
                'model': row['model'],
                'px': ' x '.join(map(str, dict.fromkeys(row['shape']))),
                'points per side': row['points'] or '',
                'dtype': row['dtype'],
                'mode': row['mode'],
                'parameters': f'{row["parameters"]:,}',
                'images/s': f'{row["images_per_second"]:.1f}',
                'ms, quartiles': f'{row["milliseconds"]:.1f}, {low:.1f} to {high:.1f}',
                'peak memory, MiB': mebibytes(row['peak_bytes']),
                **{f'to {name}': f'{r:.2f}' for name, r in row['ratios'].items()},
                **{part: f'{share:.0%}' for part, share in row['parts'].items()},
            }
        )
    keep = ('model', 'images/s', 'ms, quartiles', *(f'to {x}' for x in baselines))
    return [*markdown_table(cells, keep), '', 'Peak memory is beyond the weights.']


def title_of(args: argparse.Namespace) -> str:
    """What the tables show."""
    given = {
        ', '.join(args.dtype): True,
        'channels_last': args.channels_last,
        'BatchNorms folded': args.fuse,
        'no dropout': args.no_dropout,
        'backbones alone': args.backbone,
    }
    return (
        f'Speed of {"training steps" if args.train else "inference"}: batch '
        f'{args.batch_size}, {", ".join(option for option in given if given[option])}, '
        f'medians of {args.runs} interleaved rounds.'
    )


def parse_args() -> tuple[argparse.Namespace, argparse.ArgumentParser]:
    """Parse the command line; what depends on the device is filled in."""
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    add = parser.add_argument
    add(
        'models',
        nargs='*',
        default=DEFAULT,
        help=f"configs or names (default: the paper's Table 9): {', '.join(PEERS)}, "
        f'{", ".join(OURS)}, plain-NAME, NAME+cp',
    )
    add('--train', action='store_true', help='time training steps')
    add('--batch-size', type=positive, help='default: 128 on CUDA, else 8')
    add('--baseline', nargs='+', help='models to give ratios to; default: deit-b')
    add(
        '--dtype',
        nargs='+',
        choices=DTYPES,
        default=['float32'],
        help='of the weights; amp-*: autocast over float32 weights',
    )
    add('--compile', action='store_true', help='also compiled')
    add('--cuda-graphs', action='store_true', help='also replayed as CUDA graphs')
    add('--channels-last', action='store_true', help='weights and images')
    add('--fuse', action='store_true', help='fold BatchNorms; switch_to_deploy()')
    add('--no-dropout', action='store_true', help='no dropout, no stochastic depth')
    add('--backbone', action='store_true', help='without the heads')
    add('--shape', type=positive, nargs='+', metavar='H W', help='of the images')
    add('--sizes', type=positive, nargs='+', default=[], help='sides of images')
    add('--points', type=positive, nargs='+', default=[], help='points per side')
    add('--parts', action='store_true', help='shares of parts in inference')
    add(
        '--profile',
        action='store_true',
        help='also writes OUT.profile.txt',
    )
    add('--cfg-options', nargs='+', action=DictAction, help='of the PS-ViTs: KEY=VALUE')
    add_common_arguments(parser, runs=10)
    args = parser.parse_args()
    cuda = args.device.type == 'cuda'
    args.batch_size = args.batch_size or (128 if cuda else 8)
    if args.shape and len(args.shape) > 2:
        parser.error(f'argument --shape: H W or one number, got {args.shape}')
    if args.fuse and args.train:
        parser.error('argument --fuse: only for inference, not with --train')
    if args.cuda_graphs and not cuda:
        parser.error('argument --cuda-graphs: needs a CUDA device')
    if args.cuda_graphs and args.train and not args.compile:
        parser.error('argument --cuda-graphs: with --train, only with --compile')
    if args.profile and not args.out:
        parser.error('argument --profile: needs --out')
    if args.sizes and args.points and len(args.sizes) != len(args.points):
        parser.error('argument --points: as many as --sizes, or one of the two alone')
    if args.threads:
        torch.set_num_threads(args.threads)
    return args, parser


def settings_of(args: argparse.Namespace) -> list[tuple[int | None, int | None]]:
    """The sizes of images and points per side that the networks run at."""
    sizes = args.sizes or [args.shape[0] if args.shape and args.points else None]
    points = args.points or [None]
    count = max(len(sizes), len(points))
    sizes, points = (
        values * count if len(values) == 1 else values for values in (sizes, points)
    )
    return list(zip(sizes, points, strict=True))


def write_profiles(candidates: list[Candidate], args: argparse.Namespace) -> None:
    """Write which operators or kernels take the time of each step."""
    tables = []
    for candidate in candidates:
        for mode, step in candidate.steps.items():
            with profile() as profiler:
                step()
                clock(args.device)
            table = profiler.key_averages().table(
                sort_by=f'self_{args.device.type}_time_total',
                row_limit=30,
                max_name_column_width=90,
            )
            tables.append(f'{candidate.name}, {candidate.dtype}, {mode}\n{table}')
    with write_atomically(f'{args.out}.profile.txt') as temporary:
        temporary.write_text('\n'.join(tables))


def main() -> None:
    """Measure, print the table, and write what ``--out`` asks for."""
    args, parser = parse_args()
    # Otherwise MMPretrain's remarks stand before the table.
    MMLogger.get_instance('benchmark_speed', log_level='WARNING')
    torch.manual_seed(0)
    candidates = []
    settings = settings_of(args)
    for setting, (size, points) in enumerate(settings):
        for dtype, name in itertools.product(args.dtype, dict.fromkeys(args.models)):
            candidate = build_candidate(parser, args, name, size, points)
            candidate.setting, candidate.dtype = setting, dtype
            candidates.append(candidate)
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
    steps = {
        (index, mode): step
        for index, candidate in enumerate(candidates)
        for mode, step in candidate.steps.items()
    }
    # The memory of graphs is theirs beforehand.
    memory = [key for key in steps if key[1] in (EAGER, COMPILED)]
    for (index, mode), figures in measure(steps, args, memory).items():
        candidates[index].figures[mode] = figures
    rows = rows_of(candidates, args)
    report(title_of(args), markdown_of(rows, args.baseline), args, results=rows)
    if args.profile:
        write_profiles(candidates, args)


if __name__ == '__main__':
    run_main(main)
