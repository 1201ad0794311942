# Copyright (c) mmpsvit contributors.
"""Keeps a training safe; knows no PS-ViT, and imports nothing of it."""

from .checkpoint import (
    CheckpointError,
    MissingCheckpointError,
    UnsafeCheckpointError,
    latest_checkpoint,
    load_checkpoint,
    use_safe_loading,
)
from .exact_checkpoint_hook import ExactCheckpointHook, adopt_seed
from .files import AtomicBackend, write_atomically
from .finite_loss_hook import FiniteLossHook, NonFiniteLossError
from .fit import CheckpointMisfitError, find_misfits
from .fit_hook import CheckpointFitHook
from .images import DataError

__all__ = [
    'AtomicBackend',
    'CheckpointError',
    'CheckpointFitHook',
    'CheckpointMisfitError',
    'DataError',
    'ExactCheckpointHook',
    'FiniteLossHook',
    'MissingCheckpointError',
    'NonFiniteLossError',
    'UnsafeCheckpointError',
    'adopt_seed',
    'find_misfits',
    'latest_checkpoint',
    'load_checkpoint',
    'use_safe_loading',
    'write_atomically',
]
