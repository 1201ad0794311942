# Copyright (c) mmpsvit contributors.
"""Time networks side by side: inference, latency, training steps, memory, scaling.

    python tools/benchmarks/benchmark_speed.py --channels-last --fuse --out speed
    python tools/benchmarks/benchmark_speed.py b14 plain-b14 deit-b --train
    python tools/benchmarks/benchmark_speed.py b14 deit-s --sizes 224 448 --parts

A model is a config file, a name of MMPretrain's model index or one of the short names
of --help. `plain-NAME` is the PS-ViT of that name in plain PyTorch, see plain_psvit.py,
`NAME+cp` the one with `with_cp=True`, and `NAME+triton` samples with Triton's kernels.

Every round runs each row's step once, in another order, so that whatever else the
machine does slows all of them; figures are medians over the rounds, and ratios are
those of images/s, to a baseline in the same dtype, mode and setting. Images are random
and on the device already. Inference ends with the logits; a training step is forward,
label-smoothed cross entropy, backward and AdamW. Peak memory is beyond the weights.
--compile and --cuda-graphs add rows to those of eager execution. A CUDA graph is one of
the whole step, in training with the optimizer. The plain networks stay as they are
written: NCHW, BatchNorms unfolded, eager.

With --sizes and --points images grow, points per side grow, or both, side by side. With
--points, a plain ViT gets as many tokens as the PS-ViTs: patches of the image's side
over the points per side, rounded down, in an image of as many whole patches.
"""

# isort: off
import mmpsvit  # noqa: F401  First: it says what to install if something is missing.
# isort: on

import argparse
import contextlib
import itertools
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import common
import mmpretrain
import torch
from mmcv.cnn import fuse_conv_bn
from plain_psvit import PlainPSViT
from torch import Tensor, nn
from torch.profiler import profile

from mmpsvit.cli import add_cfg_options, read_config, run_main
from mmpsvit.guard import type_name, write_atomically

# Peers of the paper's Table 9, without RegNetY, which MMPretrain does not have.
PEERS = {
    'deit-s': 'deit-small_4xb256_in1k',
    'deit-b': 'deit-base_16xb64_in1k',
    'vit-b16-384': 'vit-base-p16_in21k-pre_3rdparty_in1k-384px',
    'resnet18': 'resnet18_8xb32_in1k',
    'resnet50': 'resnet50_8xb32_in1k',
    'resnet101': 'resnet101_8xb32_in1k',
}
EAGER, COMPILED = 'eager', 'compiled'
GRAPHED = {EAGER: 'CUDA graphs', COMPILED: 'compiled, CUDA graphs'}


@dataclass
class Candidate:
    """A model in the race, with one row for each of its steps."""

    name: str
    model: nn.Module
    forward: Callable[[Tensor], Tensor]  # to logits, or to maps with --backbone
    shape: tuple[int, int]  # (H, W) of its images
    points: int | None = None  # per side, where the command line says
    setting: int = 0  # which one of --sizes and --points
    dtype: str = common.DTYPES[0]
    parameters: int = 0
    parts: dict[str, float] = field(default_factory=dict)  # shares of its time
    steps: dict[str, common.Step] = field(default_factory=dict)  # by mode


def build_candidate(
    parser: argparse.ArgumentParser,
    args: argparse.Namespace,
    name: str,
    size: int | None = None,
    points: int | None = None,
) -> Candidate:
    """Build a model from what the user calls it; its weights are random."""
    base, _, suffix = name.removeprefix('plain-').partition('+')
    full = common.OURS.get(base) or PEERS.get(base, base)
    if full.endswith('.py'):
        cfg = read_config(parser, full)
    elif full in mmpretrain.list_models():
        cfg = mmpretrain.get_model(full)._config
    else:
        parser.error(
            f'argument models: {name!r} is no config file, no name of MMPretrain and '
            f'none of {", ".join([*common.OURS, *PEERS])}, plain-NAME, NAME+cp, '
            'NAME+triton'
        )
    shape = args.shape or common.input_size(cfg)
    side = size or shape[0]
    backbone = cfg.model.get('backbone', {})
    kind = type_name(backbone)
    if suffix and (kind != 'PSViT' or suffix not in ('cp', 'triton')):
        parser.error(f'argument models: {name!r}: +cp and +triton are for PS-ViTs')
    if kind == 'PSViT':
        cfg.merge_from_dict(args.cfg_options or {})
        backbone = cfg.model.backbone
        if suffix == 'cp':
            backbone.with_cp = True
        elif suffix == 'triton':
            backbone.setdefault('sampler', {}).update(kernel='triton')
        if points:
            grid = dict(num_points=points, point_stride=None)
            backbone.setdefault('sampler', {}).update(grid)
    elif kind == 'VisionTransformer' and points:
        backbone.patch_size = side // points
        backbone.img_size = side = side // points * points
    if size or points:
        shape = (side, side)
    model = mmpretrain.get_model(cfg)
    if str(Path(full).resolve()) in common.OURS.values():
        name = name.replace(base, Path(full).stem)
    if name.startswith('plain-'):
        try:
            model = PlainPSViT(model)
        except ValueError as error:
            parser.error(f'argument models: {name!r}: {error}')
        return Candidate(name, model, model, tuple(shape), points)

    def forward(images: Tensor) -> Tensor | tuple[Tensor, ...]:
        if args.backbone:
            return model.backbone(images)
        return model(images, mode='tensor')

    return Candidate(name, model, forward, tuple(shape), points)


def turn_off_dropout(model: nn.Module) -> None:
    """Train without dropout and stochastic depth, of which each recipe has its own."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        elif hasattr(module, 'drop_prob'):
            module.drop_prob = 0.0


def graphed(step: common.Step) -> common.Step:
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
    model = candidate.model
    plain = isinstance(model, PlainPSViT)
    # Before folding: a BatchNorm's two numbers per channel become one bias.
    candidate.parameters = sum(p.numel() for p in model.parameters())
    if args.fuse and not plain:
        model.eval()
        if hasattr(model.backbone, 'switch_to_deploy'):  # as MMPretrain calls it
            model.backbone.switch_to_deploy()
        fuse_conv_bn(model)
    if args.no_dropout:
        turn_off_dropout(model)
    for module in model.modules():
        if hasattr(module, 'drop_prob'):  # of NumPy, which torch.compile stumbles over
            module.drop_prob = float(module.drop_prob)
    channels_last = args.channels_last and not plain
    form = dict(
        device=args.device,
        dtype=torch.bfloat16 if candidate.dtype == 'bfloat16' else torch.float32,
        memory_format=(torch.contiguous_format, torch.channels_last)[channels_last],
    )
    model.to(**form)
    model.train(args.train)
    images = torch.rand(args.batch_size, 3, *candidate.shape).to(**form)

    def step_of(forward: Callable) -> common.Step:
        dtype = candidate.dtype
        if args.train:
            return common.training_step(forward, model.parameters(), images, dtype)
        return common.inference_step(forward, images, dtype)

    candidate.steps[EAGER] = step_of(candidate.forward)
    if plain:
        return
    if args.parts:
        candidate.parts = shares_of_parts(candidate, images)
    if args.compile:
        candidate.steps[COMPILED] = step_of(torch.compile(candidate.forward))
    if args.cuda_graphs:
        for mode, step in {**candidate.steps}.items():
            candidate.steps[GRAPHED[mode]] = graphed(step)


def shares_of_parts(candidate: Candidate, images: Tensor) -> dict[str, float]:
    """The share of each part in one pass of inference, by a clock around modules."""
    backbone = candidate.model.backbone
    modules = {
        part: [m for key, m in backbone.named_modules() if key.endswith(f'.{name}')]
        for part, name in (('attention', 'attn'), ('FFN', 'ffn'))
    }
    if hasattr(backbone, 'sampler'):
        modules['stem'], modules['sampling'] = [backbone.stem], [backbone.sampler]
        modules['iterations'] = list(getattr(backbone.sampler, 'layers', ()))
    seconds = defaultdict(float)

    def add(sign: int, part: str) -> Callable:
        def hook(*_) -> None:
            seconds[part] += sign * common.clock(images.device)

        return hook

    step = common.inference_step(candidate.forward, images, candidate.dtype)
    training = candidate.model.training
    candidate.model.eval()
    step()
    with contextlib.ExitStack() as stack:
        for part, module in ((p, m) for p, group in modules.items() for m in group):
            stack.enter_context(module.register_forward_pre_hook(add(-1, part)))
            stack.enter_context(module.register_forward_hook(add(1, part)))
        add(-1, 'whole')()
        step()
        add(1, 'whole')()
    candidate.model.train(training)
    if 'sampling' in seconds:  # what the sampler does besides encoding
        seconds['sampling'] -= seconds['iterations']
    whole = seconds.pop('whole')
    return {part: taken / whole for part, taken in seconds.items()}


def rows_of(
    candidates: list[Candidate], figures: dict, args: argparse.Namespace
) -> list[dict]:
    """The figures of each step, also those relative to the baselines."""
    times = {
        (candidates[i].name, candidates[i].setting, candidates[i].dtype, mode): found
        for (i, mode), found in figures.items()
    }
    rows = []
    for (index, mode), found in figures.items():
        candidate = candidates[index]
        row = dict(
            model=candidate.name,
            pixels=' x '.join(map(str, dict.fromkeys(candidate.shape))),
            points=candidate.points,
            dtype=candidate.dtype,
            mode=mode,
            parameters=candidate.parameters,
            images_per_second=1e3 * args.batch_size / found['milliseconds'],
            **found,
        )
        for baseline in args.baseline:
            key = (baseline, candidate.setting, candidate.dtype)
            # The plain networks have one mode.
            other = times.get((*key, mode)) or times[(*key, EAGER)]
            ratio = other['milliseconds'] / found['milliseconds']
            row[f'to {baseline}'] = ratio
        rows.append({**row, **(candidate.parts if mode == EAGER else {})})
    return rows


def parse_args() -> tuple[argparse.Namespace, argparse.ArgumentParser]:
    """Parse the command line; what depends on the device is filled in."""
    parser = common.make_parser(__doc__, runs=10)
    add = parser.add_argument
    names = f'{", ".join([*PEERS, *common.OURS])}, plain-NAME, NAME+cp, NAME+triton'
    default = ['ti14', 'b10', 'b14', 'b18', *PEERS]
    add('models', nargs='*', default=default, help=f'configs or names: {names}')
    add('--train', action='store_true', help='time training steps')
    add('--batch-size', type=common.positive, help='default: 128 on CUDA, else 8')
    add('--baseline', nargs='+', help='models to give ratios to; default: deit-b')
    help = 'of the weights; amp-*: autocast over float32 weights'
    add('--dtype', nargs='+', choices=common.DTYPES, default=['float32'], help=help)
    add('--compile', action='store_true', help='also compiled')
    add('--cuda-graphs', action='store_true', help='also replayed as CUDA graphs')
    add('--channels-last', action='store_true', help='weights and images')
    add('--fuse', action='store_true', help='fold BatchNorms; switch_to_deploy()')
    add('--no-dropout', action='store_true', help='no dropout, no stochastic depth')
    add('--backbone', action='store_true', help='without the heads')
    add('--shape', type=common.positive, nargs='+', metavar='H W', help='of the images')
    add('--sizes', type=common.positive, nargs='+', help='sides of images')
    add('--points', type=common.positive, nargs='+', help='points per side')
    add('--parts', action='store_true', help='shares of parts in inference')
    add('--profile', action='store_true', help='also writes OUT.profile.txt')
    add_cfg_options(parser, 'the PS-ViTs')
    args = parser.parse_args()
    is_cuda = args.device.type == 'cuda'
    args.batch_size = args.batch_size or (128 if is_cuda else 8)
    if args.shape and len(args.shape) > 2:
        parser.error(f'argument --shape: H W or one number, got {args.shape}')
    args.shape = args.shape and (args.shape[0], args.shape[-1])
    if args.fuse and args.train:
        parser.error('argument --fuse: only for inference, not with --train')
    if args.cuda_graphs and not is_cuda:
        parser.error('argument --cuda-graphs: needs a CUDA device')
    if args.profile and not args.out:
        parser.error('argument --profile: needs --out')
    if args.sizes and args.points and len(args.sizes) != len(args.points):
        parser.error('argument --points: as many as --sizes, or one of the two alone')
    return args, parser


def write_profiles(candidates: list[Candidate], args: argparse.Namespace) -> None:
    """Write which operators, or kernels, take the time of each step."""
    tables = []
    for candidate in candidates:
        for mode, step in candidate.steps.items():
            with profile() as profiler:
                step()
                common.clock(args.device)
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
    common.start(args)
    count = max(len(args.sizes or '1'), len(args.points or '1'))
    columns = (args.sizes or [None] * count, args.points or [None] * count)
    candidates = []
    for setting, (size, points) in enumerate(zip(*columns, strict=True)):
        for dtype, name in itertools.product(args.dtype, dict.fromkeys(args.models)):
            candidate = build_candidate(parser, args, name, size, points)
            candidate.setting, candidate.dtype = setting, dtype
            candidates.append(candidate)
    names = [candidate.name for candidate in candidates]
    args.baseline = args.baseline or ['deit-b' if 'deit-b' in names else names[0]]
    for name in args.baseline:
        if name not in names:
            models = ', '.join(dict.fromkeys(names))
            parser.error(f'argument --baseline: {name!r} is none of {models}')
    for candidate in candidates:
        prepare(candidate, args)
    steps = {
        (index, mode): step
        for index, candidate in enumerate(candidates)
        for mode, step in candidate.steps.items()
    }
    # What a graph needs, it has before it is replayed.
    memory = [key for key in steps if key[1] in (EAGER, COMPILED)]
    rows = rows_of(candidates, common.measure(steps, args, memory), args)
    flags = ('channels_last', 'fuse', 'no_dropout', 'backbone')
    given = [*args.dtype, *(name for name in flags if getattr(args, name))]
    title = (
        f'{"Training steps" if args.train else "Inference"} of '
        f'{", ".join(dict.fromkeys(names))}: batch {args.batch_size}, '
        f'{", ".join(given)}, '
        f'medians of {args.runs} interleaved rounds.'
    )
    common.report(title, args, rows)
    if args.profile:
        write_profiles(candidates, args)


if __name__ == '__main__':
    run_main(main)
