# Copyright (c) mmpsvit contributors.
"""Reproduce the paper's claims in miniature, on cluttered digits and a CPU.

    python projects/miniature/run.py                       # everything
    python projects/miniature/run.py --only a b --seeds 5  # more seeds of some tables
    python projects/miniature/report.py                    # the page alone

It makes the data sets that are missing, trains the networks that have no result yet,
each on one core and several side by side, measures each when its training ends, and
writes OUT/results/RUN.json, plots and the page OUT/README.md. What has a result is not
done again; stop it as you like, the same command continues. plan.py says which runs
each table needs; of table f, README.md has the commands.
"""

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from functools import partial
from pathlib import Path

from plan import HERE, TABLES, Budget, Run, data_settings, plan_runs
from report import write_page
from tqdm import tqdm

from mmpsvit.guard import write_atomically

ROOT = HERE.parents[1]
TOOLS = ROOT / 'tools'
PICTURED = 'psvit_seed0'  # the run whose points the page shows


class RunError(RuntimeError):
    """Something cannot be done, for a reason that one line tells."""


class Commands:
    """Runs Python scripts from several threads, and leaves none behind."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running: set[subprocess.Popen] = set()
        self._stopped = False

    def run(self, log: Path, script: Path, *args, **environment) -> None:
        """Run a script on one core; its output is appended to a log.

        Raises:
            RunError: If it fails.
        """
        log.parent.mkdir(parents=True, exist_ok=True)
        environment |= {'OMP_NUM_THREADS': 1, 'MKL_NUM_THREADS': 1}
        with self._lock, log.open('a') as output:
            if self._stopped:
                raise RunError('stopped')
            process = subprocess.Popen(
                [sys.executable, *map(str, (script, *args))],
                env=os.environ | {key: str(environment[key]) for key in environment},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
            self._running.add(process)
        code = process.wait()
        with self._lock:
            self._running.discard(process)
        if code:
            raise RunError(f'{script.name} ended with code {code}, see {log}')

    def stop(self) -> None:
        """End the running scripts, and start no others."""
        with self._lock:
            self._stopped = True
            for process in self._running:
                process.terminate()


def make_data(canvas: int, args: argparse.Namespace, commands: Commands) -> str:
    """Make the data set of a canvas, or what is missing of it."""
    settings = {'size': canvas, **data_settings(canvas, args.budget)}
    options = [f'--{key.replace("_", "-")}={settings[key]}' for key in settings]
    maker = TOOLS / 'dataset_converters/make_cluttered_digits.py'
    log = args.work_dir / f'data_{canvas}.log'
    commands.run(log, maker, args.data / str(canvas), *options)
    return 'done'


def train(run: Run, args: argparse.Namespace, commands: Commands) -> str:
    """Train a network, or train it on, measure it, and write its result."""
    settings = run.settings()
    budget = '{steps}_{num_train}_{num_val}'.format(**vars(args.budget))
    work_dir = args.work_dir / budget / run.name
    log, measured = work_dir / 'output.log', work_dir / 'measured.json'
    path = os.environ.get('PYTHONPATH')
    # What the configs read.
    environment = {
        'PYTHONPATH': os.pathsep.join(filter(None, [str(ROOT), path])),
        'MINIATURE_CANVAS': settings['canvas'],
        'MINIATURE_STEPS': settings['steps'],
        'MINIATURE_LR': settings['lr'],
        'MINIATURE_DATA': args.data.resolve(),
    }
    options = ['--work-dir', work_dir, '--resume']
    options += ['--cfg-options', f'randomness.seed={run.seed}']
    commands.run(log, TOOLS / 'train.py', run.config, *options, **environment)
    options = [work_dir / f'iter_{settings["steps"]}.pth', measured]
    if run.name == PICTURED:
        options += ['--picture', args.out / 'points.png']
    commands.run(log, HERE / 'measure.py', run.config, *options, **environment)

    result = json.loads(measured.read_bytes())
    curve, seconds = read_log(work_dir)
    # The run may have been killed after its last step, but before validation.
    curve[settings['steps']] = end = result.pop('accuracy')
    half = curve[min(curve, key=lambda step: abs(step - settings['steps'] / 2))]
    figures = {
        'accuracy': {'half': half, 'end': end},
        'curve': sorted(curve.items()),
        'seconds_per_step': round(seconds, 4),
    }
    result = {'run': run.name, 'settings': settings, **figures, **result}
    with write_atomically(result_path(run, args)) as temporary:
        temporary.write_text(json.dumps(result, indent=1) + '\n')
    return f'{end:.1f} %, at half {half:.1f} %'


def read_log(work_dir: Path) -> tuple[dict[int, float], float]:
    """The accuracy in percent by training step, and the median seconds of a step."""
    accuracies, seconds = {}, []
    # In order of time: a resumed training logs anew.
    for path in sorted(work_dir.glob('*/vis_data/scalars.json')):
        for text in path.read_text().split('\n'):
            # A killed process may leave half a line.
            line = json.loads(text) if text.endswith('}') else {}
            if 'accuracy/top1' in line:
                # MMEngine has them in single precision.
                accuracies[line['step']] = round(line['accuracy/top1'], 3)
            elif 'loss' in line:
                seconds.append(line['time'])
    return accuracies, statistics.median(seconds)


def result_path(run: Run, args: argparse.Namespace) -> Path:
    """The result file of a run."""
    return args.out / 'results' / f'{run.name}.json'


def is_missing(run: Run, args: argparse.Namespace) -> bool:
    """Whether a run has no result.

    Raises:
        RunError: If it has one with other settings.
    """
    path, new = result_path(run, args), run.settings()
    if not path.exists():
        return True
    old = json.loads(path.read_bytes())['settings']
    texts = [f'{k} was {old.get(k)}, now {new[k]}' for k in new if old.get(k) != new[k]]
    if texts:
        raise RunError(f'{path}: {", ".join(texts)}; choose another --out')
    return False


def do_all(
    calls: dict[str, Callable[[], str]], jobs: int, commands: Commands, before: int = 0
) -> int:
    """Make calls side by side, and tell what comes out of each; return how many failed.

    However this ends, no command is left running.

    Args:
        calls (dict[str, Callable]): The calls, by what the user calls them.
        jobs (int): How many to make at once.
        commands (Commands): What the calls run.
        before (int): How many were done earlier, for the count. Defaults to 0.
    """
    failed = 0
    with ThreadPoolExecutor(jobs) as pool:
        names = {pool.submit(call): name for name, call in calls.items()}
        ended = tqdm(as_completed(names), total=len(calls), disable=None, leave=False)
        try:
            for number, future in enumerate(ended, before + 1):
                try:
                    text = future.result()
                except RunError as error:
                    failed += 1
                    text = f'error: {error}'
                count = f'[{number} of {before + len(calls)}]'
                tqdm.write(f'{count} {names[future]}: {text}')
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            commands.stop()
            raise
    return failed


def do_missing(args: argparse.Namespace) -> int:
    """Do what has no result yet; return how many runs failed."""
    runs = plan_runs(args.only, args.seeds, args.budget)
    missing = [run for run in runs if is_missing(run, args)]
    commands = Commands()
    canvases = sorted({run.training.canvas for run in missing}, reverse=True)
    calls = {f'data of {c} px': partial(make_data, c, args, commands) for c in canvases}
    if do_all(calls, args.jobs, commands):
        raise RunError('the data sets could not be made')
    calls = {run.name: partial(train, run, args, commands) for run in missing}
    return do_all(calls, args.jobs, commands, before=len(runs) - len(missing))


def positive(text: str) -> int:
    """An integer of at least 1 from the command line."""
    if int(text) < 1:
        raise ValueError
    return int(text)


def parse_args() -> argparse.Namespace:
    """Parse and check the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__.split('\n')[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add, number = parser.add_argument, {'type': positive}
    add('--only', nargs='+', choices=TABLES, default=list(TABLES), help='tables')
    add('--seeds', **number, help='of each training; by default as in plan.py')
    add('--jobs', **number, default=os.cpu_count(), help='runs side by side')
    add('--steps', **number, default=Budget.steps, help='of 64 images')
    add('--num-train', **number, default=Budget.num_train, help='training images')
    add('--num-val', **number, default=Budget.num_val, help='validation images')
    add('--out', type=Path, default=HERE, help='folder of page and results')
    add('--work-dir', type=Path, default='work_dirs/miniature', help='of the trainings')
    add('--data', type=Path, default='data/miniature', help='folder of the data sets')
    args = parser.parse_args()
    args.budget = Budget(args.steps, args.num_train, args.num_val)
    return args


def main() -> None:
    """Train what is missing, then write the page."""
    args = parse_args()
    # Commands are stopped on the way out.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        failed = do_missing(args)
    except KeyboardInterrupt:
        print('\nstopped; the same command continues', file=sys.stderr)
        sys.exit(130)
    except RunError as error:
        sys.exit(f'run.py: error: {error}')
    print(f'page: {write_page(args.out)}')
    if failed:
        sys.exit(f'run.py: error: {failed} of the runs failed')


if __name__ == '__main__':
    main()
