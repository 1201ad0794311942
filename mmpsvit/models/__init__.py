# Copyright (c) mmpsvit contributors.
from .backbones import PSViT, StemPatchEmbedding
from .heads import PSViTClsHead
from .necks import ProgressiveSampling, SampledTokens

__all__ = [
    'PSViT',
    'PSViTClsHead',
    'ProgressiveSampling',
    'SampledTokens',
    'StemPatchEmbedding',
]
