# Copyright (c) mmpsvit contributors.
from .checkpoint import (
    CheckpointError,
    UnsafeCheckpointError,
    load_checkpoint,
    use_safe_loading,
)
from .distributed import close_distributed, prepare_distributed
from .schedulers import CosineFactorLR

__all__ = [
    'CheckpointError',
    'CosineFactorLR',
    'UnsafeCheckpointError',
    'close_distributed',
    'load_checkpoint',
    'prepare_distributed',
    'use_safe_loading',
]
