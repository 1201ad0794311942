# Copyright (c) mmpsvit contributors.
from .backbones import PSViT
from .heads import PSViTClsHead
from .necks import ProgressiveSampling, SampledTokens

__all__ = ['PSViT', 'PSViTClsHead', 'ProgressiveSampling', 'SampledTokens']
