# Copyright (c) mmpsvit contributors.
from .checkpoint import UnsafeCheckpointError, load_checkpoint, use_safe_loading
from .distributed import close_distributed, prepare_distributed

__all__ = [
    'UnsafeCheckpointError',
    'close_distributed',
    'load_checkpoint',
    'prepare_distributed',
    'use_safe_loading',
]
