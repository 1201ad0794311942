# Copyright (c) mmpsvit contributors.
"""What is trained, and which table shows it: a new experiment is an entry of TABLES."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
CANVASES = (64, 96, 128, 160)  # px; divisible by 16, as 4 x 4 patches at stride 4 need
LR = 5e-4

# By the names of their configs.
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
MAIN = ('psvit', 'vit', 'vit_same_stem', 'iters1')


@dataclass(frozen=True)
class Training:
    """A network and how it is trained, with any seed."""

    network: str
    canvas: int = CANVASES[0]
    lr: float = LR
    length: int = 1  # in budgets of steps

    @property
    def name(self) -> str:
        """What the files of its runs are called, but for the seed."""
        name = self.network
        if self.canvas != CANVASES[0]:
            name += f'_{self.canvas}px'
        if self.lr != LR:
            name += f'_lr{format_lr(self.lr)}'
        if self.length > 1:
            name += f'_{self.length}x'
        return name


@dataclass(frozen=True)
class Table:
    """A table of the page.

    Attributes:
        title (str): Its heading on a new page.
        seeds (dict[Training, int]): Its rows, and how many seeds of each it needs.
        columns (tuple[str, ...]): Its columns, by their names in report.py.
    """

    title: str
    seeds: dict[Training, int]
    columns: tuple[str, ...] = ('half', 'end', 'seeds')


def rows(networks: Iterable[str], seeds: int, **settings) -> dict[Training, int]:
    """Networks that are all trained in one way."""
    return {Training(network, **settings): seeds for network in networks}


TABLES = {
    'a': Table(
        "PS-ViT against ViT (the paper's Table 7)",
        rows(['psvit', 'vit'], 3) | rows(['vit'], 1, length=5),
    ),
    'b': Table(
        'Where does the gain come from?',
        rows(MAIN, 3) | rows(['vit', 'iters1'], 1, length=5),
    ),
    'c': Table(
        'Number of iterations (Table 6)',
        rows(['iters1', 'iters2', 'psvit', 'iters6'], 3),
    ),
    'd': Table(
        'Number of points (Table 5)', rows(['n3', 'psvit', 'n5', 'n6', 'n8'], 1)
    ),
    'e': Table(
        'Shared weights (Table 8)',
        rows(['psvit', 'shared'], 3),
        ('parameters', 'half', 'end', 'seeds'),
    ),
    'g': Table(
        'Growing canvas and clutter',
        {Training(name, canvas): 1 for canvas in CANVASES for name in MAIN},
        ('px', 'half', 'end', 'seeds'),
    ),
    'h': Table(
        'Twice the learning rate',
        {Training(name, lr=lr): 1 for name in MAIN for lr in (LR, 2 * LR)},
        ('learning rate', 'half', 'end', 'inside', 'seeds'),
    ),
}
# Of all networks that have points; it trains nothing of its own.
TABLES['inside'] = Table(
    'Does it look at the digit?',
    {
        training: 0
        for table in TABLES.values()
        for training in table.seeds
        if not training.network.startswith('vit')
    },
    ('px', *(f'inside {t}' for t in range(1, 7)), 'seeds'),
)


@dataclass(frozen=True)
class Budget:
    """What all runs have in common."""

    steps: int = 1000
    num_train: int = 12800
    num_val: int = 2000


@dataclass(frozen=True)
class Run:
    """One training with one seed."""

    training: Training
    seed: int
    budget: Budget

    @property
    def name(self) -> str:
        """The name of its result file and of its work dir."""
        return f'{self.training.name}_seed{self.seed}'

    @property
    def config(self) -> Path:
        """Its config file."""
        return HERE / 'configs' / f'{self.training.network}.py'

    def settings(self) -> dict[str, float]:
        """What decides its result besides the code."""
        return {
            'canvas': self.training.canvas,
            'steps': self.budget.steps * self.training.length,
            'lr': self.training.lr,
            'seed': self.seed,
            **data_settings(self.training.canvas, self.budget),
        }


def format_lr(lr: float) -> str:
    """A learning rate as people write it: 5e-4, 2.5e-4."""
    return f'{lr:.1e}'.replace('.0e', 'e').replace('e-0', 'e-')


def num_clutter(canvas: int) -> int:
    """Fragments per image: 8 on the smallest canvas, and as densely on the others."""
    return round(8 * (canvas / CANVASES[0]) ** 2)


def data_settings(canvas: int, budget: Budget) -> dict[str, int]:
    """Arguments of make_cluttered_digits.py for a canvas, apart from its size."""
    return {
        'digit_size': 20,  # px, on every canvas
        'num_clutter': num_clutter(canvas),
        'num_train': budget.num_train,
        'num_val': budget.num_val,
    }


def plan_runs(names: Iterable[str], seeds: int | None, budget: Budget) -> list[Run]:
    """The runs that some tables need, each once, all with seed 0 first.

    Args:
        names (Iterable[str]): Names of the tables.
        seeds (int, optional): Seeds of each training; None for those of the tables.
        budget (Budget): What all runs have in common.
    """
    wanted: dict[Training, int] = {}
    for name in names:
        for training, count in TABLES[name].seeds.items():
            count = seeds if seeds and count else count
            wanted[training] = max(count, wanted.get(training, 0))
    return [
        Run(training, seed, budget)
        for seed in range(max(wanted.values(), default=0))
        for training, count in wanted.items()
        if seed < count
    ]
