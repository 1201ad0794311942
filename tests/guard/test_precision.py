# Copyright (c) mmpsvit contributors.
"""Precision of a training, and of the one that it resumes."""

from functools import partial

import pytest
import torch
from mmengine.config import Config
from mmengine.optim.optimizer import amp_optimizer_wrapper
from small_training import EPOCHS, make_runner, read_warnings
from stack import needs_new_torch

from mmpsvit.guard import load_checkpoint, saved_precision
from mmpsvit.guard.precision import precision_of

SETTINGS = [
    (dict(), 'float32'),
    (dict(type='OptimWrapper', accumulative_counts=2), 'float32'),
    (dict(type='AmpOptimWrapper'), 'float16'),
    (dict(type='mmengine.optim.AmpOptimWrapper', dtype=None), 'float16'),
    (dict(type='AmpOptimWrapper', dtype='bfloat16'), 'bfloat16'),
    (dict(type='AmpOptimWrapper', dtype=torch.bfloat16), 'bfloat16'),
    (dict(type='ApexOptimWrapper'), None),
]
FLOAT16 = dict(type='AmpOptimWrapper', dtype='float16', loss_scale='dynamic')
BFLOAT16 = dict(
    type='AmpOptimWrapper', dtype='bfloat16', loss_scale=dict(enabled=False)
)


@pytest.mark.parametrize(('settings', 'expected'), SETTINGS, ids=str)
def test_precision_of_a_config_and_of_its_text(settings, expected):
    optimizer = dict(type='AdamW', lr=1e-3, betas=(0.9, 0.999))
    wrapper = dict(settings, optimizer=optimizer, clip_grad=dict(max_norm=1.0))
    cfg = Config(dict(model=dict(dtype='float64'), optim_wrapper=wrapper))
    assert precision_of(cfg.optim_wrapper) == expected
    assert saved_precision(dict(cfg=cfg.pretty_text)) == expected


def test_text_is_not_run(tmp_path):
    trap = tmp_path / 'trap'
    call = f"__import__('os').mkdir({str(trap)!r})"
    for text in (
        f'{call}\noptim_wrapper = dict(dtype={call}, type="AmpOptimWrapper")',
        f'optim_wrapper = {call}',
    ):
        saved_precision(dict(cfg=text))
    assert not trap.exists()


@pytest.mark.parametrize('meta', [{}, dict(cfg=None), dict(cfg='a b'), dict(cfg='a=1')])
def test_text_that_does_not_tell(meta):
    assert saved_precision(meta) is None
    assert precision_of(object()) is None


@pytest.fixture
def scaler_on_the_cpu(monkeypatch):
    """Loss scaling without CUDA, where autocast is always bfloat16."""
    scaler = partial(torch.amp.GradScaler, device='cpu')
    monkeypatch.setattr(amp_optimizer_wrapper, 'GradScaler', scaler)
    monkeypatch.setattr(amp_optimizer_wrapper, 'is_cuda_available', lambda: True)


@needs_new_torch
@pytest.mark.parametrize(
    ('first', 'second', 'change'),
    [
        (FLOAT16, BFLOAT16, 'it was in float16 and is in bfloat16'),
        (BFLOAT16, FLOAT16, 'it was in bfloat16 and is in float16'),
        (BFLOAT16, dict(type='OptimWrapper'), 'it was in bfloat16 and is in float32'),
        (dict(type='OptimWrapper'), FLOAT16, 'it was in float32 and is in float16'),
        (BFLOAT16, BFLOAT16, None),
    ],
)
def test_resume_in_another_precision(
    first, second, change, scaler_on_the_cpu, tmp_path
):
    """A loss scale in the checkpoint or none; one warning if something changes."""
    for settings, resume in ((first, False), (second, True)):
        epochs = EPOCHS if resume else 2
        changes = {'train_cfg.max_epochs': epochs, 'param_scheduler.end': 9}
        for key, value in settings.items():
            changes[f'optim_wrapper.{key}'] = 'bfloat16' if key == 'dtype' else value
        runner = make_runner(tmp_path, resume=resume, **changes)
        runner.cfg.optim_wrapper = settings
        runner.train()
        state = load_checkpoint(tmp_path / f'epoch_{epochs}.pth')['optimizer']
        has_scale = settings.get('loss_scale') == 'dynamic'
        assert bool(state.get('loss_scaler')) == has_scale
    warnings = read_warnings(tmp_path)
    told = 'but does not end exactly as it would have without the interruption'
    assert warnings.count(told) == bool(change)
    assert change is None or change in warnings
