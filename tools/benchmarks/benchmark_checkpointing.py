# Copyright (c) mmpsvit contributors.
"""Peak memory and time of a detector's backbone, with and without ``with_cp``.

    python tools/benchmarks/benchmark_checkpointing.py --out checkpointing

A step is the forward and backward pass of PS-ViT with ``out_type='featmap'``.
"""

# isort: off
import mmpsvit  # noqa: F401  First: it says what to install if something is missing.
# isort: on

import argparse

import torch
from _measuring import (
    Step,
    add_amp_argument,
    add_common_arguments,
    add_device_argument,
    autocast,
    describe,
    heading,
    markdown_table,
    measure,
    mebibytes,
    positive,
    report,
)
from torch import Tensor

from mmpsvit import PSViT


def backbone_step(backbone: PSViT, images: Tensor, amp: bool) -> Step:
    """Forward and backward pass; no gradient is left afterwards."""

    def train() -> None:
        with autocast(images.device, amp):
            loss = sum(out.float().mean() for out in backbone(images))
        loss.backward()
        backbone.zero_grad(set_to_none=True)

    return train


def parse_args() -> tuple[argparse.Namespace, argparse.ArgumentParser]:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--arch', choices=list(PSViT.arch_zoo), default='base')
    parser.add_argument(
        '--shape', type=positive, nargs=2, default=[800, 1333], metavar=('H', 'W')
    )
    parser.add_argument('--batch-size', type=positive, default=1)
    parser.add_argument('--point-stride', type=positive, default=16)
    add_device_argument(parser)
    add_amp_argument(parser)
    add_common_arguments(parser, '3')
    args = parser.parse_args()
    args.runs = args.runs or 3
    return args, parser


def main() -> None:
    """Measure, print a table, and write what ``--out`` asks for."""
    args, _ = parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    images = torch.rand(args.batch_size, 3, *args.shape, device=args.device)
    steps = {}
    for with_cp in (False, True):
        backbone = PSViT(
            args.arch,
            sampler=dict(point_stride=args.point_stride),
            out_type='featmap',
            with_cp=with_cp,
        )
        backbone.to(args.device).train()
        steps[with_cp] = backbone_step(backbone, images, args.amp)
    figures = measure(steps, args.runs, args.warmup, args.device, memory=steps)
    peak, seconds = figures[False].peak_bytes, figures[False].median
    rows = [
        (
            f'with_cp={with_cp}',
            mebibytes(figure.peak_bytes),
            f'{figure.peak_bytes / peak:.2f}',
            f'{figure.median:.2f}',
            f'{figure.median / seconds:.2f}',
        )
        for with_cp, figure in figures.items()
    ]
    about = describe(args.device)
    height, width = args.shape
    title = (
        f'Training step of the {args.arch} backbone at {height} x {width}, batch '
        f'{args.batch_size}, point_stride {args.point_stride}, '
        f'{"autocast" if args.amp else "float32"}, medians of {args.runs} interleaved '
        'rounds.'
    )
    header = ('', 'peak, MiB', 'ratio', 's', 'ratio')
    lines = [*heading(title, about), *markdown_table(header, rows)]
    results = {
        f'with_cp={with_cp}': dict(seconds=f.seconds, peak_bytes=f.peak_bytes)
        for with_cp, f in figures.items()
    }
    report(lines, about, args, results=results)


if __name__ == '__main__':
    main()
