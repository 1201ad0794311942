# Copyright (c) mmpsvit contributors.
"""Result files, one of each run, and the state that a run leaves in its work dir."""

import json
import statistics
import subprocess
from pathlib import Path
from typing import Any

from mmpsvit.guard.files import AtomicBackend

from .plan import CONTROLS, LONG, ROOT, Budget, Point, Run
from .pool import JobError

CODE = ('mmpsvit', 'configs', 'tools', 'setup.py', 'pyproject.toml')


def write_json(path: Path, value: dict) -> None:
    """Write a JSON file that a version control shows well."""
    AtomicBackend().put_text(json.dumps(value, indent=1) + '\n', path)


def read_json(path: Path) -> dict[str, Any] | None:
    """Read a JSON object; None if there is no file.

    Raises:
        JobError: If the file holds something else.
    """
    try:
        value = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise JobError(f'{path} cannot be read ({error}): remove it') from None
    if not isinstance(value, dict):
        raise JobError(f'{path} holds no JSON object: remove it')
    return value


def git_state() -> dict[str, Any]:
    """The commit of this code, and whether the code differs from it."""

    def git(*args: str) -> str:
        command = ['git', '-C', str(ROOT), *args]
        return subprocess.run(
            command, capture_output=True, text=True, check=True
        ).stdout

    try:
        return {
            'commit': git('rev-parse', 'HEAD').strip(),
            'dirty': bool(git('status', '--porcelain', '--', *CODE).strip()),
        }
    except (OSError, subprocess.CalledProcessError):  # not a clone
        return {'commit': None, 'dirty': None}


def check_settings(path: Path, old: dict, new: dict) -> None:
    """Compare the settings in a file with those that are asked for.

    Raises:
        JobError: If they differ; it names all differences.
    """
    texts = [
        f'{key} was {old.get(key)}, now {new.get(key)}'
        for key in {**new, **old}
        if old.get(key) != new.get(key)
    ]
    if texts:
        raise JobError(
            f'{path} has other settings ({"; ".join(texts)}): choose another --out '
            'and --work-dir, or move it away'
        )


class WorkDir:
    """What the training of a run leaves on disk.

    Args:
        folder (Path): Folder of all work dirs.
        run (Run): The run.
    """

    def __init__(self, folder: Path, run: Run) -> None:
        self.run = run
        self.path = folder / run.name
        self.log = self.path / 'output.log'
        self.measured = self.path / 'measured.json'
        self._record = self.path / 'run.json'

    @property
    def checkpoint(self) -> Path:
        """The checkpoint after the last step."""
        return self.path / f'iter_{self.run.steps}.pth'

    def check(self) -> dict[str, Any]:
        """Read the record of earlier starts.

        Raises:
            JobError: If the work dir was begun with other settings.
        """
        settings = self.run.settings()
        record = read_json(self._record)
        if record is None:
            return {'settings': settings, 'code': []}
        check_settings(self._record, record.get('settings', {}), settings)
        return record

    def begin(self) -> None:
        """Note that the training starts or resumes with the code as it is now."""
        record = self.check()
        state = git_state()
        if state not in record['code']:
            record['code'].append(state)
        write_json(self._record, record)

    def result(self) -> dict[str, Any]:
        """What is published of a run whose training is finished and measured.

        Raises:
            JobError: If the logs lack a validation.
        """
        measured = read_json(self.measured)
        scores = dict(self._scores())
        # The run may have been killed after its last step, but before validation.
        scores[self.run.steps] = round(measured.pop('accuracy'), 3)
        half = self.run.steps // 2
        if half not in scores:
            raise JobError(f'{self.path} has no validation at step {half}: remove it')
        return {
            'run': self.run.name,
            **self.check(),
            'accuracy': {'half': scores[half], 'end': scores[self.run.steps]},
            'curve': sorted(scores.items()),
            'seconds_per_step': round(statistics.median(self._times()), 4),
            **measured,
        }

    def fraction(self) -> float:
        """The part of the steps that is done."""
        steps = [line['step'] for line in self._lines() if 'step' in line]
        return min(1.0, steps[-1] / self.run.steps) if steps else 0.0

    def _lines(self) -> list[dict]:
        """What MMEngine logged, in order of time; a resumed training logs anew."""
        lines = []
        for path in sorted(self.path.glob('*/vis_data/scalars.json')):
            for text in path.read_text().split('\n'):
                # A killed process may leave half a line.
                if text.endswith('}'):
                    lines.append(json.loads(text))
        return lines

    def _scores(self) -> list[tuple[int, float]]:
        lines = self._lines()
        key = 'accuracy/top1'
        # MMEngine has them in single precision.
        return [(line['step'], round(line[key], 3)) for line in lines if key in line]

    def _times(self) -> list[float]:
        return [x['time'] for x in self._lines() if 'loss' in x]


def result_path(out: Path, run: Run) -> Path:
    """The result file of a run."""
    return out / 'results' / f'{run.name}.json'


def read_result(out: Path, run: Run) -> dict[str, Any] | None:
    """Read the result of a run; None if there is none.

    Raises:
        JobError: If the file is broken, or the result has other settings.
    """
    path = result_path(out, run)
    result = read_json(path)
    if result is not None:
        check_settings(path, result.get('settings', {}), run.settings())
    return result


def read_results(out: Path, point: Point, budget: Budget) -> list[dict[str, Any]]:
    """Read the results of all seeds of a point, in the order of the seeds.

    Raises:
        JobError: As in :func:`read_result`.
    """
    seeds = []
    for path in (out / 'results').glob(f'{point.name}_seed*.json'):
        seed = path.stem.removeprefix(f'{point.name}_seed')
        if seed.isdigit():
            seeds.append(int(seed))
    results = (read_result(out, Run(point, seed, budget)) for seed in sorted(seeds))
    return [result for result in results if result is not None]


def better_control(out: Path, budget: Budget) -> str | None:
    """The control with the higher mean accuracy, None while one has no result.

    A control that was trained longer stays the better one, whatever more seeds say.
    """
    for name in CONTROLS:
        if read_results(out, Point(name, length=LONG), budget):
            return name
    results = {name: read_results(out, Point(name), budget) for name in CONTROLS}
    if not all(results.values()):
        return None
    return max(
        CONTROLS,
        key=lambda name: statistics.mean(r['accuracy']['end'] for r in results[name]),
    )
