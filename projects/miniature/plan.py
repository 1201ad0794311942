# Copyright (c) mmpsvit contributors.
"""What is trained, and which table shows it."""

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from mmengine.config import Config

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
MINIATURE = HERE / 'configs'
DEMO = ROOT / 'configs' / 'cluttered_digits' / 'psvit_paper.py'
DATA = {  # settings of make_cluttered_digits.py, by the folder of the network's config
    MINIATURE: dict(size=64, digit_size=20, num_clutter=8, num_val=2000),
    DEMO.parent: dict(size=96, digit_size=28, num_clutter=16, num_val=1000),
}
LR = 5e-4  # of all configs
RATES = (2.5e-4, 5e-4, 1e-3, 2e-3)
RATES_SEED = 100  # of no other table
# px; None is 64. Divisible by 16, as 4 x 4 patches at stride 4 need
CANVASES = (None, 96, 128, 160)
POINTS = (4, 5, 6, 7, 8)  # per side, of the demonstration's elastic network
SAMPLER = 'model.backbone.sampler'
CUSTOM_KEYS = 'optim_wrapper.paramwise_cfg.custom_keys'


@dataclass(frozen=True)
class Network:
    """A network.

    Attributes:
        title (str): What tables call it.
        config (Path): Its config.
        options (Mapping): What differs from the config, as ``--cfg-options`` has it.
    """

    title: str
    config: Path = DEMO
    options: Mapping = field(default_factory=dict)


def factors(**of_parameters: float) -> dict:
    """Options: factors on the learning rate, by parts of the parameters' names."""
    keys = {key: dict(lr_mult=factor) for key, factor in of_parameters.items()}
    return {CUSTOM_KEYS: keys}


def fixed(kind: str) -> dict:
    """Options: fix the weights or biases of the offset layers, which begin at zero."""
    return factors(**{f'offset_layers.{index}.{kind}': 0.0 for index in range(3)})


def vit(patches: int, embed_dims: int, num_heads: int = 3, **settings) -> dict:
    """Options: a plain ViT as deep as the demonstration, from its patches per side."""
    size = DATA[DEMO.parent]['size']
    backbone = dict(
        _delete_=True,
        type='VisionTransformer',
        arch=dict(
            embed_dims=embed_dims,
            num_layers=6,
            num_heads=num_heads,
            feedforward_channels=3 * embed_dims,
        ),
        img_size=size,
        patch_size=size // patches,
        qkv_bias=False,
        **settings,
    )
    return {
        'model.backbone': backbone,
        'model.head.in_channels': embed_dims,
        CUSTOM_KEYS: {'.pos_embed': dict(decay_mult=0.0)},
    }


STEM = dict(patch_cfg=dict(conv_type='mmpsvit.MiniatureStemPatchEmbedding'))
CENTERED = {f'{SAMPLER}.center_offsets': True}
TITLES = {  # of the configs of the miniature
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
NETWORKS = {
    name: Network(title, MINIATURE / f'{name}.py') for name, title in TITLES.items()
}
NETWORKS |= {
    f'demo_{name}': Network(title, options=options)
    for name, title, options in (
        ('psvit', "PS-ViT, the paper's sampler", {}),
        ('centered', 'centred offsets, the demonstration', CENTERED),
        ('stay', 'points that stay', factors(offset=0.0)),
        (
            'shift',
            'a learned shift per iteration, the same everywhere',
            fixed('weight'),
        ),
        ('no_bias', 'no bias in the offset layers', fixed('bias')),
        ('slow', 'offset layers learn at a tenth of the rate', factors(offset=0.1)),
        (
            'centered_slow',
            'centred offsets, a tenth of the rate',
            {**CENTERED, **factors(offset=0.1)},
        ),
        ('vit', 'ViT', vit(6, 96)),
        ('vit_stem', 'ViT on the stem', vit(6, 96, **STEM)),
        ('vit_wide', 'ViT, wider', vit(6, 144)),
        ('vit_tokens', 'ViT, more tokens', vit(8, 104, num_heads=4)),
        ('elastic', 'elastic', {f'{SAMPLER}.num_points': list(POINTS)}),
        *(
            (f'n{n}', f'n = {n}', {f'{SAMPLER}.num_points': n})
            for n in POINTS
            if n != 6  # the demonstration's
        ),
    )
}


@dataclass(frozen=True)
class Training:
    """A network and how it is trained, with any seed."""

    network: str
    canvas: int | None = None  # px; None is that of the data of its config
    lr: float = LR
    length: float = 1  # in schedules of its config

    @property
    def data(self) -> dict[str, int]:
        """Settings of its data: on larger canvases as densely cluttered."""
        data = DATA[NETWORKS[self.network].config.parent]
        canvas = self.canvas or data['size']
        clutter = round(data['num_clutter'] * (canvas / data['size']) ** 2)
        return {**data, 'size': canvas, 'num_clutter': clutter}

    def config(self) -> Config:
        """Its config."""
        network = NETWORKS[self.network]
        cfg = Config.fromfile(network.config)
        cfg.merge_from_dict(network.options)
        cfg.train_cfg.max_iters = round(cfg.train_cfg.max_iters * self.length)
        warmup = cfg.param_scheduler[0]
        warmup.end = max(1, round(warmup.end * self.length))
        cfg.optim_wrapper.optimizer.lr = self.lr
        backbone = cfg.model.backbone
        if backbone.type == 'VisionTransformer':  # as many patches on every canvas
            patches = backbone.img_size // backbone.patch_size
            backbone.img_size = self.data['size']
            backbone.patch_size = self.data['size'] // patches
        return cfg


@dataclass(frozen=True)
class Run:
    """A training with a seed."""

    training: Training
    seed: int

    def key(self) -> dict:
        """What tells it from others, in its result."""
        return {**asdict(self.training), 'seed': self.seed}


Results = dict[Training, dict[int, dict]]  # by training and seed


def trainings(networks: Iterable[str], **settings) -> list[Training]:
    """Networks that are all trained in one way."""
    return [Training(network, **settings) for network in networks]


def runs(wanted: Iterable[Training], seeds: Iterable[int]) -> list[Run]:
    """All of some trainings, all with the first seed first."""
    wanted = list(wanted)
    return [Run(training, seed) for seed in seeds for training in wanted]


def read_results(folder: Path = HERE / 'results') -> Results:
    """The results in a folder."""
    results = {}
    for path in sorted(folder.glob('*.jsonl')):
        for line in path.read_text().splitlines():
            result = json.loads(line)
            settings = {key: result[key] for key in vars(Training(''))}
            results.setdefault(Training(**settings), {})[result['seed']] = result
    return results


def accuracy(result: dict) -> float:
    """Top-1 at the end of a training, in percent."""
    return result['curve'][-1]['accuracy']


def at_rates(network: str, results: Results) -> dict[float, float]:
    """Top-1 of a network at each learning rate that was tried."""
    found = {
        lr: results.get(Training(network, lr=lr), {}).get(RATES_SEED) for lr in RATES
    }
    return {lr: accuracy(result) for lr, result in found.items() if result}


def at_best_rate(network: str, results: Results, **settings) -> Training:
    """A training of a network at the learning rate that is best in a short one."""
    tried = at_rates(network, results)
    if not tried:
        raise SystemExit(f'error: first run.py --only rates ({network} has none)')
    return Training(network, lr=max(tried, key=tried.get), **settings)


MAIN = ('psvit', 'vit', 'vit_same_stem', 'iters1')
CONTROLS = tuple(
    f'demo_{name}'
    for name in (
        'psvit', 'centered', 'stay', 'shift', 'no_bias', 'slow', 'centered_slow'
    )
)  # fmt: skip
ELASTIC = ('demo_psvit', 'demo_elastic', 'demo_n4', 'demo_n5', 'demo_n7', 'demo_n8')
LONG = ('demo_psvit', 'demo_centered', 'demo_stay', 'demo_vit', 'demo_vit_stem')
COST = ('demo_vit_wide', 'demo_vit_tokens')
GROWN = ('demo_psvit', 'demo_centered', 'demo_stay')

# What each experiment trains, from the results that there are. Those of one letter are
# the tables of README.md.
EXPERIMENTS: dict[str, Callable[[Results], list[Run]]] = {
    'a': lambda _: [
        *runs(trainings(['psvit', 'vit']), range(3)),
        Run(Training('vit', length=5), 0),
    ],
    'b': lambda _: [
        *runs(trainings(MAIN), range(3)),
        *runs(trainings(['vit', 'iters1'], length=5), [0]),
    ],
    'c': lambda _: runs(trainings(['iters1', 'iters2', 'psvit', 'iters6']), range(3)),
    'd': lambda _: runs(trainings(['n3', 'psvit', 'n5', 'n6', 'n8']), [0]),
    'e': lambda _: runs(trainings(['psvit', 'shared']), range(3)),
    'g': lambda _: runs(
        [Training(name, canvas) for canvas in CANVASES for name in MAIN], [0]
    ),
    'h': lambda _: runs(
        [Training(name, lr=lr) for name in MAIN for lr in (LR, 2 * LR)], [0]
    ),
    'controls': lambda _: runs(trainings(CONTROLS), range(5)),
    'elastic': lambda _: [
        *runs(trainings(ELASTIC), range(5)),
        *runs(trainings(['demo_elastic', 'demo_psvit'], length=1.5), range(5)),
    ],
    'rates': lambda _: runs(
        [Training(name, lr=lr) for lr in RATES for name in LONG], [RATES_SEED]
    ),
    'long': lambda results: [
        *runs(trainings([*LONG, *COST]), range(3)),
        *runs([at_best_rate(name, results, length=5) for name in LONG], range(3)),
        *runs(trainings(['demo_stay', 'demo_vit_stem'], length=5), [0]),
    ],
    'canvas': lambda _: runs(
        [
            Training(name, canvas, lr, length=2)
            for canvas in (128, 160)
            for name in GROWN
            for lr in (LR, 2 * LR)
        ],
        [0],
    ),
}


def format_lr(lr: float) -> str:
    """A learning rate as people write it: 5e-4, 2.5e-4."""
    return f'{lr:.1e}'.replace('.0e', 'e').replace('e-0', 'e-')
