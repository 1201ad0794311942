# Copyright (c) mmpsvit contributors.
"""Commands that run side by side: what is said of them, and that none is left."""

import importlib
import os
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / 'tools'))
pool = importlib.import_module('miniature.pool')


def test_failed_command_is_named(tmp_path, capsys):
    def job(name: str, code: str) -> pool.Job:
        return pool.Job(name, [[sys.executable, '-c', code]], tmp_path / f'{name}.log')

    jobs = [job('bad', 'print("why"); raise SystemExit(3)'), job('good', 'print(1)')]
    assert pool.run_jobs(jobs, workers=1) == 1
    lines = capsys.readouterr().out.strip().split('\n')
    assert lines[0].startswith(f'[1 of 2] bad: error: exit code 3, see {tmp_path}')
    assert lines[1].startswith('[2 of 2] good: done')
    assert (tmp_path / 'bad.log').read_text() == 'why\n'


def test_time_left(tmp_path, monkeypatch, capsys):
    """A minute for each job, whose work differs; another job comes later."""
    minutes = []
    clock = SimpleNamespace(sleep=time.sleep, monotonic=lambda: 60 * len(minutes))
    monkeypatch.setattr(pool, 'time', clock)

    def finish() -> str:
        minutes.append(1)
        return 'done'

    jobs = [
        pool.Job(
            f'job {work}',
            [[sys.executable, '-c', '']],
            tmp_path / 'log',
            work=work,
            finish=finish,
        )
        for work in (1, 3)
    ]
    assert pool.run_jobs(jobs, workers=1, before=1, later=[2]) == 0
    assert capsys.readouterr().out.strip().split('\n') == [
        '[2 of 4] job 1: done; 1.0 min, about 5 min left',
        '[3 of 4] job 3: done; 1.0 min, about 1 min left',
    ]


def test_interruption_stops_all_commands(tmp_path):
    """However many run side by side."""
    code = 'import os, time; print(os.getpid(), flush=True); time.sleep(60)'
    wait = (
        'import pathlib, sys, time\n'
        'while not all(pathlib.Path(log).read_text() for log in sys.argv[1:]):\n'
        '    time.sleep(0.05)\n'
    )
    logs = [tmp_path / 'first', tmp_path / 'second']
    jobs = [pool.Job(log.name, [[sys.executable, '-c', code]], log) for log in logs]
    jobs.append(
        pool.Job(
            'third',
            [[sys.executable, '-c', wait, *map(str, logs)]],
            tmp_path / 'third',
            finish=mock.Mock(side_effect=KeyboardInterrupt),
        )
    )
    with pytest.raises(KeyboardInterrupt):
        pool.run_jobs(jobs, workers=3)
    for log in logs:
        with pytest.raises(ProcessLookupError):
            os.kill(int(log.read_text()), 0)
