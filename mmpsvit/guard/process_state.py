# Copyright (c) mmpsvit contributors.
"""What one process of a training has to itself: random state and buffers."""

import random
from collections.abc import Iterator

import numpy as np
import torch
from mmengine.dist import get_world_size
from mmengine.hooks import EMAHook
from mmengine.runner import Runner
from torch import Tensor

from .fit import unwrap


def get_random_state() -> dict:
    """Get the random state of Python, NumPy and PyTorch in this process.

    Returns:
        dict: Tensors and plain Python objects only, which every loader of checkpoints
        accepts. With CUDA, the state of the current device is part of it.
    """
    name, keys, *rest = np.random.get_state()
    state = dict(
        python=random.getstate(),
        numpy=(name, keys.tolist(), *rest),
        torch=torch.get_rng_state(),
    )
    if torch.cuda.is_available():
        state['cuda'] = torch.cuda.get_rng_state()
    return state


def set_random_state(state: dict) -> None:
    """Set the random state of this process.

    Args:
        state (dict): Result of :func:`get_random_state`, tensors on any device.
    """
    random.setstate(state['python'])
    name, keys, *rest = state['numpy']
    np.random.set_state((name, np.array(keys, np.uint32), *rest))
    torch.set_rng_state(state['torch'].cpu())
    if 'cuda' in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state['cuda'].cpu())


def get_process_state(runner: Runner) -> dict:
    """Get what a checkpoint must hold of each process.

    Statistics of BatchNorm differ between processes, and a model's state dict has
    those of the first one only.
    """
    buffers = {}
    if get_world_size() > 1:
        buffers = {name: value.cpu().clone() for name, value in _buffers(runner)}
    return dict(random=get_random_state(), buffers=buffers)


def set_process_state(runner: Runner, state: dict) -> None:
    """Set what :func:`get_process_state` got."""
    set_random_state(state['random'])
    for name, value in _buffers(runner):
        if name in state['buffers']:
            value.copy_(state['buffers'][name])


def _buffers(runner: Runner) -> Iterator[tuple[str, Tensor]]:
    """The buffers of the model and of the averages of its weights."""
    averages = [hook for hook in runner.hooks if isinstance(hook, EMAHook)]
    yield from unwrap(runner.model).named_buffers()
    for index, hook in enumerate(averages):
        yield from hook.ema_model.named_buffers(prefix=f'average_{index}')
