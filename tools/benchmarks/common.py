# Copyright (c) mmpsvit contributors.
"""What the benchmarks share: options, steps, timing, memory, tables and files."""

import argparse
import datetime
import gc
import itertools
import json
import platform
import random
import re
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Collection, Hashable, Iterable, Mapping, Sequence
from pathlib import Path

import mmcv
import mmengine
import mmpretrain
import numpy
import torch
from mmengine.config import Config
from mmengine.logging import MMLogger
from torch import Tensor, nn
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile
from tqdm import tqdm

import mmpsvit
from mmpsvit.guard import write_atomically

CONFIGS = Path(__file__).resolve().parents[2] / 'configs' / 'psvit'
OURS = {path.stem: str(path) for path in sorted(CONFIGS.glob('*.py'))}
# Of weights, or autocast over float32 weights.
DTYPES = ('float32', 'amp-float16', 'amp-bfloat16', 'bfloat16')
Step = Callable[[], object]


def positive(text: str) -> int:
    """Type of an argument: a whole number of at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f'must be at least 1, got {text}')
    return int(text)


def _device(text: str) -> torch.device:
    """Type of an argument: a device that is there."""
    try:
        device = torch.device(text)
    except RuntimeError:
        raise argparse.ArgumentTypeError(f'{text!r} is no device') from None
    if device.type == 'cuda' and not torch.cuda.is_available():
        raise argparse.ArgumentTypeError('there is no CUDA device')
    return device


def make_parser(doc: str, runs: int) -> argparse.ArgumentParser:
    """A parser with the options that every benchmark has."""
    parser = argparse.ArgumentParser(description=doc.split('\n')[0])
    default = 'cuda' if torch.cuda.is_available() else 'cpu'
    parser.add_argument('--device', type=_device, default=default)
    parser.add_argument('--runs', type=positive, default=runs, help='timed rounds')
    parser.add_argument('--warmup', type=positive, default=3, help='steps not timed')
    parser.add_argument('--threads', type=positive, help='CPU threads')
    parser.add_argument('--out', help='writes OUT.json and OUT.md')
    return parser


def start(args: argparse.Namespace) -> None:
    """Set threads and seed; keep the remarks of OpenMMLab out of the report."""
    if args.threads:
        torch.set_num_threads(args.threads)
    if args.device.type == 'cuda' and args.device.index is not None:
        torch.cuda.set_device(args.device)
    torch.manual_seed(0)
    MMLogger.get_instance('benchmark', log_level='WARNING')


def autocast(device: torch.device, dtype: str) -> torch.autocast:
    """The mixed precision that one of ``DTYPES`` stands for, if it does."""
    half = torch.float16 if dtype == 'amp-float16' else torch.bfloat16
    return torch.autocast(device.type, half, enabled=dtype.startswith('amp'))


def input_size(cfg: Config) -> tuple[int, int]:
    """The size (H, W) that the test pipeline crops or resizes to, 224 if neither."""
    loader = cfg.get('test_dataloader') or {}
    size = 224
    for transform in loader.get('dataset', {}).get('pipeline', []):
        size = transform.get('crop_size', transform.get('scale', size))
    # mmcv's transforms name the width first.
    return (size, size) if isinstance(size, int) else tuple(size)[::-1]


def inference_step(forward: Callable, images: Tensor, dtype: str) -> Step:
    """Images to logits."""

    def infer() -> None:
        with torch.inference_mode(), autocast(images.device, dtype):
            forward(images)

    return infer


def training_step(
    forward: Callable, parameters: Iterable[nn.Parameter], images: Tensor, dtype: str
) -> Step:
    """Forward, label-smoothed cross entropy (of maps: their mean), backward and AdamW.

    No gradient is left after the step, so its peak memory has the gradients in it.
    """
    device = images.device
    # Fused, as networks are trained where it exists, and fit for a CUDA graph.
    fused = dict(fused=True, capturable=True) if device.type == 'cuda' else {}
    optimizer = torch.optim.AdamW(parameters, lr=1e-4, **fused)
    # Before PyTorch 2.3, there is one for CUDA only.
    scaler = getattr(torch, 'GradScaler', torch.cuda.amp.GradScaler)(
        enabled=dtype == 'amp-float16' and device.type == 'cuda'
    )
    labels = torch.zeros(len(images), dtype=torch.long, device=device)

    def train() -> None:
        with autocast(device, dtype):
            outs = forward(images)
            if isinstance(outs, Tensor):
                loss = F.cross_entropy(outs, labels, label_smoothing=0.1)
            else:
                loss = sum(out.float().mean() for out in outs)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad(set_to_none=True)

    return train


def clock(device: torch.device) -> float:
    """Seconds, read when the device has finished its work."""
    if device.type == 'cuda':
        torch.cuda.synchronize(device)
    return time.perf_counter()


def peak_bytes_of(step: Step, device: torch.device) -> int:
    """Peak memory of the tensors of a step, beyond what was in use before.

    What the allocator keeps for later, or a library takes for itself, does not count.
    """
    gc.collect()
    if device.type == 'cuda':
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        step()
        return torch.cuda.max_memory_allocated(device) - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step()
    # Before PyTorch 2.2, an event has its start in microseconds only.
    changes = sorted(
        ((event.start_ns if hasattr(event, 'start_ns') else event.start_us)(), size)
        for event in profiler.profiler.kineto_results.events()
        if event.name() == '[memory]' and (size := event.nbytes())
    )
    return max(itertools.accumulate((size for _, size in changes), initial=0))


def measure(
    steps: Mapping[Hashable, Step],
    args: argparse.Namespace,
    memory: Collection[Hashable] = (),
) -> dict[Hashable, dict]:
    """Warm all steps up, then time them round by round.

    Every round runs each step once, in another order, so that whatever else the
    machine does slows all of them.

    Args:
        steps (Mapping[Hashable, Step]): The steps by name.
        args (argparse.Namespace): The options ``runs``, ``warmup`` and ``device``.
        memory (Collection[Hashable]): The steps that are run once more for their peak
            memory. Defaults to none.

    Returns:
        dict[Hashable, dict]: By name, milliseconds (their median), quartiles (of
        them), and peak_MiB for the steps in ``memory``.
    """
    peaks, seconds = {}, {name: [] for name in steps}
    order = random.Random(0)
    for name, step in tqdm(steps.items(), 'warm-up', disable=None):
        for _ in range(args.warmup):
            step()
        if name in memory:
            peaks[name] = dict(peak_MiB=peak_bytes_of(step, args.device) / 2**20)
    for _ in tqdm(range(args.runs), 'rounds', disable=None):
        for name in order.sample(list(steps), len(steps)):
            begin = clock(args.device)
            steps[name]()
            seconds[name].append(1e3 * (clock(args.device) - begin))
    figures = {}
    for name, times in seconds.items():
        # One time alone has no quartiles.
        times = times * 2 if len(times) == 1 else times
        low, median, high = statistics.quantiles(times, n=4, method='inclusive')
        figures[name] = dict(milliseconds=median, quartiles=[low, high])
        figures[name].update(peaks.get(name, {}))
    return figures


def describe(device: torch.device) -> dict:
    """What the figures depend on: machine, versions, command, date."""
    name = platform.processor() or platform.machine()
    processors = Path('/proc/cpuinfo')
    if device.type == 'cuda':
        name = torch.cuda.get_device_name(device)
    elif processors.exists():
        names = re.findall(r'model name\s*: (.+)', processors.read_text())
        name = names[0] if names else name
    modules = (torch, numpy, mmengine, mmcv, mmpretrain, mmpsvit)
    versions = {module.__name__: module.__version__ for module in modules}
    return {
        'device': name,
        'threads': torch.get_num_threads(),
        'date': datetime.date.today().isoformat(),
        'command': shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        'versions': {'python': platform.python_version(), **versions},
    }


def _cell(value: object) -> str:
    if isinstance(value, (list, tuple)):
        return ' to '.join(map(_cell, value))
    if isinstance(value, float):
        return f'{value:.2f}' if abs(value) < 100 else f'{value:.1f}'
    return f'{value:,}' if isinstance(value, int) else str(value or '')


def markdown_table(rows: Sequence[Mapping]) -> list[str]:
    """Lines of a table; columns that say the same in several rows are left out."""
    cells = [{key: _cell(value) for key, value in row.items()} for row in rows]
    names = [
        name
        for name in dict.fromkeys(itertools.chain.from_iterable(cells))
        if len(cells) == 1 or len({row.get(name, '') for row in cells}) > 1
    ]
    lines = [[name.replace('_', ' ') for name in names]]
    lines.append(['---', *['---:'] * (len(names) - 1)])
    lines += [[row.get(name, '') for name in names] for row in cells]
    return [f'| {" | ".join(line)} |' for line in lines]


def report(title: str, args: argparse.Namespace, *tables: Sequence[Mapping]) -> None:
    """Print Markdown, and write it and the figures where ``--out`` asks for it.

    Args:
        title (str): What was measured.
        args (argparse.Namespace): The command line.
        *tables (Sequence[Mapping]): The rows of each table.
    """
    about = describe(args.device)
    versions = ', '.join(f'{key} {value}' for key, value in about['versions'].items())
    threads = f'{about["threads"]} CPU threads'
    lines = [f'{title} {about["device"]}, {threads}, {about["date"]}.', '']
    lines += [f'`{about["command"]}`', '', versions]
    for rows in filter(None, tables):
        lines += ['', *markdown_table(rows)]
    text = '\n'.join(lines) + '\n'
    print(text, end='')
    if args.out:
        settings = {key: value for key, value in vars(args).items() if key != 'out'}
        content = dict(about, settings=settings, results=tables[0], more=tables[1:])
        # Devices are written by their names.
        files = {'json': json.dumps(content, default=str), 'md': text}
        for suffix, written in files.items():
            with write_atomically(f'{args.out}.{suffix}') as temporary:
                temporary.write_text(written)
