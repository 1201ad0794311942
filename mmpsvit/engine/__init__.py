# Copyright (c) mmpsvit contributors.
from .ema import ForeachEMA
from .layer_decay import LayerDecayOptimWrapperConstructor
from .optimizers import AdamW
from .schedulers import CosineFactorLR

__all__ = [
    'AdamW',
    'CosineFactorLR',
    'ForeachEMA',
    'LayerDecayOptimWrapperConstructor',
]
