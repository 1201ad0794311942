# Copyright (c) mmpsvit contributors.
from .compile_hook import CompileHook
from .elastic_hook import ElasticPointsHook
from .ema import ForeachEMA
from .layer_decay import LayerDecayOptimWrapperConstructor
from .optimizers import AdamW
from .schedulers import CosineFactorLR

__all__ = [
    'AdamW',
    'CompileHook',
    'CosineFactorLR',
    'ElasticPointsHook',
    'ForeachEMA',
    'LayerDecayOptimWrapperConstructor',
]
