# Copyright (c) mmpsvit contributors.
"""Reproduce the paper's claims in miniature, on cluttered digits and a CPU.

    python tools/reproduce_mini.py                       # everything
    python tools/reproduce_mini.py --only a,b --seeds 5  # more seeds of some tables
    python tools/reproduce_mini.py --collect-only        # the page alone

It makes the data sets that are missing, trains the networks that have no result yet,
each on one core and several side by side, measures each when its training ends, and
writes OUT/results/RUN.json, plots and the page OUT/README.md. What has a result is not
done again; stop it as you like, the same command continues.

Experiments: a PS-ViT against ViT (the paper's Table 7), b two controls, c iterations
(Table 6), d points (Table 5), e shared weights (Table 8), f cost, g growing canvas and
clutter, h twice the learning rate; long: the ViT and the better control with five times
the steps.
"""

# isort: off
import mmpsvit  # noqa: F401  First: it says what to install if something is missing.
# isort: on

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from miniature.jobs import Folders, data_jobs, speed_job, training_job
from miniature.plan import (
    CONTROLS,
    LETTERS,
    Budget,
    Point,
    Run,
    plan_long_runs,
    plan_runs,
)
from miniature.pool import JobError, run_jobs
from miniature.report import write_report
from miniature.results import WorkDir, better_control, read_result
from mmengine.logging import MMLogger


def parse_args() -> argparse.Namespace:
    """Parse and check the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__.split('\n')[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument(
        '--only', default=','.join(LETTERS), help='experiments, separated by commas'
    )
    parser.add_argument(
        '--seeds', type=int, help='seeds of each point (default: 3, of d, g and h 1)'
    )
    parser.add_argument(
        '--jobs', type=int, default=os.cpu_count(), help='runs side by side'
    )
    parser.add_argument('--steps', type=int, default=Budget.steps, help='of 64 images')
    parser.add_argument(
        '--num-train', type=int, default=Budget.num_train, help='training images'
    )
    parser.add_argument(
        '--num-val', type=int, default=Budget.num_val, help='validation images'
    )
    parser.add_argument(
        '--out', type=Path, default='docs/miniature', help='folder of page and results'
    )
    parser.add_argument(
        '--work-dir', type=Path, default='work_dirs/miniature', help='of the trainings'
    )
    parser.add_argument(
        '--data', type=Path, default='data/miniature', help='folder of the data sets'
    )
    parser.add_argument(
        '--collect-only', action='store_true', help='write the page from the results'
    )
    args = parser.parse_args()
    args.only = args.only.split(',')
    for letter in args.only:
        if letter not in LETTERS:
            allowed = ', '.join(LETTERS)
            parser.error(f'argument --only: must be of {allowed}, got {letter!r}')
    for name in ('seeds', 'jobs', 'num_train', 'num_val'):
        value = getattr(args, name)
        if value is not None and value < 1:
            option = name.replace('_', '-')
            parser.error(f'argument --{option}: must be at least 1, got {value}')
    if args.steps < 20 or args.steps % 10:
        parser.error(
            f'argument --steps: must be a multiple of 10, at least 20, got {args.steps}'
        )
    return args


def find_missing(runs: Sequence[Run], folders: Folders) -> list[Run]:
    """The runs without a result; what there is of them must have their settings."""
    missing = [run for run in runs if read_result(folders.out, run) is None]
    for run in missing:
        WorkDir(folders.work, run).check()
    return missing


def find_long(budget: Budget, folders: Folders) -> list[Run]:
    """The long runs without a result, of the control that is better so far."""
    control = better_control(folders.out, budget) or CONTROLS[0]
    return find_missing(plan_long_runs(control, budget), folders)


def train_missing(args: argparse.Namespace, budget: Budget, folders: Folders) -> int:
    """Do what has no result yet; return how many jobs failed."""
    runs = plan_runs(args.only, args.seeds, budget)
    missing = find_missing(runs, folders)
    wants_long = 'long' in args.only
    have_controls = {run.point for run in runs}.issuperset(map(Point, CONTROLS))
    if wants_long and not have_controls and better_control(args.out, budget) is None:
        raise JobError('the long runs need results of the controls: add b to --only')
    # Which control is the better one shows when the other runs have ended.
    later = find_long(budget, folders) if wants_long else []
    if missing or later:
        canvases = {run.point.canvas for run in (*missing, *later)}
        if run_jobs(data_jobs(canvases, budget, folders), args.jobs):
            raise JobError('the data sets could not be made')
    failed = run_jobs(
        [training_job(run, folders) for run in missing],
        args.jobs,
        before=len(runs) - len(missing),
        later=[run.work for run in later],
    )
    # There is none if a run of a control has failed.
    if wants_long and better_control(folders.out, budget) is not None:
        later = find_long(budget, folders)
        failed += run_jobs(
            [training_job(run, folders) for run in later], args.jobs, before=len(runs)
        )
    # When nothing else runs.
    if 'f' in args.only and not folders.speed.exists():
        failed += run_jobs([speed_job(budget, folders)], 1)
    return failed


def main() -> None:
    """Train what is missing, then write the page."""
    args = parse_args()
    budget = Budget(args.steps, args.num_train, args.num_val)
    folders = Folders(args.out, args.work_dir, args.data)
    MMLogger.get_instance('reproduce_mini', log_level='ERROR')
    # Jobs are stopped on the way out.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        failed = 0 if args.collect_only else train_missing(args, budget, folders)
        print(f'page: {write_report(budget, folders)}')
    except KeyboardInterrupt:
        print('\nstopped; the same command continues', file=sys.stderr)
        sys.exit(130)
    except JobError as error:
        sys.exit(f'reproduce_mini.py: error: {error}')
    if failed:
        sys.exit(f'reproduce_mini.py: error: {failed} runs failed')


if __name__ == '__main__':
    main()
