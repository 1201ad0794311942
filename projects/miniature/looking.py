# Copyright (c) mmpsvit contributors.
"""Train the networks of looking.md, and write their results.

    python projects/miniature/looking.py                    # what has no result yet
    python projects/miniature/looking.py --only controls    # of some questions
    python projects/miniature/looking_report.py             # the tables of the pages

A training takes five minutes on a CPU core. On a GPU, `--group 7` trains seven networks
side by side, in about half a minute. Results are lines of JSON in looking/*.jsonl;
several processes may work at once on different questions, each with an `--out` of its
own in that folder.
"""

# isort: off
import mmpsvit  # noqa: F401  First: it says what to install if something is missing.
# isort: on

import argparse
import json
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from measure import describe_setting
from mmengine.config import Config
from mmengine.logging import MMLogger
from plan import HERE
from trainer import Settings, Trainer, make_images, train_together

from mmpsvit.guard import write_atomically
from mmpsvit.models import StemPatchEmbedding
from mmpsvit.registry import MODELS

DEMO = HERE.parents[1] / 'configs' / 'cluttered_digits' / 'psvit_paper.py'
RESULTS = HERE / 'looking'
CANVAS, LR, STEPS = 96, 5e-4, 800  # of the demonstration
RATES = (2.5e-4, 5e-4, 1e-3, 2e-3)
RATES_SEED = 100  # of no other table
POINTS = (4, 5, 6, 7, 8)  # per side
MEASURES = 8  # in a training


@MODELS.register_module()
class DemoStemPatchEmbedding(StemPatchEmbedding):
    """The stem of the demonstration; MMPretrain's ViT lets no config choose a stem."""

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, base_channels=32, stem_channels=(96, 96), **kwargs)


def vit(patches: int, embed_dims: int, num_heads: int = 3, stem: bool = False) -> dict:
    """A plain ViT with the depth of the demonstration, from its number of patches."""
    arch = dict(
        embed_dims=embed_dims,
        num_layers=6,
        num_heads=num_heads,
        feedforward_channels=3 * embed_dims,
    )
    patch = (
        {'patch_cfg': {'conv_type': f'mmpsvit.{DemoStemPatchEmbedding.__name__}'}}
        if stem
        else {}
    )
    kind = {'type': 'VisionTransformer', 'qkv_bias': False}
    return {**kind, 'arch': arch, 'patches': patches, **patch}


@dataclass(frozen=True)
class Network:
    """A network, by how it differs from the demonstration's.

    Attributes:
        title (str): What tables call it.
        sampler (dict): Other settings of the sampler.
        rates (dict): Factors on the learning rate, by parts of parameters' names.
        backbone (dict, optional): Another backbone, see :func:`vit`.
    """

    title: str
    sampler: Mapping = field(default_factory=dict)
    rates: Mapping[str, float] = field(default_factory=dict)
    backbone: Mapping | None = None


def fixed(kind: str) -> dict[str, float]:
    """Fix the weights or the biases of the offset layers, which begin at zero."""
    return {f'offset_layers.{index}.{kind}': 0.0 for index in range(3)}


NETWORKS = {
    'psvit': Network("PS-ViT, the paper's sampler"),
    'no_bias': Network('no bias in the offset layers', rates=fixed('bias')),
    'slow': Network(
        'offset layers learn at a tenth of the rate', rates={'offset': 0.1}
    ),
    'shift': Network(
        'a learned shift per iteration, the same everywhere', rates=fixed('weight')
    ),
    'stay': Network('points that stay', rates={'offset': 0.0}),
    'centered': Network('centred offsets, the demonstration', {'center_offsets': True}),
    'centered_slow': Network(
        'centred offsets, a tenth of the rate',
        {'center_offsets': True},
        {'offset': 0.1},
    ),
    'vit': Network('ViT', backbone=vit(6, 96)),
    'vit_stem': Network('ViT on the stem', backbone=vit(6, 96, stem=True)),
    'vit_wide': Network('ViT, wider', backbone=vit(6, 144)),
    'vit_tokens': Network('ViT, more tokens', backbone=vit(8, 104, num_heads=4)),
    'elastic': Network('elastic', {'num_points': list(POINTS)}),
    **{f'n{n}': Network(f'n = {n}', {'num_points': n}) for n in POINTS if n != 6},
}


@dataclass(frozen=True)
class Training:
    """A network, and how it is trained with some seed."""

    network: str
    lr: float = LR
    length: float = 1  # in schedules of the demonstration
    canvas: int = CANVAS

    @property
    def steps(self) -> int:
        """Training steps."""
        return round(STEPS * self.length)

    def config(self) -> Config:
        """Its config."""
        network, cfg = NETWORKS[self.network], Config.fromfile(DEMO)
        cfg.train_cfg.max_iters = self.steps
        cfg.param_scheduler[0].end = self.steps // 16  # the demonstration's 50 of 800
        cfg.optim_wrapper.optimizer.lr = self.lr
        cfg.optim_wrapper.paramwise_cfg.custom_keys.update(
            {key: dict(lr_mult=factor) for key, factor in network.rates.items()}
        )
        cfg.model.backbone.sampler.update(network.sampler)
        if network.backbone:
            backbone = dict(network.backbone)
            backbone.update(
                img_size=self.canvas, patch_size=self.canvas // backbone.pop('patches')
            )
            cfg.model.backbone = backbone
            cfg.model.head.in_channels = backbone['arch']['embed_dims']
            cfg.optim_wrapper.paramwise_cfg.custom_keys['.pos_embed'] = dict(
                decay_mult=0.0
            )
        return cfg


@dataclass(frozen=True)
class Run:
    """A training with a seed."""

    training: Training
    seed: int

    def key(self) -> dict:
        """What tells it from others, in its result."""
        return {**asdict(self.training), 'seed': self.seed}


def runs_of(networks: Iterable[str], seeds: Iterable[int], **settings) -> list[Run]:
    """Networks that are all trained in one way, all with the first seed first."""
    networks = list(networks)
    return [Run(Training(n, **settings), seed) for seed in seeds for n in networks]


CONTROLS = ('psvit', 'centered', 'stay', 'shift', 'no_bias', 'slow', 'centered_slow')
ELASTIC = ('psvit', 'elastic', 'n4', 'n5', 'n7', 'n8')
LONG = ('psvit', 'centered', 'stay', 'vit', 'vit_stem')
COST = ('vit_wide', 'vit_tokens')


def best_rate(network: str, results: list[dict]) -> float:
    """The learning rate that was best for a network, with a seed of its own."""
    found = {
        result['lr']: result['curve'][-1]['accuracy']
        for result in results
        if result['network'] == network and result['seed'] == RATES_SEED
    }
    if found.keys() != {*RATES}:
        raise SystemExit(f'error: first looking.py --only rates ({network} lacks some)')
    return max(found, key=found.get)


def at_best_rates(
    networks: Iterable[str], results: list[dict], **settings
) -> list[Run]:
    """Three seeds of networks, each at its best learning rate."""
    rates = {network: best_rate(network, results) for network in networks}
    return [
        run
        for seed in range(3)
        for network, lr in rates.items()
        for run in runs_of([network], [seed], lr=lr, **settings)
    ]


# What each question trains, from the results that there are.
QUESTIONS: dict[str, Callable[[list[dict]], list[Run]]] = {
    'controls': lambda _: runs_of(CONTROLS, range(5)),
    'elastic': lambda _: [
        *runs_of(ELASTIC, range(5)),
        *runs_of(['elastic'], range(5), length=1.5),
    ],
    'rates': lambda _: [
        run for lr in RATES for run in runs_of([*LONG, *COST], [RATES_SEED], lr=lr)
    ],
    'long': lambda results: [
        *at_best_rates([*LONG, *COST], results),
        *at_best_rates(LONG, results, length=5),
    ],
    'canvas': lambda _: [
        run
        for canvas in (128, 160)
        for run in runs_of(
            ('psvit', 'centered', 'stay', 'vit_stem'), [0], canvas=canvas, length=5
        )
    ],
}


def read_results() -> list[dict]:
    """All results that there are."""
    lines = (path.read_text().splitlines() for path in sorted(RESULTS.glob('*.jsonl')))
    return [json.loads(line) for lines in lines for line in lines]


def settings_of(canvas: int) -> Settings:
    """The data of a canvas: the demonstration's, as densely cluttered."""
    return Settings(size=canvas, num_clutter=round(16 * (canvas / CANVAS) ** 2))


def do_missing(args: argparse.Namespace) -> None:
    """Train what has no result yet, and append the results."""
    deadline = time.monotonic() + args.seconds
    about, images = describe_setting(), {}
    for question in args.only:
        results = read_results()
        done = [{k: r[k] for k in Run(Training(''), 0).key()} for r in results]
        missing = [r for r in QUESTIONS[question](results) if r.key() not in done]
        missing.sort(key=lambda run: run.training.canvas)
        while missing:
            if time.monotonic() > deadline:
                raise SystemExit('looking.py: out of time; the same command goes on')
            canvas = missing[0].training.canvas
            group = [r for r in missing[: args.group] if r.training.canvas == canvas]
            missing = missing[len(group) :]
            if canvas not in images:
                made = make_images(settings_of(canvas))
                images = {canvas: {k: v.to(args.device) for k, v in made.items()}}
            if args.device.type == 'cuda':
                about['machine']['gpu'] = torch.cuda.get_device_name(args.device)
            start = time.monotonic()
            trainers = [
                Trainer(run.training.config(), run.seed, images[canvas])
                for run in group
            ]
            curves = train_together(trainers, MEASURES)
            for run, trainer, curve in zip(group, trainers, curves, strict=True):
                result = {**run.key(), 'curve': curve}
                if run.training.network in ELASTIC:
                    result['at_points'] = trainer.measure_points(POINTS)
                result['parameters'] = sum(
                    p.numel() for p in trainer.model.parameters()
                )
                with args.out.open('a') as file:
                    file.write(json.dumps({**result, **about}) + '\n')
                save(run, trainer, args.save)
                print(f'{run}: {curve[-1]["accuracy"]:.1f} %', flush=True)
            print(f'{len(group)} runs: {time.monotonic() - start:.0f} s', flush=True)


def save(run: Run, trainer: Trainer, folder: Path | None) -> None:
    """Save the weights of a network."""
    if folder:
        folder.mkdir(parents=True, exist_ok=True)
        name = '_'.join(map(str, run.key().values())) + '.pth'
        with write_atomically(folder / name) as temporary:
            torch.save({'state_dict': trainer.model.state_dict()}, temporary)


def main() -> None:
    """Train what is missing."""
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    add = parser.add_argument
    default = 'cuda' if torch.cuda.is_available() else 'cpu'
    add('--only', nargs='+', choices=QUESTIONS, default=list(QUESTIONS))
    add('--device', type=torch.device, default=default)
    add('--group', type=int, default=1, help='networks trained side by side')
    add('--seconds', type=float, default=1e9, help='begin no others after that')
    add('--out', type=Path, default=RESULTS / 'results.jsonl', help='is appended to')
    add('--save', type=Path, help='folder for the weights')
    args = parser.parse_args()
    MMLogger.get_instance('looking', log_level='WARNING')
    args.out.parent.mkdir(exist_ok=True)
    do_missing(args)


if __name__ == '__main__':
    main()
