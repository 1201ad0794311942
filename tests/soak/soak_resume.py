# Copyright (c) mmpsvit contributors.
"""Kill trainings at random moments, resume them, and hold them against one left alone.

python tests/soak/soak_resume.py --kills 20

Weights, their averages, state of the optimizer, random state, learning rates, losses
and scores have to be the same, bit for bit; no checkpoint may be broken or lost. Runs
on the CPU, where processes can fork.
"""

import argparse
import json
import os
import random
import re
import runpy
import socket
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

# As torchrun does for several processes: sums depend on the number of threads.
os.environ['OMP_NUM_THREADS'] = '1'
os.environ['CUDA_VISIBLE_DEVICES'] = ''

import numpy as np
import psutil
from PIL import Image

# Imported once: the trainings are forks of this process.
import mmpsvit.cli  # noqa: F401
from mmpsvit.guard import CheckpointError, load_checkpoint

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / 'tests' / 'guard'))
from small_training import assert_same, read  # noqa: E402

CLASSES = ('circle', 'square', 'star')
EVENT = re.compile(r'(?:Epoch|Iter)\((?:train|val)\) +\[|Saving checkpoint')


class Failure(Exception):
    """A training that was killed did not go on as it should."""


class Case(NamedTuple):
    """A kind of training."""

    config: str
    num_workers: int
    processes: int
    launcher: str = 'fork'

    def __str__(self) -> str:
        return (
            f'{self.config}, {self.processes} processes ({self.launcher}) with '
            f'{self.num_workers} data workers'
        )


CASES = (
    Case('epochs', num_workers=1, processes=1),
    Case('iterations', num_workers=0, processes=1),
    Case('epochs', num_workers=0, processes=2, launcher='dist_train.sh'),
    Case('iterations', num_workers=1, processes=1),
    Case('epochs', num_workers=0, processes=1),
    Case('iterations', num_workers=1, processes=2),
)


class Training:
    """A training in processes of its own.

    Args:
        case (Case): What to train.
        folder (Path): Where its work dir and its output are.
        images (Path): Folder of the images.
    """

    def __init__(self, case: Case, folder: Path, images: Path) -> None:
        folder.mkdir(exist_ok=True)
        self._log = folder / 'log.txt'
        self._log.touch()
        self._begin = self._log.stat().st_size
        self._is_forked = case.launcher == 'fork'
        port = _free_port()
        arguments = [
            str(ROOT / 'tests' / 'soak' / f'{case.config}.py'),
            *('--work-dir', str(folder / 'work')),
            '--no-persistent-workers',
            '--resume',
            '--cfg-options',
            f'train_dataloader.num_workers={case.num_workers}',
        ]
        for name in ('train', 'val', 'test'):
            arguments.append(f'{name}_dataloader.dataset.data_root={images}')
        with open(self._log, 'ab') as log:
            if self._is_forked:
                if case.processes > 1:
                    arguments += ['--launcher', 'pytorch']
                self._processes = []
                for rank in range(case.processes):
                    variables = dict(RANK=rank, LOCAL_RANK=rank, MASTER_PORT=port)
                    variables.update(WORLD_SIZE=case.processes, MASTER_ADDR='127.0.0.1')
                    pid = os.fork()
                    if not pid:
                        os.chdir(folder)
                        os.dup2(log.fileno(), 1)
                        os.dup2(log.fileno(), 2)
                        _run('train.py', arguments, variables)
                    self._processes.append(psutil.Process(pid))
            else:
                script = ROOT / 'tools' / case.launcher
                launcher = psutil.Popen(
                    [str(script), arguments[0], str(case.processes), *arguments[1:]],
                    env={**os.environ, 'PORT': str(port), 'PYTHON': sys.executable},
                    cwd=folder,
                    stdout=log,
                    stderr=log,
                )
                self._processes = [launcher]

    def output(self) -> str:
        """What this training, not an earlier one in the folder, has written."""
        return self._log.read_bytes()[self._begin :].decode(errors='replace')

    def progress(self) -> int:
        """How many steps, validations and checkpoints it has told of."""
        return len(EVENT.findall(self.output()))

    def is_running(self) -> bool:
        """Whether all processes run."""
        return all(
            process.is_running() and process.status() != psutil.STATUS_ZOMBIE
            for process in self._processes
        )

    def finish(self) -> None:
        """Wait for the end.

        Raises:
            Failure: If it ends with an error.
        """
        ended, _ = psutil.wait_procs(self._processes)
        if any(process.returncode for process in ended):
            raise Failure(f'a training failed:\n{self.output()[-3000:]}')

    def kill(self, rng: random.Random) -> str:
        """Kill one process, after which its launcher ends the others, or all at once.

        Returns:
            str: Which.
        """
        ranks = self._processes if self._is_forked else self._processes[0].children()
        everybody = [*self._processes, *ranks]
        victims = everybody
        name = 'everything'
        if len(ranks) > 1 and rng.random() < 0.7:
            rank = rng.randrange(len(ranks))
            victims, name = [ranks[rank]], f'rank {rank}'
        _kill(victims)
        if self._is_forked:
            _kill(everybody)
        psutil.wait_procs(everybody)
        return name


def _kill(processes: list[psutil.Process]) -> None:
    for process in processes:
        if process.is_running():
            process.kill()


def _run(tool: str, arguments: list[str], variables: dict) -> NoReturn:
    """Run a tool in this process, which ends with it."""
    code = 1
    try:
        os.environ.update({name: str(value) for name, value in variables.items()})
        sys.argv = [tool, *arguments]
        runpy.run_path(str(ROOT / 'tools' / tool), run_name='__main__')
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(code)


def _free_port() -> int:
    with socket.socket() as server:
        server.bind(('127.0.0.1', 0))
        return server.getsockname()[1]


def make_images(folder: Path) -> Path:
    """Write an ImageNet-style folder of small random images."""
    rng = np.random.default_rng(0)
    for split, count in (('train', 4), ('val', 3)):
        for index, name in enumerate(CLASSES):
            (folder / split / name).mkdir(parents=True)
            for number in range(count):
                pixels = rng.integers(0, 255, (40, 40, 3), dtype=np.uint8)
                pixels[..., index] //= 2
                Image.fromarray(pixels).save(folder / split / name / f'{number}.png')
    return folder


def check_checkpoints(work: Path, output: str) -> str:
    """Check the checkpoints that a killed training left.

    Returns:
        str: Name of the latest, or 'nothing'.

    Raises:
        Failure: If one is broken or lost.
    """
    for path in work.glob('[!.]*.pth'):
        try:
            load_checkpoint(path)
        except CheckpointError as error:
            raise Failure(f'corrupt: {error}') from None
    announced = [
        int(step) for step in re.findall(r'Saving checkpoint at (\d+)', output)
    ]
    pointer = work / 'last_checkpoint'
    if not pointer.exists():
        # The first one was in the making.
        if len(announced) > 1:
            raise Failure('lost: there is no last_checkpoint')
        return 'nothing'
    latest = Path(pointer.read_text())
    if not latest.is_file():
        raise Failure(f'lost: last_checkpoint says {latest}')
    if len(announced) > 1 and int(re.findall(r'\d+', latest.stem)[0]) < announced[-2]:
        raise Failure(f'lost: {latest.name} is the latest, after those of {announced}')
    return latest.name


def read_results(work: Path) -> dict[str, Any]:
    """What a training ended with: checkpoints, learning rates, losses, scores.

    Raises:
        Failure: If a step was logged twice, with different values.
    """
    results = {}
    for log in work.glob('*/vis_data/scalars.json'):
        for line in log.read_text().splitlines():
            try:
                record = json.loads(line)
            # A kill may have cut it.
            except json.JSONDecodeError:
                continue
            kind = 'training' if 'lr' in record else 'validation'
            for name in {'lr', 'loss', 'accuracy/top1'} & record.keys():
                key = f'{name} of {kind} {record["step"]}'
                if results.setdefault(key, record[name]) != record[name]:
                    raise Failure(f'different: {key}')
    return results | {
        f'{key} of {name}': value for (name, key), value in read(work).items()
    }


def interrupt(
    case: Case, folder: Path, images: Path, events: int, rng: random.Random
) -> str:
    """Kill a training at a random moment and resume it.

    Returns:
        str: When it was killed, and from which checkpoint it went on.
    """
    goal = rng.randrange(1, events - 1)
    training = Training(case, folder, images)
    while training.progress() < goal and training.is_running():
        time.sleep(0.002)
    time.sleep(0.05 * rng.random())
    moment = f'{training.kill(rng)} killed after {training.progress()}/{events} events'
    latest = check_checkpoints(folder / 'work', training.output())
    Training(case, folder, images).finish()
    return f'{moment}; resumed from {latest}'


def main() -> None:
    """Kill and compare."""
    parser = argparse.ArgumentParser(description='Kill trainings and resume them')
    parser.add_argument('--kills', type=int, default=20, help='how many')
    parser.add_argument('--seed', type=int, help='seed of the moments; default: random')
    args = parser.parse_args()
    seed = random.randrange(10**6) if args.seed is None else args.seed
    references: dict[Case, tuple[dict, int]] = {}
    failures = 0
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        images = make_images(folder / 'images')
        for number in range(args.kills):
            case = CASES[number % len(CASES)]
            alone = case._replace(launcher='fork')
            if alone not in references:
                reference = folder / f'reference_{len(references)}'
                training = Training(alone, reference, images)
                training.finish()
                results = read_results(reference / 'work')
                references[alone] = results, training.progress()
            expected, events = references[alone]
            killed = folder / f'killed_{number}'
            try:
                story = interrupt(
                    case, killed, images, events, random.Random(seed + number)
                )
                assert_same(read_results(killed / 'work'), expected)
                verdict = 'identical'
            except (AssertionError, Failure) as failure:
                story, verdict = 'FAILED', str(failure)
                failures += 1
            print(
                f'kill {number + 1}/{args.kills} (seed {seed + number}): {case}: '
                f'{story}: {verdict}',
                flush=True,
            )
    print(f'{args.kills} kills, {failures} failures')
    sys.exit(bool(failures))


if __name__ == '__main__':
    main()
