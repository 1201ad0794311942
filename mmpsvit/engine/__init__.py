# Copyright (c) mmpsvit contributors.
from .compile_hook import CompileHook
from .data_preprocessor import ClsDataPreprocessor
from .elastic_hook import ElasticPointsHook
from .ema import ForeachEMA
from .layer_decay import LayerDecayOptimWrapperConstructor
from .optimizers import AdamW
from .schedulers import CosineFactorLR

__all__ = [
    'AdamW',
    'ClsDataPreprocessor',
    'CompileHook',
    'CosineFactorLR',
    'ElasticPointsHook',
    'ForeachEMA',
    'LayerDecayOptimWrapperConstructor',
]
