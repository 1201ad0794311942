# Copyright (c) mmpsvit contributors.
"""Time the ways to sample a map at points: one map of B/14, forward and backward.

    python tools/benchmarks/benchmark_sampling.py --out sampling
    python tools/benchmarks/benchmark_sampling.py --device cuda --batch 128 \
        --dtype float32 float16 bfloat16
    python tools/benchmarks/benchmark_sampling.py --step-share configs/psvit/b14.py

The implementations run interleaved, forward and backward apart, and figures are medians
over the rounds. Points are float32 whatever the dtype of the map: half precision cannot
place them. An implementation that needs one dtype for both casts the map to float32,
and that is part of its time.

Bandwidth is the bytes that must move over the time, as a share of what a plain copy of
256 MiB reaches on the same device. Forward, these bytes are the pixels of the map that
some point needs, the points and the samples; backward, the samples' gradient, the same
pixels and points, the points' gradient, and the whole gradient of the map, which is
dense. A map that fits into a cache can come out above 1.

--step-share times all samplings of one training step of a PS-ViT alone, at the maps,
points and gradients of that step, in one interleaved run with the whole step.
"""

# isort: off
import mmpsvit  # noqa: F401  First: it says what to install if something is missing.
# isort: on

import argparse
from collections.abc import Callable
from functools import partial

import mmpretrain
import torch
import torch.nn.functional as F
from _measuring import (
    add_amp_argument,
    add_common_arguments,
    add_device_argument,
    describe,
    heading,
    markdown_table,
    measure,
    positive,
    report,
    training_step,
)
from _parts import part_steps
from mmengine.logging import MMLogger
from torch import Tensor

from mmpsvit import PSViT
from mmpsvit.cli import read_config, run_main
from mmpsvit.ops import sample_points

LAYOUTS = {'NCHW': torch.contiguous_format, 'channels_last': torch.channels_last}
DTYPES = ('float32', 'float16', 'bfloat16')
COPY_BYTES = 256 * 2**20


def corners(points: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """The four pixels around each point: indices y * width + x and weights, (B, N, 4).

    A pixel outside the map has weight 0.
    """
    low = points.detach().floor()
    indices, weights = [], []
    for dy in (0, 1):
        for dx in (0, 1):
            x, y = low[..., 0] + dx, low[..., 1] + dy
            inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
            weight = (1 - (points[..., 0] - x).abs()) * (1 - (points[..., 1] - y).abs())
            weights.append(weight * inside)
            indices.append(y.clamp(0, height - 1) * width + x.clamp(0, width - 1))
    return torch.stack(indices, dim=-1).long(), torch.stack(weights, dim=-1)


def grid_sample(feat: Tensor, points: Tensor) -> Tensor:
    """Sample with PyTorch's own operator."""
    height, width = feat.shape[-2:]
    x, y = points.unbind(-1)
    grid = torch.stack(((2 * x + 1) / width - 1, (2 * y + 1) / height - 1), dim=-1)
    samples = F.grid_sample(feat.float(), grid[:, None], align_corners=False)
    # (B, C, 1, N) -> (B, N, C)
    return samples[:, :, 0].mT


def gather(feat: Tensor, points: Tensor) -> Tensor:
    """Gather four pixels per point, then sum them with their weights."""
    batch, channels, height, width = feat.shape
    table = feat.permute(0, 2, 3, 1).reshape(batch, -1, channels)
    index, weight = corners(points, height, width)
    pixels = table.gather(1, index.flatten(1)[..., None].expand(-1, -1, channels))
    return (pixels.view(batch, -1, 4, channels) * weight[..., None]).sum(dim=2)


def embedding_bag(feat: Tensor, points: Tensor) -> Tensor:
    """Look four pixels per point up in the map as a table, and sum in one operator."""
    batch, channels, height, width = feat.shape
    table = feat.float().permute(0, 2, 3, 1).reshape(-1, channels)
    index, weight = corners(points, height, width)
    first = torch.arange(batch, device=feat.device) * (height * width)
    samples = F.embedding_bag(
        (index + first[:, None, None]).flatten(0, 1),
        table,
        per_sample_weights=weight.flatten(0, 1),
        mode='sum',
    )
    return samples.view(batch, -1, channels)


def mmcv_kernel(feat: Tensor, points: Tensor) -> Tensor:
    """Sample with mmcv's deformable attention: one head, level and point, weight 1."""
    from mmcv.ops.multi_scale_deform_attn import MultiScaleDeformableAttnFunction

    batch, channels, height, width = feat.shape
    value = feat.float().permute(0, 2, 3, 1).reshape(batch, -1, 1, channels)
    x, y = points.unbind(-1)
    locations = torch.stack(((x + 0.5) / width, (y + 0.5) / height), dim=-1)
    locations = locations[:, :, None, None, None, :]
    # Filled on the device: torch.tensor([...]) would wait for a copy.
    spatial_shape = torch.full((1, 2), height, device=feat.device)
    spatial_shape[:, 1] = width
    return MultiScaleDeformableAttnFunction.apply(
        value,
        spatial_shape,
        torch.zeros(1, dtype=torch.long, device=feat.device),
        locations,
        torch.ones_like(locations[..., 0]),
        batch,
    )


def implementations(device: torch.device) -> dict[str, Callable]:
    """What there is to time on a device."""
    found = dict(
        grid_sample=grid_sample,
        gather=gather,
        embedding_bag=embedding_bag,
    )
    if device.type == 'cuda':
        try:
            from mmcv.ops import get_compiling_cuda_version
        except ImportError:  # mmcv without compiled ops
            pass
        else:
            if get_compiling_cuda_version() != 'not available':
                found['mmcv kernel'] = mmcv_kernel
    return {**found, 'sample_points': sample_points}


def bytes_moved(feat: Tensor, points: Tensor) -> dict[str, int]:
    """The bytes that forward and backward must move at least, see above."""
    batch, channels, height, width = feat.shape
    index, weight = corners(points, height, width)
    index = index + (torch.arange(batch, device=feat.device) * height * width).view(
        -1, 1, 1
    )
    needed = index[weight > 0].unique().numel() * channels
    samples = batch * points.shape[1] * channels
    place = points.numel() * points.element_size()
    size = feat.element_size()
    return {
        'forward': (needed + samples) * size + place,
        'backward': (needed + samples + feat.numel()) * size + 2 * place,
    }


def copy_bandwidth(device: torch.device) -> float:
    """Bytes per second that a copy reads and writes."""
    source = torch.ones(COPY_BYTES // 4, device=device)
    target = torch.empty_like(source)
    steps = {'copy': partial(target.copy_, source)}
    figures = measure(steps, runs=10, warmup=2, device=device)
    return 2 * COPY_BYTES / figures['copy'].median


def steps_of(base: Tensor, points: Tensor) -> dict[tuple, Callable]:
    """Forward and backward of every implementation and layout, as steps."""
    steps = {}
    for layout, memory_format in LAYOUTS.items():
        feat = base.clone(memory_format=memory_format).requires_grad_()
        for name, sample in implementations(base.device).items():

            def forward(sample: Callable = sample, feat: Tensor = feat) -> Tensor:
                return sample(feat, points).to(feat.dtype)

            out = forward()
            steps[name, layout, 'forward'] = forward
            steps[name, layout, 'backward'] = partial(
                torch.autograd.grad,
                out,
                (feat, points),
                torch.randn_like(out),
                retain_graph=True,
            )
    return steps


def measure_implementations(args: argparse.Namespace, _) -> tuple[list, str, list]:
    """The figures of every implementation, layout and dtype, their title and table."""
    shape = (args.batch, args.channels, args.size, args.size)
    base = torch.randn(shape, device=args.device)
    points = torch.rand(args.batch, args.points**2, 2, device=args.device) * args.size
    points.requires_grad_()
    bandwidth = copy_bandwidth(args.device)
    figures, moved = {}, {}
    for dtype in args.dtype:
        # Ratios are within a dtype, and so is the memory that all the graphs take.
        feat = base.to(getattr(torch, dtype))
        moved[dtype] = bytes_moved(feat, points)
        steps = steps_of(feat, points)
        found = measure(steps, args.runs, args.warmup, args.device)
        figures.update({(*key[:2], dtype, key[2]): f for key, f in found.items()})

    rows = []
    for name, layout, dtype in dict.fromkeys(key[:3] for key in figures):
        row = dict(implementation=name, layout=layout, dtype=dtype)
        total, total_base = 0.0, 0.0
        for way in ('forward', 'backward'):
            seconds = figures[name, layout, dtype, way].median
            reference = figures['grid_sample', 'NCHW', dtype, way].median
            row[f'{way}_ms'] = 1e3 * seconds
            row[f'{way}_ratio'] = reference / seconds
            row[f'{way}_bytes'] = moved[dtype][way]
            row[f'{way}_bandwidth'] = moved[dtype][way] / seconds / bandwidth
            total, total_base = total + seconds, total_base + reference
        rows.append({**row, 'ratio': total_base / total, 'copy_bandwidth': bandwidth})
    title = (
        f'Sampling: map {shape}, {args.points**2} points, ratios to grid_sample on '
        f'NCHW, a copy moves {bandwidth / 1e9:.1f} GB/s'
    )
    return rows, title, table_of(rows)


def table_of(rows: list[dict]) -> list[str]:
    """The table of all implementations."""
    header = ['implementation', 'layout', 'dtype']
    for way in ('forward', 'backward'):
        header += [f'{way}, ms', 'ratio', 'bandwidth']
    cells = []
    for row in rows:
        line = [row['implementation'], row['layout'], row['dtype']]
        for way in ('forward', 'backward'):
            line += [
                f'{row[f"{way}_ms"]:.2f}',
                f'{row[f"{way}_ratio"]:.2f}',
                f'{row[f"{way}_bandwidth"]:.2f}',
            ]
        cells.append([*line, f'{row["ratio"]:.2f}'])
    return markdown_table([*header, 'ratio of both'], cells)


def measure_step_share(
    args: argparse.Namespace, parser: argparse.ArgumentParser
) -> tuple[list, str, list]:
    """A training step and all its samplings alone: figures, title and table."""
    model = mmpretrain.get_model(read_config(parser, args.step_share))
    if not isinstance(model.backbone, PSViT) or not model.backbone.sampler.num_iters:
        parser.error(f'argument --step-share: {args.step_share} samples no points')
    model = model.to(args.device, memory_format=torch.channels_last).train()
    images = torch.rand(args.batch, 3, 224, 224, device=args.device)
    images = images.to(memory_format=torch.channels_last)
    forward = partial(model, mode='tensor')
    steps = {
        'training step': training_step(forward, model.parameters(), images, args.amp),
        **part_steps(model, {}, images, train=True, amp=args.amp),
    }
    figures = measure(steps, args.runs, args.warmup, args.device)
    whole = figures['training step'].median
    rows = [
        dict(part=name, milliseconds=1e3 * f.median, share=f.median / whole)
        for name, f in figures.items()
    ]
    cells = [
        [row['part'], f'{row["milliseconds"]:.2f}', f'{row["share"]:.1%}']
        for row in rows
    ]
    title = (
        f'Sampling in a training step of {args.step_share}: batch {args.batch}, '
        f'{"autocast" if args.amp else "float32"}'
    )
    return rows, title, markdown_table(['', 'ms', 'share'], cells)


def parse_args() -> tuple[argparse.Namespace, argparse.ArgumentParser]:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    add_device_argument(parser)
    parser.add_argument('--batch', type=positive, default=8)
    parser.add_argument('--channels', type=positive, default=384)
    parser.add_argument('--size', type=positive, default=56, help='side of the map')
    parser.add_argument('--points', type=positive, default=14, help='points per side')
    parser.add_argument(
        '--dtype', nargs='+', choices=DTYPES, default=DTYPES[:1], help='of the map'
    )
    parser.add_argument(
        '--step-share',
        metavar='CONFIG',
        help='time the samplings within a training step of this PS-ViT instead',
    )
    add_amp_argument(parser)
    add_common_arguments(parser, '30')
    args = parser.parse_args()
    args.runs = args.runs or 30
    if args.amp and not args.step_share:
        parser.error('argument --amp: only with --step-share; else --dtype')
    if args.threads:
        torch.set_num_threads(args.threads)
    return args, parser


def main() -> None:
    """Measure, print the table, and write what ``--out`` asks for."""
    args, parser = parse_args()
    # Otherwise MMPretrain's remarks stand before the table.
    MMLogger.get_instance('benchmark_sampling', log_level='WARNING')
    torch.manual_seed(0)
    about = describe(args.device)
    make = measure_step_share if args.step_share else measure_implementations
    rows, title, table = make(args, parser)
    title += f', medians of {args.runs} interleaved rounds.'
    report([*heading(title, about), *table], about, args, results=rows)


if __name__ == '__main__':
    run_main(main)
