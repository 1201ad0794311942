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
from .data_hook import DataHook, leaf_datasets
from .errors import DataError, one_line
from .exact_checkpoint_hook import ExactCheckpointHook, adopt_seed
from .exact_loop import ExactIterBasedTrainLoop
from .files import AtomicBackend, write_atomically
from .finite_loss_hook import FiniteLossHook, NonFiniteLossError
from .fit import (
    CheckpointFitHook,
    CheckpointMisfitError,
    find_misfits,
    raise_misfits,
    shorten,
    unwrap,
    without_wrapper,
)
from .precision import saved_precision, type_name

__all__ = [
    'AtomicBackend',
    'CheckpointError',
    'CheckpointFitHook',
    'CheckpointMisfitError',
    'DataError',
    'DataHook',
    'ExactCheckpointHook',
    'ExactIterBasedTrainLoop',
    'FiniteLossHook',
    'MissingCheckpointError',
    'NonFiniteLossError',
    'UnsafeCheckpointError',
    'adopt_seed',
    'find_misfits',
    'latest_checkpoint',
    'leaf_datasets',
    'load_checkpoint',
    'one_line',
    'raise_misfits',
    'saved_precision',
    'shorten',
    'type_name',
    'unwrap',
    'use_safe_loading',
    'without_wrapper',
    'write_atomically',
]
