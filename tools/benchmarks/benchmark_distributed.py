# Copyright (c) mmpsvit contributors.
"""Time a training step in one process and in several, on the CPU.

    python tools/benchmarks/benchmark_distributed.py --out distributed
    python tools/benchmarks/benchmark_distributed.py configs/psvit/b14.py --processes 4

The total batch and the total number of threads are the same. All processes live in one
run, in which every round times, in another order, the step in one of them, which has
all threads while the others wait; the step in all of them; and the same without the
exchange of gradients, so that what the exchange costs can be told from the rest.
"""

# isort: off
import mmpsvit  # noqa: F401  First: it says what to install if something is missing.
# isort: on

import argparse
import contextlib
import os
import subprocess
import sys

import mmpretrain
import torch
from _measuring import (
    CONFIGS,
    Figures,
    Step,
    add_amp_argument,
    add_common_arguments,
    describe,
    heading,
    markdown_table,
    measure,
    positive,
    report,
    training_step,
)
from mmengine.config import Config
from mmengine.logging import MMLogger
from torch import distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from mmpsvit.cli import read_config, run_main
from mmpsvit.cli.launch import close_distributed

# Relative: what is printed and written has no folders of one machine.
DEFAULT_CONFIG = os.path.relpath(CONFIGS / 'ti14.py')
CPU = torch.device('cpu')
ALONE, ALL, SILENT = 'one process', 'all processes', 'all, no exchange of gradients'


def steps_of(cfg: Config, args: argparse.Namespace) -> tuple[dict[str, Step], int]:
    """The steps that are timed, for this process, and the number of parameters.

    Every step is entered and left by all processes at once.
    """
    torch.manual_seed(0)
    whole = torch.rand(args.batch_size, 3, args.size, args.size)
    part = whole.chunk(args.processes)[dist.get_rank()]

    def train(model: nn.Module, images: torch.Tensor) -> Step:
        return training_step(
            lambda x: model(x, mode='tensor'), model.parameters(), images, args.amp
        )

    model, copy = (mmpretrain.get_model(cfg).train() for _ in range(2))
    # As MMEngine wraps it
    wrapped = DistributedDataParallel(model, broadcast_buffers=False)
    alone, together = train(copy, whole), train(wrapped, part)

    def run(step: Step, threads: int) -> None:
        torch.set_num_threads(threads)
        dist.barrier()
        step()
        dist.barrier()

    def silent() -> None:
        with wrapped.no_sync():
            together()

    threads = args.threads // args.processes
    wait = alone if dist.get_rank() == 0 else lambda: None
    steps = {
        ALONE: lambda: run(wait, args.threads),
        ALL: lambda: run(together, threads),
        SILENT: lambda: run(silent, threads),
    }
    return steps, sum(parameter.numel() for parameter in model.parameters())


def rows_of(figures: dict[str, Figures], args: argparse.Namespace) -> list[dict]:
    """The figures of each step, also relative to one process."""
    rows = []
    for name, measured in figures.items():
        processes = 1 if name == ALONE else args.processes
        rows.append(
            {
                'step': name,
                'processes': processes,
                'images_per_process': args.batch_size // processes,
                'threads_per_process': args.threads // processes,
                'milliseconds': 1e3 * measured.median,
                'milliseconds_quartiles': [1e3 * q for q in measured.quartiles],
                'images_per_second': args.batch_size / measured.median,
                'overhead': measured.median / figures[ALONE].median - 1,
                'seconds': measured.seconds,
            }
        )
    return rows


def markdown_of(
    rows: list[dict], parameters: int, args: argparse.Namespace, about: dict
) -> list[str]:
    """The table and what it was measured with."""
    title = (
        f'Training steps of {args.config} in 1 and {args.processes} processes: '
        f'{args.batch_size} images of {args.size} pixels in total, '
        f'{"bfloat16 autocast" if args.amp else "float32"}, gloo, medians of '
        f'{args.runs} interleaved rounds.'
    )
    header = ['step', 'processes', 'images each', 'threads each', 'ms, quartiles']
    header += ['images/s', 'overhead']
    cells = []
    for row in rows:
        low, high = row['milliseconds_quartiles']
        cells.append(
            [
                row['step'],
                row['processes'],
                row['images_per_process'],
                row['threads_per_process'],
                f'{row["milliseconds"]:.1f}, {low:.1f} to {high:.1f}',
                f'{row["images_per_second"]:.2f}',
                f'{100 * row["overhead"]:+.1f}%',
            ]
        )
    return [
        *heading(title, about),
        *markdown_table(header, cells),
        '',
        f'{parameters:,} gradients are exchanged, {4 * parameters / 2**20:.0f} MiB.',
    ]


def parse_args() -> tuple[argparse.Namespace, argparse.ArgumentParser]:
    """Parse the command line; what depends on the machine is filled in."""
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument(
        'config', nargs='?', default=DEFAULT_CONFIG, help='config of a classifier'
    )
    parser.add_argument('--processes', type=positive, default=2)
    parser.add_argument('--batch-size', type=positive, default=8, help='in total')
    parser.add_argument('--size', type=positive, default=224, help='side of the images')
    add_common_arguments(parser, '10')
    add_amp_argument(parser)
    args = parser.parse_args()
    args.runs = args.runs or 10
    if args.threads is None:
        each = max(1, torch.get_num_threads() // args.processes)
        args.threads = each * args.processes
    for name, value in (
        ('--batch-size', args.batch_size),
        ('--threads', args.threads),
    ):
        if value % args.processes:
            parser.error(
                f'argument {name}: must be a multiple of --processes = '
                f'{args.processes}, got {value}'
            )
    return args, parser


def launch(args: argparse.Namespace) -> int:
    """Start this script in several processes; return their exit code."""
    command = [sys.executable, '-m', 'torch.distributed.run', '--standalone']
    command += [f'--nproc_per_node={args.processes}', *sys.argv]
    # Without it, the launcher would choose one thread, with a warning.
    threads = dict(OMP_NUM_THREADS=str(args.threads))
    return subprocess.run(command, env={**os.environ, **threads}).returncode


def main() -> None:
    """Measure, print the table, and write what ``--out`` asks for."""
    args, parser = parse_args()
    cfg = read_config(parser, args.config)
    if 'LOCAL_RANK' not in os.environ:
        sys.exit(launch(args))
    # Otherwise MMPretrain's remarks stand before the table.
    MMLogger.get_instance('benchmark_distributed', log_level='WARNING')
    dist.init_process_group('gloo')
    steps, parameters = steps_of(cfg, args)
    is_main = dist.get_rank() == 0
    with contextlib.ExitStack() as stack:
        if not is_main:
            # One progress bar is enough.
            null = stack.enter_context(open(os.devnull, 'w'))
            stack.enter_context(contextlib.redirect_stderr(null))
        figures = measure(steps, args.runs, args.warmup, CPU)
    if is_main:
        torch.set_num_threads(args.threads)
        rows, about = rows_of(figures, args), describe()
        lines = markdown_of(rows, parameters, args, about)
        report(lines, about, args, results=rows, parameters=parameters)
    close_distributed()


if __name__ == '__main__':
    run_main(main)
