# Copyright (c) mmpsvit contributors.
from .layer_decay import LayerDecayOptimWrapperConstructor
from .schedulers import CosineFactorLR

__all__ = ['CosineFactorLR', 'LayerDecayOptimWrapperConstructor']
