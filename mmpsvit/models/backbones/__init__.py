# Copyright (c) mmpsvit contributors.
from .psvit import PSViT
from .stem import StemPatchEmbedding

__all__ = ['PSViT', 'StemPatchEmbedding']
