# Copyright (c) mmpsvit contributors.
from .checkpoint import (
    CheckpointError,
    MissingCheckpointError,
    UnsafeCheckpointError,
    latest_checkpoint,
    load_checkpoint,
    use_safe_loading,
)
from .distributed import close_distributed, prepare_distributed
from .exact_checkpoint_hook import ExactCheckpointHook, adopt_seed
from .finite_loss_hook import FiniteLossHook, NonFiniteLossError
from .fit_hook import CheckpointFitHook
from .layer_decay import LayerDecayOptimWrapperConstructor
from .sampling_hook import SamplingVisualizationHook
from .schedulers import CosineFactorLR

__all__ = [
    'CheckpointError',
    'CheckpointFitHook',
    'CosineFactorLR',
    'ExactCheckpointHook',
    'FiniteLossHook',
    'LayerDecayOptimWrapperConstructor',
    'MissingCheckpointError',
    'NonFiniteLossError',
    'SamplingVisualizationHook',
    'UnsafeCheckpointError',
    'adopt_seed',
    'close_distributed',
    'latest_checkpoint',
    'load_checkpoint',
    'prepare_distributed',
    'use_safe_loading',
]
