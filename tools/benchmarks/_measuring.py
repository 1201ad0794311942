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
from dataclasses import dataclass, field
from pathlib import Path

import mmcv
import mmengine
import mmpretrain
import numpy
import torch
import torchvision
from mmengine.config import Config
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


@dataclass
class Figures:
    """What was measured of one step.

    Attributes:
        seconds (list[float]): The time of each round.
        peak_bytes (int | None): Peak memory beyond what was in use before the step;
            None where it was not measured.
    """

    seconds: list[float] = field(default_factory=list)
    peak_bytes: int | None = None

    @property
    def milliseconds(self) -> float:
        """Median milliseconds."""
        return 1e3 * statistics.median(self.seconds)

    @property
    def quartiles(self) -> list[float]:
        """First and third quartile of the milliseconds."""
        if len(self.seconds) < 2:
            return [self.milliseconds, self.milliseconds]
        low, _, high = statistics.quantiles(self.seconds, n=4, method='inclusive')
        return [1e3 * low, 1e3 * high]


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


def add_common_arguments(parser: argparse.ArgumentParser, runs: int) -> None:
    """Add the options that every benchmark has."""
    default = 'cuda' if torch.cuda.is_available() else 'cpu'
    parser.add_argument('--device', type=_device, default=default)
    parser.add_argument('--runs', type=positive, default=runs, help='timed rounds')
    parser.add_argument('--warmup', type=positive, default=3, help='steps not timed')
    parser.add_argument('--threads', type=positive, help='CPU threads')
    parser.add_argument('--out', help='writes OUT.json and OUT.md')


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
    height, width = (size, size) if isinstance(size, int) else size
    return height, width


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
    optimizer = torch.optim.AdamW(parameters, lr=1e-4)
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
) -> dict[Hashable, Figures]:
    """Warm all steps up, then time them round by round.

    Every round runs each step once, in another order, so that whatever else the
    machine does slows all of them.

    Args:
        steps (Mapping[Hashable, Step]): The steps by name.
        args (argparse.Namespace): The options ``runs``, ``warmup`` and ``device``.
        memory (Collection[Hashable]): The steps that are run once more for their peak
            memory. Defaults to none.

    Returns:
        dict[Hashable, Figures]: Figures by name.
    """
    figures = {name: Figures() for name in steps}
    order = random.Random(0)
    for name, step in tqdm(steps.items(), 'warm-up', disable=None):
        for _ in range(args.warmup):
            step()
        if name in memory:
            figures[name].peak_bytes = peak_bytes_of(step, args.device)
    for _ in tqdm(range(args.runs), 'rounds', disable=None):
        for name in order.sample(list(steps), len(steps)):
            start = clock(args.device)
            steps[name]()
            figures[name].seconds.append(clock(args.device) - start)
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
    modules = (torch, torchvision, numpy, mmengine, mmcv, mmpretrain, mmpsvit)
    versions = {module.__name__: module.__version__ for module in modules}
    return {
        'device': name,
        'threads': torch.get_num_threads(),
        'date': datetime.date.today().isoformat(),
        'command': shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        'versions': {'python': platform.python_version(), **versions},
    }


def markdown_table(rows: Sequence[Mapping], keep: Collection[str] = ()) -> list[str]:
    """Lines of a table; columns that say the same in all rows are left out.

    Args:
        rows (Sequence[Mapping]): The cells of each row by column.
        keep (Collection[str]): Columns that are never left out. Defaults to none.
    """
    names = [
        name
        for name in dict.fromkeys(itertools.chain.from_iterable(rows))
        if name in keep or len({str(row.get(name, '')) for row in rows}) > 1
    ]
    lines = [names, ['---', *['---:'] * (len(names) - 1)]]
    lines += [[str(row.get(name, '')) for name in names] for row in rows]
    return [f'| {" | ".join(line)} |' for line in lines]


def mebibytes(count: int | None) -> str:
    """Bytes as a cell of a table."""
    return '' if count is None else f'{count / 2**20:.0f}'


def report(
    title: str, lines: Sequence[str], args: argparse.Namespace, **results
) -> None:
    """Print Markdown, and write it and the figures where ``--out`` asks for it."""
    about = describe(args.device)
    versions = ', '.join(f'{key} {value}' for key, value in about['versions'].items())
    threads = f'{about["threads"]} CPU threads'
    title = f'{title} {about["device"]}, {threads}, {about["date"]}.'
    lines = [title, '', f'`{about["command"]}`', '', versions, '', *lines]
    text = '\n'.join(lines) + '\n'
    print(text, end='')
    if args.out:
        settings = {key: value for key, value in vars(args).items() if key != 'out'}
        # Devices are written by their names.
        content = json.dumps(dict(about, settings=settings, **results), default=str)
        for suffix, written in (('json', content), ('md', text)):
            with write_atomically(f'{args.out}.{suffix}') as temporary:
                temporary.write_text(written)
