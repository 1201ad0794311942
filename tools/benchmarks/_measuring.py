# Copyright (c) mmpsvit contributors.
"""What all benchmarks share: options, steps, timing, memory, tables and files."""

import argparse
import datetime
import gc
import itertools
import json
import os
import random
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Collection, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile
from tqdm import tqdm

from mmpsvit.compat import event_start, grad_scaler
from mmpsvit.engine.machine import processor_name, stack_versions
from mmpsvit.guard.files import AtomicBackend

CONFIGS = Path(__file__).resolve().parents[2] / 'configs' / 'psvit'
# Relative: a default that is printed and written has no folders of one machine.
DEFAULT_CONFIG = os.path.relpath(CONFIGS / 'b14.py')
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
    def median(self) -> float:
        """Median seconds."""
        return statistics.median(self.seconds)

    @property
    def quartiles(self) -> tuple[float, float]:
        """First and third quartile of the seconds."""
        if len(self.seconds) < 2:
            return self.median, self.median
        low, _, high = statistics.quantiles(self.seconds, n=4, method='inclusive')
        return low, high


def positive(text: str) -> int:
    """Type of an argument: a whole number of at least 1."""
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f'must be at least 1, got {text}')
    return value


def device_of(text: str) -> torch.device:
    """Type of an argument: a device that is there."""
    try:
        device = torch.device(text)
    except RuntimeError:
        raise argparse.ArgumentTypeError(f'{text!r} is no device') from None
    if device.type == 'cuda' and not torch.cuda.is_available():
        raise argparse.ArgumentTypeError('there is no CUDA device')
    return device


def add_device_argument(parser: argparse.ArgumentParser) -> None:
    """Add ``--device``."""
    default = 'cuda' if torch.cuda.is_available() else 'cpu'
    parser.add_argument('--device', type=device_of, default=default)


def add_common_arguments(parser: argparse.ArgumentParser, runs: str) -> None:
    """Add the options that every benchmark has; ``runs`` is the default in words."""
    parser.add_argument('--runs', type=positive, help=f'rounds; default: {runs}')
    parser.add_argument('--warmup', type=positive, default=2, help='steps not timed')
    parser.add_argument('--threads', type=positive, help='CPU threads')
    parser.add_argument('--out', help='writes OUT.json and OUT.md')


def add_amp_argument(parser: argparse.ArgumentParser) -> None:
    """Add ``--amp``."""
    parser.add_argument(
        '--amp', action='store_true', help='autocast: float16 on CUDA, else bfloat16'
    )


def autocast(device: torch.device, enabled: bool) -> torch.autocast:
    """Mixed precision as ``--amp`` has it."""
    half = torch.float16 if device.type == 'cuda' else torch.bfloat16
    return torch.autocast(device.type, half, enabled=enabled)


def inference_step(forward: Callable, images: Tensor, amp: bool) -> Step:
    """Images to logits."""

    def infer() -> None:
        with torch.inference_mode(), autocast(images.device, amp):
            forward(images)

    return infer


def training_step(
    forward: Callable, parameters: Iterable[nn.Parameter], images: Tensor, amp: bool
) -> Step:
    """Forward, label-smoothed cross entropy, backward and AdamW.

    No gradient is left after the step, so its peak memory has the gradients in it.
    """
    device = images.device
    optimizer = torch.optim.AdamW(parameters, lr=1e-4)
    scaler = grad_scaler(device.type, enabled=amp and device.type == 'cuda')
    labels = torch.zeros(len(images), dtype=torch.long, device=device)

    def train() -> None:
        with autocast(device, amp):
            loss = F.cross_entropy(forward(images), labels, label_smoothing=0.1)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad(set_to_none=True)

    return train


def seconds_of(step: Step, device: torch.device) -> float:
    """How long a step takes until the device has finished it."""
    if device.type == 'cuda':
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    step()
    if device.type == 'cuda':
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


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
    events = profiler.profiler.kineto_results.events()
    changes = sorted(
        (event_start(event), event.nbytes())
        for event in events
        if event.name() == '[memory]'
    )
    return max(itertools.accumulate((size for _, size in changes), initial=0))


def measure(
    steps: Mapping[Hashable, Step],
    runs: int,
    warmup: int,
    device: torch.device,
    memory: Collection[Hashable] = (),
) -> dict[Hashable, Figures]:
    """Warm all steps up, then time them round by round.

    Every round runs each step once, in another order, so that whatever else the
    machine does slows all of them.

    Args:
        steps (Mapping[Hashable, Step]): The steps by name.
        runs (int): Number of timed rounds.
        warmup (int): Untimed runs of each step beforehand.
        device (torch.device): Where the steps run.
        memory (Collection[Hashable]): The steps that are run once more for their peak
            memory. Defaults to none.

    Returns:
        dict[Hashable, Figures]: Figures by name.
    """
    figures = {name: Figures() for name in steps}
    order = random.Random(0)
    with tqdm(
        total=(warmup + runs) * len(steps) + len(memory), disable=None
    ) as progress:
        for name, step in steps.items():
            for _ in range(warmup):
                step()
                progress.update()
            if name in memory:
                figures[name].peak_bytes = peak_bytes_of(step, device)
                progress.update()
        for _ in range(runs):
            for name in order.sample(list(steps), len(steps)):
                figures[name].seconds.append(seconds_of(steps[name], device))
                progress.update()
    return figures


def describe(device: torch.device | None = None) -> dict:
    """What the figures depend on: machine, versions, command, date."""
    name = processor_name()
    if device is not None and device.type == 'cuda':
        name = torch.cuda.get_device_name(device)
    return {
        'device': name,
        'threads': torch.get_num_threads(),
        'date': datetime.date.today().isoformat(),
        'command': shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        'versions': stack_versions(),
    }


def heading(title: str, about: dict) -> list[str]:
    """The lines above a table: what it shows, and what it was measured with."""
    return [
        f'{title} {about["device"]}, {about["threads"]} CPU threads, {about["date"]}.',
        '',
        f'`{about["command"]}`',
        '',
        ', '.join(f'{key} {value}' for key, value in about['versions'].items()),
        '',
    ]


def markdown_table(header: Sequence[str], rows: Iterable[Sequence]) -> list[str]:
    """Lines of a table whose first column is left-aligned."""
    lines = [list(header), ['---', *['---:'] * (len(header) - 1)], *rows]
    return [f'| {" | ".join(map(str, line))} |' for line in lines]


def mebibytes(count: int | None) -> str:
    """Bytes as a cell of a table."""
    return '?' if count is None else f'{count / 2**20:.0f}'


def write(path: Path, content: str | bytes) -> None:
    """Write a file, which is then there in full or not at all."""
    data = content.encode() if isinstance(content, str) else content
    AtomicBackend().put(data, path)


def report(
    lines: Sequence[str], about: dict, args: argparse.Namespace, **results
) -> None:
    """Print Markdown, and write it and the figures where ``--out`` asks for it."""
    text = '\n'.join(lines) + '\n'
    print(text, end='')
    if args.out:
        settings = {key: value for key, value in vars(args).items() if key != 'out'}
        # Devices and dtypes are written by their names.
        content = json.dumps(dict(about, settings=settings, **results), default=str)
        write(Path(f'{args.out}.json'), content)
        write(Path(f'{args.out}.md'), text)
