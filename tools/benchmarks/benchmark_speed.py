# Copyright (c) mmpsvit contributors.
"""Time networks side by side: inference, or with --train a whole training step.

    python tools/benchmarks/benchmark_speed.py --out speed
    python tools/benchmarks/benchmark_speed.py configs/psvit/b14.py deit-b --train

A model is a config file, a name of MMPretrain's model index, `torchvision:NAME`, or
one of the short names below. Every round runs each model once, in another order, so
that whatever else the machine does slows all of them; figures are medians over the
rounds. Images are random and on the device already. Inference ends with the logits; a
training step is forward, label-smoothed cross entropy, backward and AdamW.
"""

# isort: off
import mmpsvit
# isort: on

import argparse
import ctypes
import datetime
import gc
import json
import os
import platform
import random
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import mmcv
import mmengine
import mmpretrain
import torch
import torchvision
from mmengine.config import Config
from mmengine.logging import MMLogger
from torch import Tensor, nn
from torch.nn import functional as F

from mmpsvit.engine.cli import read_config

CONFIGS = Path(__file__).resolve().parents[2] / 'configs' / 'psvit'
# Peers of the paper's Table 9. MMPretrain has no RegNetY.
ALIASES = {
    'deit-s': 'deit-small_4xb256_in1k',
    'deit-b': 'deit-base_16xb64_in1k',
    'vit-b16-384': 'vit-base-p16_in21k-pre_3rdparty_in1k-384px',
    'resnet18': 'resnet18_8xb32_in1k',
    'resnet50': 'resnet50_8xb32_in1k',
    'resnet101': 'resnet101_8xb32_in1k',
    'regnety-8gf': 'torchvision:regnet_y_8gf',
}
DEFAULT = [
    *(str(CONFIGS / f'{name}.py') for name in ('ti14', 'b10', 'b14', 'b18')),
    *ALIASES,
]
# The paper's ratios of images/s in inference: one V100, batch 128, mean of 50 runs.
PAPER = {('b14', 'deit-b'): 2.0, ('b10', 'vit-b16-384'): 13.7}


@dataclass
class Candidate:
    """A model in the race.

    Attributes:
        name (str): Its name in the table.
        forward (Callable): Images to logits.
        model (nn.Module): What ``forward`` runs.
        shape (tuple[int, int]): Size (H, W) of its images.
        step (Callable): One step of what is timed.
        peak_bytes (int | None): Peak memory of a step beyond weights and optimizer.
        seconds (list[float]): The time of each round.
    """

    name: str
    forward: Callable[[Tensor], Tensor]
    model: nn.Module
    shape: tuple[int, int]
    step: Callable[[], None] = field(default=lambda: None)
    peak_bytes: int | None = None
    seconds: list[float] = field(default_factory=list)


def input_size(cfg: Config) -> tuple[int, int]:
    """The size that the test pipeline crops or resizes to, 224 if it does neither."""
    loader = cfg.get('test_dataloader') or {}
    size = 224
    for transform in loader.get('dataset', {}).get('pipeline', []):
        size = transform.get('crop_size', transform.get('scale', size))
    height, width = (size, size) if isinstance(size, int) else size
    return height, width


def build_candidate(parser: argparse.ArgumentParser, name: str) -> Candidate:
    """Build a model from what the user calls it; its weights are random."""
    full = ALIASES.get(name, name)
    if full.endswith('.py'):
        cfg = read_config(parser, full)
        path = Path(full).resolve()
        name = path.stem if path.parent == CONFIGS else full
        model = mmpretrain.get_model(cfg)
    elif full.startswith('torchvision:'):
        if full.split(':')[1] not in torchvision.models.list_models(torchvision.models):
            parser.error(f'argument models: torchvision has no classifier {full!r}')
        model = torchvision.models.get_model(full.split(':')[1])
        return Candidate(name, model, model, (224, 224))
    elif full in mmpretrain.list_models():
        model = mmpretrain.get_model(full)
        cfg = model._config
    else:
        parser.error(
            f'argument models: {name!r} is no config file, no name of MMPretrain and '
            f'none of {", ".join(ALIASES)}'
        )
    return Candidate(
        name, lambda images: model(images, mode='tensor'), model, input_size(cfg)
    )


def prepare(candidate: Candidate, args: argparse.Namespace) -> None:
    """Give a candidate the step that is timed."""
    device = torch.device(args.device)
    layout = torch.channels_last if args.channels_last else torch.contiguous_format
    model = candidate.model.to(device, memory_format=layout).train(args.train)
    if args.shape:
        candidate.shape = (args.shape[0], args.shape[-1])
    images = torch.rand(args.batch_size, 3, *candidate.shape, device=device)
    images = images.to(memory_format=layout)
    forward = torch.compile(candidate.forward) if args.compile else candidate.forward
    half = torch.float16 if device.type == 'cuda' else torch.bfloat16

    def autocast() -> torch.autocast:
        return torch.autocast(device.type, half, enabled=args.amp)

    if not args.train:

        def infer() -> None:
            with torch.inference_mode(), autocast():
                forward(images)

        candidate.step = infer
        return

    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    scaler = torch.GradScaler(device.type, enabled=args.amp and half == torch.float16)
    labels = torch.zeros(args.batch_size, dtype=torch.long, device=device)

    def train() -> None:
        optimizer.zero_grad(set_to_none=True)
        with autocast():
            loss = F.cross_entropy(forward(images), labels, label_smoothing=0.1)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()

    candidate.step = train


def seconds_of(step: Callable[[], None], device: torch.device) -> float:
    """How long a step takes until the device has finished it."""
    if device.type == 'cuda':
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    step()
    if device.type == 'cuda':
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def _status_bytes(name: str) -> int:
    """A figure of this process's memory, as Linux counts it."""
    lines = Path('/proc/self/status').read_text().split('\n')
    (value,) = [line.split()[1] for line in lines if line.startswith(name)]
    return 1024 * int(value)


def peak_bytes_of(step: Callable[[], None], device: torch.device) -> int | None:
    """Peak memory of a step beyond what was in use before, None where unknown."""
    if device.type == 'cuda':
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        step()
        return torch.cuda.max_memory_allocated(device) - before
    gc.collect()
    try:
        # What the allocator keeps for itself would hide what the step needs.
        ctypes.CDLL('libc.so.6').malloc_trim(0)
        Path('/proc/self/clear_refs').write_text('5')  # resets the peak
        before = _status_bytes('VmRSS:')
    except OSError:  # not Linux
        return None
    step()
    return _status_bytes('VmHWM:') - before


def measure(candidates: list[Candidate], args: argparse.Namespace) -> None:
    """Warm all candidates up, then time them round by round."""
    device = torch.device(args.device)
    for candidate in candidates:
        for _ in range(args.warmup):
            candidate.step()
        candidate.peak_bytes = peak_bytes_of(candidate.step, device)
    order = random.Random(0)
    started = time.monotonic()
    for index in range(args.runs):
        for candidate in order.sample(candidates, len(candidates)):
            candidate.seconds.append(seconds_of(candidate.step, device))
        if sys.stderr.isatty():
            left = (time.monotonic() - started) / (index + 1) * (args.runs - index - 1)
            sys.stderr.write(f'\rround {index + 1} of {args.runs}, {left:.0f} s left ')
    if sys.stderr.isatty():
        sys.stderr.write('\r\033[K')


def rows_of(candidates: list[Candidate], args: argparse.Namespace) -> list[dict]:
    """The figures of each candidate, also those relative to the baseline."""
    speeds = {
        c.name: args.batch_size / statistics.median(c.seconds) for c in candidates
    }
    return [
        {
            'model': c.name,
            'height': c.shape[0],
            'width': c.shape[1],
            'parameters': sum(p.numel() for p in c.model.parameters()),
            'images_per_second': speeds[c.name],
            'milliseconds': 1e3 * statistics.median(c.seconds),
            'milliseconds_quartiles': [1e3 * q for q in _quartiles(c.seconds)],
            'peak_bytes': c.peak_bytes,
            'ratio': speeds[c.name] / speeds[args.baseline],
            'paper_ratio': None if args.train else PAPER.get((c.name, args.baseline)),
            'seconds': c.seconds,
        }
        for c in candidates
    ]


def _quartiles(values: list[float]) -> tuple[float, float]:
    if len(values) < 2:
        return values[0], values[0]
    low, _, high = statistics.quantiles(values, n=4, method='inclusive')
    return low, high


def markdown_of(rows: list[dict], args: argparse.Namespace, about: dict) -> str:
    """The table, what it was measured with, and the paper's other ratios."""
    what = 'training steps' if args.train else 'inference'
    options = [
        option
        for option, given in (
            ('autocast', args.amp),
            ('channels_last', args.channels_last),
            ('torch.compile', args.compile),
        )
        if given
    ]
    text = [
        f'Speed of {what}: batch {args.batch_size}, '
        f'{", ".join(options) or "float32, NCHW"}, medians of {args.runs} interleaved '
        f'rounds. {about["device"]}, {about["threads"]} CPU threads, {about["date"]}.',
        '',
        f'`{about["command"]}`',
        '',
        ', '.join(f'{key} {value}' for key, value in about['versions'].items()),
        '',
        '| model | px | parameters | images/s | ms, quartiles | peak memory, MiB | '
        f'to {args.baseline} | paper |',
        '| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |',
    ]
    for row in rows:
        low, high = row['milliseconds_quartiles']
        size = row['height'], row['width']
        peak, paper = row['peak_bytes'], row['paper_ratio']
        text.append(
            f'| {row["model"]} | {size[0] if size[0] == size[1] else size} '
            f'| {row["parameters"]:,} | {row["images_per_second"]:.1f} '
            f'| {row["milliseconds"]:.1f}, {low:.1f} to {high:.1f} '
            f'| {"?" if peak is None else f"{peak / 2**20:.0f}"} '
            f'| {row["ratio"]:.2f} | {paper or ""} |'
        )
    speeds = {row['model']: row['images_per_second'] for row in rows}
    for (model, peer), paper in PAPER.items():
        if peer != args.baseline and not args.train and {model, peer} <= set(speeds):
            text += [
                '',
                f'{model} to {peer}: {speeds[model] / speeds[peer]:.2f} here, {paper} '
                'in the paper.',
            ]
    text += ['', 'The paper: one V100, batch 128. Peak memory is beyond the weights.']
    return '\n'.join(text) + '\n'


def describe(args: argparse.Namespace) -> dict:
    """What the figures depend on."""
    device = torch.device(args.device)
    name = platform.processor() or platform.machine()
    if device.type == 'cuda':
        name = torch.cuda.get_device_name(device)
    modules = (torch, torchvision, mmengine, mmcv, mmpretrain, mmpsvit)
    versions = {module.__name__: module.__version__ for module in modules}
    return {
        'device': name,
        'threads': torch.get_num_threads(),
        'date': datetime.date.today().isoformat(),
        'command': ' '.join(['benchmark_speed.py', *sys.argv[1:]]),
        'versions': {'python': platform.python_version(), **versions},
    }


def write(path: Path, text: str) -> None:
    """Write a file under a temporary name, then rename it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f'.{os.getpid()}.{path.name}')
    temporary.write_text(text, encoding='utf-8')
    temporary.replace(path)


def parse_args() -> tuple[argparse.Namespace, argparse.ArgumentParser]:
    """Parse the command line; what depends on the device is filled in."""
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument(
        'models',
        nargs='*',
        default=DEFAULT,
        help=f"configs or names (default: the paper's Table 9; {', '.join(ALIASES)})",
    )
    cuda = torch.cuda.is_available()
    parser.add_argument('--device', default='cuda' if cuda else 'cpu')
    parser.add_argument('--train', action='store_true', help='time training steps')
    parser.add_argument('--batch-size', type=int, help='default: 128 on CUDA, else 8')
    parser.add_argument('--runs', type=int, help='rounds; default: 50 on CUDA, else 10')
    parser.add_argument('--warmup', type=int, default=2, help='steps not timed')
    parser.add_argument('--shape', type=int, nargs='+', help='H W, or one number')
    parser.add_argument('--threads', type=int, help='CPU threads')
    parser.add_argument(
        '--amp', action='store_true', help='autocast: float16 on CUDA, else bfloat16'
    )
    parser.add_argument('--channels-last', action='store_true', help='of all models')
    parser.add_argument('--compile', action='store_true', help='torch.compile')
    parser.add_argument('--baseline', help='what ratios are to (default: deit-b)')
    parser.add_argument('--out', help='writes OUT.json and OUT.md')
    args = parser.parse_args()
    try:
        on_cuda = torch.device(args.device).type == 'cuda'
    except RuntimeError:
        parser.error(f'argument --device: {args.device!r} is no device')
    if on_cuda and not cuda:
        parser.error('argument --device: there is no CUDA device')
    args.batch_size = (
        (128 if on_cuda else 8) if args.batch_size is None else args.batch_size
    )
    args.runs = (50 if on_cuda else 10) if args.runs is None else args.runs
    for name in ('batch_size', 'runs', 'warmup', 'threads'):
        value = getattr(args, name)
        if value is not None and value < 1:
            option = name.replace('_', '-')
            parser.error(f'argument --{option}: must be at least 1, got {value}')
    if args.shape and (len(args.shape) > 2 or min(args.shape) < 1):
        parser.error(f'argument --shape: H W or one number > 0, got {args.shape}')
    if args.threads:
        torch.set_num_threads(args.threads)
    return args, parser


def main() -> None:
    """Measure, print the table, and write what ``--out`` asks for."""
    args, parser = parse_args()
    # Otherwise MMPretrain's remarks stand before the table.
    MMLogger.get_instance('benchmark_speed', log_level='WARNING')
    torch.manual_seed(0)
    candidates = [build_candidate(parser, name) for name in dict.fromkeys(args.models)]
    names = [candidate.name for candidate in candidates]
    if args.baseline is None:
        args.baseline = 'deit-b' if 'deit-b' in names else names[0]
    if args.baseline not in names:
        parser.error(
            f'argument --baseline: {args.baseline!r} is none of the models, {names}'
        )
    for candidate in candidates:
        prepare(candidate, args)
    measure(candidates, args)
    rows, about = rows_of(candidates, args), describe(args)
    table = markdown_of(rows, args, about)
    print(table, end='')
    if args.out:
        settings = {key: value for key, value in vars(args).items() if key != 'out'}
        result = dict(about, settings=settings, results=rows)
        write(Path(f'{args.out}.json'), json.dumps(result, indent=1))
        write(Path(f'{args.out}.md'), table)


if __name__ == '__main__':
    main()
