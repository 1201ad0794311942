# Copyright (c) mmpsvit contributors.
"""The cosine that a warm-up may run beside."""

import math

import pytest
import torch
from mmengine.optim import CosineAnnealingLR, LinearLR

from mmpsvit.engine import CosineFactorLR

BASE, LAST, STEPS = 0.1, 1e-3, 10


def rates(*kinds, base: float = BASE, steps: int = STEPS, **options) -> list[float]:
    """The learning rate of each step under schedulers that run side by side."""
    weight = torch.nn.Parameter(torch.ones(1))
    optimizer = torch.optim.SGD([dict(params=[weight], lr=base)], lr=BASE)
    options = dict(T_max=STEPS, end=999, by_epoch=False) | options
    schedulers = [kind(optimizer, **options) for kind in kinds]
    values = []
    for _ in range(steps):
        values.append(optimizer.param_groups[0]['lr'])
        optimizer.step()
        for scheduler in schedulers:
            scheduler.step()
    return values


@pytest.mark.parametrize('last', [0.0, LAST])
@pytest.mark.parametrize('steps', [STEPS, 3 * STEPS])
def test_alone_it_is_mmengines_cosine(last, steps):
    """Also past T_max, where it rises again, and from a rate of zero there."""
    values = rates(CosineFactorLR, steps=steps, eta_min=last)
    expected = rates(CosineAnnealingLR, steps=steps, eta_min=last)
    assert values == pytest.approx(expected, rel=1e-9, abs=1e-15)


@pytest.mark.parametrize('last', [0.0, LAST])
def test_rate_of_zero_stays_zero(last):
    """As ``lr_mult=0`` freezes a part of a network."""
    assert rates(CosineFactorLR, base=0.0, steps=15, eta_min=last) == [0.0] * 15


def test_exact_after_a_warm_up():
    def warm_up(optimizer, **_):
        return LinearLR(optimizer, start_factor=0.01, end=4, by_epoch=False)

    values = rates(warm_up, CosineFactorLR, eta_min=LAST)
    for step in range(5, STEPS):
        cosine = (1 + math.cos(math.pi * step / STEPS)) / 2
        assert values[step] == pytest.approx(LAST + (BASE - LAST) * cosine, rel=1e-9)


def test_groups_of_other_rates():
    """Of layer-wise learning rates."""
    bases = (BASE, BASE / 10)
    groups = [dict(params=[torch.nn.Parameter(torch.ones(1))], lr=b) for b in bases]
    optimizer = torch.optim.SGD(groups, lr=1.0)
    scheduler = CosineFactorLR(optimizer, T_max=STEPS, eta_min=LAST, by_epoch=False)
    for step in range(1, STEPS):
        optimizer.step()
        scheduler.step()
        cosine = (1 + math.cos(math.pi * step / STEPS)) / 2
        for group, base in zip(optimizer.param_groups, bases, strict=True):
            assert group['lr'] == pytest.approx(LAST + (base - LAST) * cosine)
