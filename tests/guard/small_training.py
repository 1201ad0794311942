# Copyright (c) mmpsvit contributors.
"""Trainings of a second or less that tests of the engine run in their own process."""

import random
import uuid
from pathlib import Path

import numpy as np
import torch
from mmengine.config import Config
from mmengine.evaluator import BaseMetric
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmengine.runner import Runner
from torch import nn
from torch.utils._pytree import tree_flatten

from mmpsvit.guard import load_checkpoint

EPOCHS, ITERATIONS = 4, 12


class Killed(BaseException):
    """Stands for a SIGKILL: nothing in the package or MMEngine handles it."""


class Network(BaseModel):
    """A regression that draws random numbers of PyTorch and NumPy."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)  # The runner, which seeds too, comes later.
        self.layers = nn.Sequential(
            nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 1)
        )

    def forward(self, inputs, mode='tensor'):
        outputs = self.layers(torch.stack(inputs))
        if mode == 'loss':
            return dict(loss=(outputs - np.random.rand()).square().mean())
        return list(outputs)


class Vectors:
    """A data set, by default with random numbers in each vector."""

    def __init__(self, is_random: bool = True) -> None:
        self.vectors = torch.randn(12, 4, generator=torch.Generator().manual_seed(0))
        self.is_random = is_random

    def __len__(self) -> int:
        return 12

    def __getitem__(self, index: int) -> dict:
        vector = self.vectors[index]
        if self.is_random:
            vector = vector * np.random.rand() + random.random() + torch.rand(4)
        return dict(inputs=vector)


class Draws(Vectors):
    """A data set of nothing but random numbers."""

    def __getitem__(self, index: int) -> dict:
        return dict(inputs=torch.full((4,), np.random.rand()))


class Score(BaseMetric):
    """The mean output."""

    default_prefix = 'mean'

    def process(self, data_batch, data_samples):
        self.results += [float(sample) for sample in data_samples]

    def compute_metrics(self, results):
        return dict(score=sum(results) / len(results))


class Recorder(Hook):
    """Records the scores of a training, and may stop it."""

    priority = 'LOWEST'

    def __init__(self, last_iter: int | None = None, in_validation: bool = False):
        self.last_iter = last_iter
        self.in_validation = in_validation
        self.scores = {}
        self.inputs = []

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        self.inputs += [float(vector[0]) for vector in data_batch['inputs']]
        if not self.in_validation:
            self.stop(runner)

    def before_val_iter(self, runner, batch_idx, data_batch=None):
        if self.in_validation:
            self.stop(runner)

    def stop(self, runner: Runner) -> None:
        if runner.iter == self.last_iter:
            raise Killed

    def after_val_epoch(self, runner, metrics=None):
        self.scores[runner.iter] = metrics['mean/score']


def make_runner(
    work_dir: Path,
    by_epoch: bool = True,
    num_workers: int = 0,
    dataset: Vectors | None = None,
    recorder: Recorder | None = None,
    average: dict | None = None,
    **changes,
) -> Runner:
    """A small training with an EMAHook; ``changes`` are the runner's, with dots."""
    kind, unit = ('DefaultSampler', 1) if by_epoch else ('InfiniteSampler', 2)
    # Validation is due between checkpoints as well.
    train_cfg = (
        dict(by_epoch=True, max_epochs=EPOCHS, val_interval=1)
        if by_epoch
        else dict(
            type='mmpsvit.ExactIterBasedTrainLoop',
            max_iters=ITERATIONS,
            val_interval=3,
        )
    )
    loader = dict(batch_size=4, num_workers=num_workers, persistent_workers=False)
    cfg = Config(
        dict(
            work_dir=str(work_dir),
            train_dataloader=dict(loader, sampler=dict(type=kind)),
            val_dataloader=dict(
                loader,
                num_workers=0,
                sampler=dict(type='DefaultSampler', shuffle=False),
            ),
            train_cfg=train_cfg,
            val_cfg=dict(),
            optim_wrapper=dict(optimizer=dict(type='AdamW', lr=0.01)),
            param_scheduler=dict(type='CosineAnnealingLR', T_max=99, by_epoch=False),
            default_hooks=dict(
                checkpoint=dict(
                    type='mmpsvit.ExactCheckpointHook',
                    interval=unit,
                    by_epoch=by_epoch,
                    save_best='mean/score',
                    rule='greater',
                    max_keep_ckpts=2,
                )
            ),
            randomness=dict(seed=0),
            # Two of one name in one second would share a MessageHub.
            experiment_name=uuid.uuid4().hex,
            log_level='WARNING',
        )
    )
    cfg.merge_from_dict(changes)
    parts = cfg.to_dict()
    dataset = dataset or Vectors()
    parts['train_dataloader']['dataset'] = parts['val_dataloader']['dataset'] = dataset
    return Runner(
        Network(),
        val_evaluator=[Score()],
        custom_hooks=[
            dict(type='EMAHook', momentum=0.1, **(average or {})),
            recorder or Recorder(),
        ],
        **parts,
    )


def read(work_dir: Path) -> dict:
    """All that is in the checkpoints but times and folders."""
    return {
        (path.name, key): value
        for path in work_dir.glob('[!.]*.pth')
        for key, value in load_checkpoint(path).items()
        if key not in ('meta', 'message_hub')
    }


def assert_same(results: dict, expected: dict) -> None:
    """Compare bit for bit."""
    assert sorted(results) == sorted(expected)
    for name, value in results.items():
        leaves, structure = tree_flatten(value)
        others, other_structure = tree_flatten(expected[name])
        assert structure == other_structure, name
        for one, other in zip(leaves, others, strict=True):
            is_tensor = isinstance(one, torch.Tensor)
            assert torch.equal(one, other) if is_tensor else one == other, name


def read_warnings(work_dir: Path) -> str:
    return '\n'.join(path.read_text() for path in work_dir.glob('*/*.log'))
