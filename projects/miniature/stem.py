# Copyright (c) mmpsvit contributors.
"""The patch embedding of configs/vit_same_stem.py."""

from mmpsvit.models import StemPatchEmbedding
from mmpsvit.registry import MODELS


@MODELS.register_module()
class MiniatureStemPatchEmbedding(StemPatchEmbedding):
    """The stem of configs/psvit.py; MMPretrain's ViT lets no config choose a stem."""

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, base_channels=32, stem_channels=(64, 64), **kwargs)
