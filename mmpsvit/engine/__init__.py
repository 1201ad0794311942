# Copyright (c) mmpsvit contributors.
from .compile_hook import CompileHook
from .ema import ForeachEMA
from .layer_decay import LayerDecayOptimWrapperConstructor
from .optimizers import AdamW
from .schedulers import CosineFactorLR

__all__ = [
    'AdamW',
    'CompileHook',
    'CosineFactorLR',
    'ForeachEMA',
    'LayerDecayOptimWrapperConstructor',
]
