# Copyright (c) mmpsvit contributors.
from .psvit_head import PSViTClsHead

__all__ = ['PSViTClsHead']
