# Copyright (c) mmpsvit contributors.
"""Which networks are trained on which data, how long, and how often."""

import functools
import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from mmengine.config import Config

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = Path('configs/cluttered_digits/miniature')  # relative to the repository

CANVASES = (64, 96, 128, 160)  # px; all divisible by 4 * num_points, as patches need
DIGIT_SIZE = 20  # px, on every canvas
CLUTTER = 8  # fragments on the smallest canvas; their number grows with its area
LONG = 5  # how many times as long the long runs are
LR = 5e-4  # of all experiments but h; inherited from cluttered_digits/psvit.py
HIGH_LR = 2 * LR

NETWORKS = {
    'psvit': 'PS-ViT, N = 4, n = 4',
    'vit': 'ViT',
    'vit_same_stem': 'ViT on the CNN stem of PS-ViT',
    'iters1': 'PS-ViT, N = 1: points that never move',
    'iters2': 'PS-ViT, N = 2',
    'iters6': 'PS-ViT, N = 6',
    'n3': 'PS-ViT, n = 3',
    'n5': 'PS-ViT, n = 5',
    'n6': 'PS-ViT, n = 6',
    'n8': 'PS-ViT, n = 8',
    'shared': 'PS-ViT, weights shared by all iterations',
}
CONTROLS = ('vit_same_stem', 'iters1')
BY_ITERS = {1: 'iters1', 2: 'iters2', 4: 'psvit', 6: 'iters6'}
BY_POINTS = {3: 'n3', 4: 'psvit', 5: 'n5', 6: 'n6', 8: 'n8'}
MAIN = ('psvit', 'vit', *CONTROLS)


@dataclass(frozen=True)
class Point:
    """A point of an experiment: a network, its data and the length of its training."""

    network: str
    canvas: int = CANVASES[0]
    length: int = 1  # in budgets of steps
    lr: float = LR

    @property
    def name(self) -> str:
        """What the files of its runs are called, but for the seed."""
        parts = [self.network]
        if self.canvas != CANVASES[0]:
            parts.append(f'{self.canvas}px')
        if self.lr != LR:
            parts.append(f'lr{format_lr(self.lr)}')
        if self.length > 1:
            parts.append('long')
        return '_'.join(parts)


@dataclass(frozen=True)
class Experiment:
    """Points to compare, and how many seeds each has unless the user says so."""

    points: tuple[Point, ...]
    seeds: int
    early: bool = True  # whether it is run before those that are not


EXPERIMENTS = {
    'a': Experiment((Point('psvit'), Point('vit')), 3),
    'b': Experiment(tuple(map(Point, MAIN)), 3),
    'c': Experiment(tuple(map(Point, BY_ITERS.values())), 3),
    'e': Experiment((Point('psvit'), Point('shared')), 3),
    'h': Experiment(tuple(Point(name, lr=HIGH_LR) for name in MAIN), 1),
    'd': Experiment(tuple(map(Point, BY_POINTS.values())), 1, early=False),
    'g': Experiment(
        tuple(Point(name, canvas) for canvas in CANVASES for name in MAIN),
        1,
        early=False,
    ),
}
# Besides: cost, and the long runs, whose second network the others decide.
LETTERS = ('a', 'b', 'c', 'd', 'e', 'f', 'g', 'h', 'long')


@dataclass(frozen=True)
class Budget:
    """What all runs have in common."""

    steps: int = 1000
    num_train: int = 12800
    num_val: int = 2000


@dataclass(frozen=True)
class Run:
    """One training."""

    point: Point
    seed: int
    budget: Budget

    @property
    def name(self) -> str:
        """The name of its result file and of its work dir."""
        return f'{self.point.name}_seed{self.seed}'

    @property
    def steps(self) -> int:
        """Training steps."""
        return self.budget.steps * self.point.length

    @property
    def work(self) -> float:
        """A rough measure of how long it takes, to estimate the time left."""
        return self.steps * self.point.canvas**1.5

    def environment(self, data: Path) -> dict[str, str]:
        """The knobs of the config."""
        return knobs(self.point, self.steps, data)

    def settings(self) -> dict:
        """Everything that decides the result."""
        return {
            'config': str(CONFIGS / f'{self.point.network}.py'),
            'canvas': self.point.canvas,
            'steps': self.steps,
            'lr': self.point.lr,
            'seed': self.seed,
            **data_settings(self.point.canvas, self.budget),
            'recipe': recipe_of(self.point, self.steps),
        }


def format_lr(lr: float) -> str:
    """A learning rate with one digit, as people write it: 5e-4."""
    return f'{lr:.0e}'.replace('e-0', 'e-')


def knobs(point: Point, steps: int, data: Path) -> dict[str, str]:
    """The environment variables that the configs read."""
    return {
        'MINIATURE_CANVAS': str(point.canvas),
        'MINIATURE_STEPS': str(steps),
        'MINIATURE_LR': str(point.lr),
        'MINIATURE_DATA': str(data.resolve()),
    }


def load_config(point: Point, steps: int, data: Path = Path('data')) -> Config:
    """Load the config of a point."""
    environment = dict(os.environ)
    os.environ.update(knobs(point, steps, data))
    try:
        return Config.fromfile(ROOT / CONFIGS / f'{point.network}.py')
    finally:
        os.environ.clear()
        os.environ.update(environment)


@functools.cache
def recipe_of(point: Point, steps: int) -> str:
    """A fingerprint of network and schedule, so that an edited config is noticed."""
    cfg = load_config(point, steps)
    parts = ('model', 'data_preprocessor', 'optim_wrapper', 'param_scheduler')
    recipe = [cfg.train_dataloader.batch_size, *(cfg[part] for part in parts)]
    text = json.dumps(recipe, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def num_clutter(canvas: int) -> int:
    """Fragments per image, at the same density on each canvas."""
    return round(CLUTTER * (canvas / CANVASES[0]) ** 2)


def data_settings(canvas: int, budget: Budget) -> dict[str, int]:
    """Arguments of make_cluttered_digits.py for a canvas, apart from its size."""
    return {
        'digit_size': DIGIT_SIZE,
        'num_clutter': num_clutter(canvas),
        'num_train': budget.num_train,
        'num_val': budget.num_val,
    }


def plan_runs(letters: Iterable[str], seeds: int | None, budget: Budget) -> list[Run]:
    """All runs of some experiments but the long ones, the most telling ones first.

    Args:
        letters: Which experiments.
        seeds: Seeds of each point. None means what each experiment has.
        budget: What all runs have in common.

    Returns:
        Each run once: first seed 0 of a, b, c, e and h, then their other seeds, then
        d and g.
    """
    chosen = [EXPERIMENTS[letter] for letter in EXPERIMENTS if letter in letters]
    most = seeds or max((each.seeds for each in chosen), default=0)
    runs = [
        Run(point, seed, budget)
        for early in (True, False)
        for seed in range(most)
        for each in chosen
        if each.early == early and seed < (seeds or each.seeds)
        for point in each.points
    ]
    return list(dict.fromkeys(runs))


def plan_long_runs(control: str, budget: Budget) -> list[Run]:
    """The ViT of Table 7 and a control, each trained longer."""
    return [Run(Point(name, length=LONG), 0, budget) for name in ('vit', control)]


def describe_budget(budget: Budget) -> Sequence[str]:
    """The options that differ from the defaults, as they are typed."""
    defaults = asdict(Budget())
    return [
        f'--{key.replace("_", "-")} {value}'
        for key, value in asdict(budget).items()
        if value != defaults[key]
    ]
