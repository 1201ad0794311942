# Copyright (c) mmpsvit contributors.
"""Time ways to sample a map at points, side by side: forward, backward, peak memory.

    python tools/benchmarks/benchmark_sampling.py --out sampling
    python tools/benchmarks/benchmark_sampling.py --batch-size 128 --dtype bfloat16
    python tools/benchmarks/benchmark_sampling.py --step-share configs/psvit/b14.py

By default one map of B/14 is sampled in four iterations, each at points of its own, as
PS-ViT does it; the backward pass ends with the gradients of the map and of all points.
Points are float32 whatever the dtype of the map: half precision cannot place them. An
implementation that needs one dtype for both casts the map to float32, and that is part
of its time, and of its memory. Bytes are those beyond the map and the points.

--step-share times all samplings of one training step of a PS-ViT alone, at a map and
points of that step, in one interleaved run with the whole step.
"""

# isort: off
import mmpsvit  # noqa: F401  First: it says what to install if something is missing.
# isort: on

import argparse
from collections.abc import Callable, Sequence
from functools import partial

import common
import mmpretrain
import torch
import torch.nn.functional as F
from torch import Tensor

from mmpsvit import PSViT
from mmpsvit.cli import read_config, run_main
from mmpsvit.ops import KERNELS, SampledMap, sample_points

LAYOUTS = {'NCHW': torch.contiguous_format, 'channels_last': torch.channels_last}


def grid_sample(feat: Tensor, points: Tensor) -> Tensor:
    """Sample with PyTorch's own operator."""
    height, width = feat.shape[-2:]
    x, y = points.unbind(-1)
    grid = torch.stack(((2 * x + 1) / width - 1, (2 * y + 1) / height - 1), dim=-1)
    samples = F.grid_sample(feat.float(), grid[:, None], align_corners=False)
    # (B, C, 1, N) -> (B, N, C)
    return samples[:, :, 0].mT


def sampled_map(
    feat: Tensor, points: Sequence[Tensor], kernel: str = 'mmcv'
) -> list[Tensor]:
    """Sample as the network does, several times, for one gradient of the map."""
    shared = SampledMap.of(feat, kernel)
    outs = []
    for chosen in points:
        samples, shared = shared.sample(chosen)
        outs.append(samples)
    return outs


def implementations(device: torch.device) -> dict[str, Callable]:
    """What there is to time on a device: a map and a list of points to samples."""
    single = dict(grid_sample=grid_sample, sample_points=sample_points)

    def repeated(sample: Callable, feat: Tensor, points: list[Tensor]) -> list[Tensor]:
        return [sample(feat, chosen) for chosen in points]

    found = {name: partial(repeated, sample) for name, sample in single.items()}
    found['SampledMap'] = sampled_map
    if device.type == 'cuda':
        found['SampledMap, Triton'] = partial(sampled_map, kernel='triton')
    return found


def step_of(
    sample: Callable, feat: Tensor, points: Sequence[Tensor], backward: bool
) -> common.Step:
    """One sampling of all points, perhaps with the gradients of the map and of them."""
    grad = torch.ones(*points[0].shape[:2], feat.shape[1], device=feat.device)
    inputs = [tensor for tensor in (feat, *points) if tensor.requires_grad]

    def run() -> None:
        with torch.set_grad_enabled(backward):
            outs = sample(feat, points)
        if backward:
            grads = [grad.to(out.dtype) for out in outs]
            torch.autograd.grad(outs, inputs, grads)

    return run


def measure_implementations(args: argparse.Namespace) -> list[dict]:
    """The figures of every implementation, layout and dtype."""
    shape = (args.batch_size, args.channels, args.size, args.size)
    base = torch.randn(shape, device=args.device)
    places = (args.calls, args.batch_size, args.points**2, 2)
    points = (torch.rand(places, device=args.device) * args.size).unbind()
    points = [chosen.clone().requires_grad_() for chosen in points]
    rows = []
    for dtype in args.dtype:
        steps = {}
        for layout, memory_format in LAYOUTS.items():
            feat = base.to(getattr(torch, dtype)).clone(memory_format=memory_format)
            feat.requires_grad_()
            for name, sample in implementations(args.device).items():
                for backward in (False, True):
                    step = step_of(sample, feat, points, backward)
                    steps[name, layout, backward] = step
        figures = common.measure(steps, args, memory=[key for key in steps if key[2]])
        reference = figures['grid_sample', 'NCHW', True]['milliseconds']
        for name, layout in dict.fromkeys(key[:2] for key in steps):
            row = dict(implementation=name, layout=layout, dtype=dtype)
            row['forward_ms'] = figures[name, layout, False]['milliseconds']
            both = figures[name, layout, True]
            row['forward_and_backward_ms'] = both['milliseconds']
            row['ratio'] = reference / both['milliseconds']
            rows.append({**row, 'peak_MiB': both['peak_MiB']})
    return rows


def measure_step_share(
    args: argparse.Namespace, parser: argparse.ArgumentParser
) -> list[dict]:
    """A training step and all its samplings alone."""
    cfg = read_config(parser, args.step_share)
    model = mmpretrain.get_model(cfg)
    if not isinstance(model.backbone, PSViT):
        parser.error(f'argument --step-share: {args.step_share} samples no points')
    model.backbone.sampler.kernel = args.kernel
    form = dict(device=args.device, memory_format=torch.channels_last)
    model = model.to(**form).train()
    images = torch.rand(args.batch_size, 3, *common.input_size(cfg)).to(**form)
    found = []
    keep = model.backbone.sampler.register_forward_hook(lambda *c: found.append(c))
    with keep, common.autocast(args.device, args.dtype[0]):
        model(images, mode='tensor')
    ((_, (feat,), out),) = found
    start, *moved = (points.clone() for points in out.trajectory.unbind(1))
    # The start points have no gradient.
    points = [start, *(chosen.requires_grad_() for chosen in moved)]
    feat = feat.detach().requires_grad_()
    forward = partial(model, mode='tensor')
    step = common.training_step(forward, model.parameters(), images, args.dtype[0])
    sample = partial(sampled_map, kernel=args.kernel)
    alone = step_of(sample, feat, points, backward=True)
    rows = common.measure({'training step': step, 'sampling': alone}, args)
    whole = rows['training step']['milliseconds']
    return [
        dict(part=name, **row, percent=100 * row['milliseconds'] / whole)
        for name, row in rows.items()
    ]


def main() -> None:
    """Measure, print the table, and write what ``--out`` asks for."""
    parser = common.make_parser(__doc__, runs=20)
    add = parser.add_argument
    add('--batch-size', type=common.positive, default=8)
    add('--channels', type=common.positive, default=384)
    add('--size', type=common.positive, default=56, help='side of the map')
    add('--points', type=common.positive, default=14, help='points per side')
    add('--calls', type=common.positive, default=4, help='samplings of the map')
    choices = (*common.DTYPES, 'float16')
    help = 'of the map, or with --step-share of the step, also amp-*'
    add('--dtype', nargs='+', choices=choices, default=['float32'], help=help)
    add('--step-share', metavar='CONFIG', help='the samplings of a training step')
    add('--kernel', choices=KERNELS, default='mmcv', help='with --step-share on CUDA')
    args = parser.parse_args()
    if not args.step_share and any(dtype.startswith('amp') for dtype in args.dtype):
        parser.error('argument --dtype: amp-* only with --step-share')
    if args.step_share and (
        len(args.dtype) > 1 or args.dtype[0] in ('bfloat16', 'float16')
    ):
        parser.error('argument --dtype: with --step-share, float32 or one amp-*')
    common.start(args)
    if args.step_share:
        rows = measure_step_share(args, parser)
        what = (
            f'Sampling in a training step of {args.step_share}: batch '
            f'{args.batch_size}, {args.dtype[0]}'
        )
    else:
        rows = measure_implementations(args)
        what = (
            f'Sampling: map ({args.batch_size}, {args.channels}, {args.size}, '
            f'{args.size}), {args.calls} times {args.points**2} points, ratios to '
            'grid_sample on NCHW'
        )
    common.report(f'{what}, medians of {args.runs} interleaved rounds.', args, rows)


if __name__ == '__main__':
    run_main(main)
