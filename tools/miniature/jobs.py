# Copyright (c) mmpsvit contributors.
"""The commands behind each run: making data, training, measuring, timing."""

import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from .plan import (
    CANVASES,
    CONFIGS,
    NETWORKS,
    ROOT,
    Budget,
    Point,
    Run,
    data_settings,
    knobs,
)
from .pool import Job
from .results import WorkDir, read_json, result_path, write_json

# Each run has one core, so that as many run side by side as there are cores.
_ONE_THREAD = {
    'OMP_NUM_THREADS': '1',
    'MKL_NUM_THREADS': '1',
    # mmcv without compiled operators warns of one that nothing here uses.
    'PYTHONWARNINGS': 'ignore:Fail to import:UserWarning',
}


@dataclass(frozen=True)
class Folders:
    """Where everything lies."""

    out: Path
    work: Path
    data: Path

    @property
    def speed(self) -> Path:
        """Images per second of all networks."""
        return self.out / 'results' / 'speed.json'


def _python(script: str, *args: object) -> list[str]:
    return [sys.executable, str(ROOT / 'tools' / script), *map(str, args)]


def data_jobs(canvases: Iterable[int], budget: Budget, folders: Folders) -> list[Job]:
    """Jobs that make what is missing of the data sets."""
    jobs = []
    for canvas in sorted(set(canvases), reverse=True):  # the longest first
        settings = {'size': canvas, **data_settings(canvas, budget)}
        options = [
            text
            for key, value in settings.items()
            for text in (f'--{key.replace("_", "-")}', value)
        ]
        command = _python(
            'dataset_converters/make_cluttered_digits.py',
            folders.data / str(canvas),
            *options,
        )
        jobs.append(
            Job(
                name=f'data of {canvas} px',
                commands=[command],
                log=folders.work / f'data_{canvas}.log',
                environment=_ONE_THREAD,
                work=canvas**2,
            )
        )
    return jobs


def training_job(run: Run, folders: Folders) -> Job:
    """The job that trains a network, or trains it on, and writes its result."""
    work_dir = WorkDir(folders.work, run)
    config = ROOT / CONFIGS / f'{run.point.network}.py'
    train = _python(
        'train.py',
        config,
        '--work-dir',
        work_dir.path,
        '--resume',
        '--cfg-options',
        f'randomness.seed={run.seed}',
    )
    measure = _python(
        'miniature/measure.py',
        config,
        work_dir.checkpoint,
        '--out',
        work_dir.measured,
    )

    def finish() -> str:
        result = work_dir.result()
        write_json(result_path(folders.out, run), result)
        accuracy = result['accuracy']
        return f'{accuracy["end"]:.1f} %, at half {accuracy["half"]:.1f} %'

    return Job(
        name=run.name,
        commands=[train, measure],
        log=work_dir.log,
        environment={**_ONE_THREAD, **run.environment(folders.data)},
        work=run.work,
        begin=work_dir.begin,
        finish=finish,
        fraction=work_dir.fraction,
    )


def speed_job(budget: Budget, folders: Folders) -> Job:
    """The job that times all networks on the smallest canvas, on one thread."""
    names = [str(ROOT / CONFIGS / f'{name}.py') for name in NETWORKS]
    measured = folders.work / 'speed.json'
    command = _python(
        'benchmarks/benchmark_speed.py',
        *names,
        *('--shape', CANVASES[0], '--batch-size', 64, '--threads', 1, '--runs', 20),
        *('--baseline', names[0], '--out', measured.with_suffix('')),
    )

    def finish() -> str:
        # Without the folders of this machine, which the benchmark names.
        about = read_json(measured)
        speeds = {
            name: round(row['images_per_second'], 1)
            for name, row in zip(NETWORKS, about['results'], strict=True)
        }
        settings = {key: about['settings'][key] for key in ('batch_size', 'runs')}
        kept = {key: about[key] for key in ('threads', 'date', 'versions')}
        write_json(folders.speed, {'images_per_second': speeds, **settings, **kept})
        return 'done'

    return Job(
        name='speed',
        commands=[command],
        log=folders.work / 'speed.log',
        environment={
            **_ONE_THREAD,
            **knobs(Point('psvit'), budget.steps, folders.data),
        },
        finish=finish,
    )
