# Copyright (c) mmpsvit contributors.
from .psvit import PSViT

__all__ = ['PSViT']
