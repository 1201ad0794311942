# Copyright (c) mmpsvit contributors.
"""Runs commands side by side, shows how far they are, and leaves none behind."""

import os
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tqdm import tqdm

_POLL_SECONDS = 0.2
_SHOW_SECONDS = 2.0


class JobError(RuntimeError):
    """A job cannot be done, for a reason that one line tells."""


@dataclass
class Job:
    """Commands to run one after the other, and what to do around them.

    Attributes:
        name (str): What the user calls it.
        commands (Sequence[Sequence[str]]): The commands, each a list of arguments.
        log (Path): Gets what they write.
        environment (dict[str, str]): Variables beside those of this process.
        work (float): How long it takes, in any unit, relative to other jobs.
        begin (Callable): Called before the first command.
        finish (Callable): Called after the last one; says what came out.
        fraction (Callable): How much of it is done, 0 to 1.
    """

    name: str
    commands: Sequence[Sequence[str]]
    log: Path
    environment: dict[str, str] = field(default_factory=dict)
    work: float = 1.0
    begin: Callable[[], None] = lambda: None
    finish: Callable[[], str] = lambda: 'done'
    fraction: Callable[[], float] = lambda: 0.0


class _Active:
    """A job that is being done."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.started = time.monotonic()
        self.waiting = deque(job.commands)
        self.process: subprocess.Popen | None = None
        job.log.parent.mkdir(parents=True, exist_ok=True)

    def advance(self) -> bool:
        """Start the next command if it is time to; return whether all are done."""
        if self.process is None:
            self.job.begin()
        else:
            code = self.process.poll()
            if code is None:
                return False
            if code:
                raise JobError(f'exit code {code}, see {self.job.log}')
        if not self.waiting:
            return True
        with self.job.log.open('a') as log:
            self.process = subprocess.Popen(
                self.waiting.popleft(),
                env={**os.environ, **self.job.environment},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                # Ctrl-C reaches this process alone, which then stops the others.
                start_new_session=True,
            )
        return False

    def stop(self) -> None:
        """End the running command."""
        if self.process is None or self.process.poll() is not None:
            return
        self.process.terminate()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def run_jobs(
    jobs: Sequence[Job], workers: int, before: int = 0, later: Sequence[float] = ()
) -> int:
    """Do jobs, ``workers`` at a time, in their order.

    Each job that ends prints a line, with an estimate of the time left; on a terminal
    a bar moves meanwhile. However this ends, no command is left running.

    Args:
        jobs (Sequence[Job]): The jobs. One that fails does not stop the others.
        workers (int): How many to do at once.
        before (int): How many jobs were done earlier, for the count. Defaults to 0.
        later (Sequence[float]): Work of jobs that another call will do, for the count
            and the estimate. Defaults to ().

    Returns:
        int: How many jobs failed.
    """
    waiting = deque(jobs)
    active: list[_Active] = []
    failed = ended = 0
    count = before + len(jobs) + len(later)
    progress = _Progress(jobs, sum(later))
    try:
        while waiting or active:
            while waiting and len(active) < workers:
                active.append(_Active(waiting.popleft()))
            for each in list(active):
                text = None
                try:
                    if each.advance():
                        text = each.job.finish()
                except JobError as error:
                    failed += 1
                    text = f'error: {error}'
                if text is not None:
                    active.remove(each)
                    ended += 1
                    progress.end(each.job)
                    minutes = (time.monotonic() - each.started) / 60
                    progress.line(
                        f'[{before + ended} of {count}] {each.job.name}: {text}; '
                        f'{minutes:.1f} min{progress.left(active)}'
                    )
            progress.show(active, f'{before + ended} of {count} done')
            time.sleep(_POLL_SECONDS)
    finally:
        for each in active:
            each.stop()
        progress.close()
    return failed


class _Progress:
    """How much is done, and how long the rest will take."""

    def __init__(self, jobs: Sequence[Job], later: float) -> None:
        # A part of a run that is resumed was done before.
        self.todo = {job.name: _rest_of(job) for job in jobs}
        self.total = sum(self.todo.values()) + later
        self.ended = 0.0
        self.begun = self.shown = time.monotonic()
        self.bar = tqdm(
            total=self.total,
            disable=None,
            leave=False,
            smoothing=0,
            bar_format='{desc} {percentage:3.0f}% |{bar}| {elapsed}, {remaining} left',
        )

    def end(self, job: Job) -> None:
        """Count a job that has ended."""
        self.ended += self.todo[job.name]

    def done(self, active: Sequence[_Active]) -> float:
        """The work done since the start."""
        running = (self.todo[each.job.name] - _rest_of(each.job) for each in active)
        return self.ended + sum(running)

    def left(self, active: Sequence[_Active]) -> str:
        """The time left, as the end of a line."""
        done = self.done(active)
        if not 0 < done < self.total:
            return ''
        seconds = (self.total / done - 1) * (time.monotonic() - self.begun)
        return f', about {seconds / 60:.0f} min left'

    def show(self, active: Sequence[_Active], text: str) -> None:
        """Move the bar."""
        if self.bar.disable or time.monotonic() - self.shown < _SHOW_SECONDS:
            return
        self.shown = time.monotonic()
        names = ', '.join(each.job.name for each in active)
        self.bar.set_description_str(f'{text} ({names})', refresh=False)
        self.bar.n = self.done(active)
        self.bar.refresh()

    def line(self, text: str) -> None:
        """Print a line above the bar."""
        tqdm.write(text, file=sys.stdout)
        sys.stdout.flush()

    def close(self) -> None:
        """Take the bar away."""
        self.bar.close()


def _rest_of(job: Job) -> float:
    return job.work * (1 - job.fraction())
