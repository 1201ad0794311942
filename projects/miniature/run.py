# Copyright (c) mmpsvit contributors.
"""Train the small networks of these pages, and write their results.

    python projects/miniature/run.py                    # what has no result yet
    python projects/miniature/run.py --only a controls  # of some experiments
    python projects/miniature/run.py --out OUT          # anew, into another folder
    python projects/miniature/report.py                 # the tables of the pages

plan.py says what belongs to which experiment. Trainings run side by side, each on one
core, most of them for four to fifteen minutes; all of them take days. On a GPU,
`--group 7` trains seven networks at once, in half a minute. The results are lines of
JSON in OUT/*.jsonl. What has a result there is not trained again; stop it as you like,
the same command goes on. One command at a time for each OUT.
"""

# isort: off
import mmpsvit  # noqa: F401  First: it says what to install if something is missing.
# isort: on

import argparse
import datetime
import functools
import json
import os
import platform
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from multiprocessing import active_children, get_context, parent_process
from pathlib import Path

import torch
from mmengine.logging import MMLogger
from plan import (
    ELASTIC,
    EXPERIMENTS,
    HERE,
    POINTS,
    ROOT,
    Run,
    Training,
    accuracy,
    read_results,
)
from trainer import Images, Settings, Trainer, make_images, train_together

from mmpsvit.guard import write_atomically

MODULES = ('torch', 'torchvision', 'numpy', 'mmengine', 'mmcv', 'mmpretrain', 'mmpsvit')
MEASURE_EVERY = 100  # steps; in schedules of another length as often
DEFAULT_OUT = HERE / 'results'
PICTURED = Run(Training('psvit'), 0)  # the points of README.md


@functools.lru_cache(maxsize=1)
def images_of(data: Settings, device: str, jobs: int) -> dict[str, Images]:
    """A data set, on a device."""
    made = make_images(data, jobs)
    return {split: each.to(torch.device(device)) for split, each in made.items()}


@functools.cache
def git_state() -> dict:
    """The commit of this code, and whether the code differs from it."""
    git = ['git', '-C', str(ROOT)]
    code = ['mmpsvit', 'configs', 'tools', 'projects/miniature/*.py']
    commands = [[*git, 'rev-parse', 'HEAD'], [*git, 'status', '--porcelain', *code]]
    try:
        commit, changes = (subprocess.check_output(c, text=True) for c in commands)
    except (OSError, subprocess.CalledProcessError):  # not a clone
        return {'commit': None, 'dirty': None}
    return {'commit': commit.strip(), 'dirty': bool(changes)}


def describe_setting(device: str) -> dict:
    """What the figures were computed with on a device, and when."""
    path, cpu = Path('/proc/cpuinfo'), platform.processor()
    for line in path.read_text().split('\n') if path.exists() else ():
        if line.startswith('model name'):
            cpu = line.split(':')[1].strip()
    versions = {name: sys.modules[name].__version__ for name in MODULES}
    machine = {'cpu': cpu, 'cores': os.cpu_count(), 'system': platform.system()}
    if device == 'cuda':
        machine['gpu'] = torch.cuda.get_device_name()
    return {
        'code': git_state(),
        'versions': {'python': platform.python_version(), **versions},
        'machine': machine,
        'date': datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
    }


def train(args: argparse.Namespace, group: list[Run]) -> list[dict]:
    """Train some networks of one data set side by side; return their results."""
    MMLogger.get_instance('miniature', log_level='WARNING')
    about = describe_setting(args.device)
    # One of several has one core.
    cores = os.cpu_count() if args.jobs == 1 else 1
    images = images_of(Settings(**group[0].training.data), args.device, cores)
    trainers = [Trainer(run.training.config(), run.seed, images) for run in group]
    length = group[0].training.length
    measures = max(1, round(trainers[0].steps / length / MEASURE_EVERY))
    curves = train_together(trainers, measures)
    results = []
    for run, trainer, curve in zip(group, trainers, curves, strict=True):
        result = {**run.key(), 'curve': curve}
        if run.training.network in ELASTIC:
            result['at_points'] = trainer.measure_points(POINTS)
        result['parameters'] = sum(p.numel() for p in trainer.model.parameters())
        results.append({**result, **about})
        if args.save:
            key = (str(value) for value in run.key().values() if value is not None)
            name = '_'.join(key) + '.pth'
            with write_atomically(args.save / name) as temporary:
                torch.save({'state_dict': trainer.model.state_dict()}, temporary)
        if run == PICTURED:
            folder = HERE if args.out == DEFAULT_OUT else args.out
            with write_atomically(folder / 'points.png') as temporary:
                figure = trainer.draw_points()
                figure.savefig(temporary, dpi=100, metadata={'Software': None})
    return results


def groups_of(runs: Sequence[Run], size: int) -> list[list[Run]]:
    """Runs that are trained side by side, of one data set each, in order."""
    groups: list[list[Run]] = []
    for run in runs:
        fits = (g for g in groups if g[0].training.data == run.training.data)
        group = next((g for g in fits if len(g) < size), None)
        if group is None:
            groups.append(group := [])
        group.append(run)
    return groups


def do_missing(args: argparse.Namespace, train_all: Callable) -> None:
    """Train what has no result yet, and append the results to a file.

    Args:
        args (argparse.Namespace): The command line.
        train_all (Callable): Calls a function with each item, like ``map``.
    """
    for name in args.only:
        # An experiment may depend on the results of others.
        results = read_results(args.out)
        missing = [
            run
            for run in dict.fromkeys(EXPERIMENTS[name](results))
            if run.seed not in results.get(run.training, {})
        ]
        for found in train_all(partial(train, args), groups_of(missing, args.group)):
            lines = ''.join(f'{json.dumps(result)}\n' for result in found)
            # In one write: what is killed leaves no half of a line.
            path = args.out / f'{args.device}.jsonl'
            with path.open('ab', buffering=0) as file:
                file.write(lines.encode())
            for result in found:
                seed, end = result['seed'], accuracy(result)
                text = f'{name}: {result["network"]}, seed {seed}: {end:.1f} %'
                print(text, flush=True)


def parse_args() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    add = parser.add_argument
    device = 'cuda' if torch.cuda.is_available() else 'cpu'
    add('--only', nargs='+', choices=EXPERIMENTS, default=list(EXPERIMENTS))
    add('--out', type=Path, default=DEFAULT_OUT, help='folder of the results')
    add('--device', choices=['cpu', 'cuda'], default=device)
    add('--jobs', type=int, help='processes; default: one for each core, on a GPU 1')
    add('--group', type=int, default=1, help='networks trained at once in each')
    add('--save', type=Path, help='folder for the weights of what is trained now')
    args = parser.parse_args()
    args.out = args.out.resolve()
    args.jobs = args.jobs or (1 if args.device == 'cuda' else os.cpu_count())
    for folder in filter(None, (args.out, args.save)):
        folder.mkdir(parents=True, exist_ok=True)
    return args


def start_process() -> None:
    """One core each; they end with the process that started them, however it ends."""
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of which that process tells
    threading.Thread(target=end_with_parent, daemon=True).start()


def end_with_parent() -> None:
    """Wait until the process that started this one has ended, and end."""
    parent_process().join()
    os._exit(1)


def map_unordered(
    pool: ProcessPoolExecutor, function: Callable, items: Iterable
) -> Iterator:
    """``map`` in processes, each result as soon as it is there."""
    futures = [pool.submit(function, item) for item in items]
    return (future.result() for future in as_completed(futures))


def main() -> None:
    """Train in this process, or in several of one core each."""
    args = parse_args()
    # The processes end with this one.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        if args.jobs == 1:
            do_missing(args, map)
            return
        pool = ProcessPoolExecutor(args.jobs, get_context('spawn'), start_process)
        try:
            do_missing(args, partial(map_unordered, pool))
        finally:  # the pool would wait for what still runs
            for process in active_children():
                process.terminate()
    except KeyboardInterrupt:
        sys.exit('\nstopped; the same command goes on')
    except BrokenProcessPool:
        sys.exit(
            'error: a process was killed, for its memory perhaps: with fewer --jobs, '
            'the same command goes on'
        )


if __name__ == '__main__':
    main()
