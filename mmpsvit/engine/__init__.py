# Copyright (c) mmpsvit contributors.
from .elastic_hook import ElasticPointsHook
from .layer_decay import LayerDecayOptimWrapperConstructor
from .schedulers import CosineFactorLR

__all__ = [
    'CosineFactorLR',
    'ElasticPointsHook',
    'LayerDecayOptimWrapperConstructor',
]
