# Copyright (c) mmpsvit contributors.
"""Random state of a process."""

import random
from types import SimpleNamespace

import numpy as np
import torch
from torch import nn

from mmpsvit.guard import process_state
from mmpsvit.guard.process_state import get_random_state, set_random_state


def test_random_state_is_plain_and_complete(tmp_path):
    def draw() -> list[float]:
        return [
            random.random(),
            random.gauss(0, 1),
            np.random.rand(),
            np.random.standard_normal(),
            torch.randn(()).item(),
        ]

    draw()  # Of the pairs of normal numbers, one is kept for later.
    state = get_random_state()
    expected = draw()
    torch.save(state, tmp_path / 'state.pth')
    set_random_state(torch.load(tmp_path / 'state.pth', weights_only=True))
    assert draw() == expected


def test_buffers_of_a_process(monkeypatch):
    monkeypatch.setattr(process_state, 'get_world_size', lambda: 2)
    runner = SimpleNamespace(model=nn.BatchNorm1d(2), hooks=[])
    state = process_state.get_process_state(runner)
    runner.model.running_mean += 1
    process_state.set_process_state(runner, state)
    assert runner.model.running_mean.tolist() == [0, 0]
