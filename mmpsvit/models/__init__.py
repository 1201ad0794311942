# Copyright (c) mmpsvit contributors.
from .backbones import PSViT
from .heads import PSViTClsHead
from .necks import PatchSampling, ProgressiveSampling, SampledTokens

__all__ = [
    'PSViT',
    'PSViTClsHead',
    'PatchSampling',
    'ProgressiveSampling',
    'SampledTokens',
]
