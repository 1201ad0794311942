# Copyright (c) mmpsvit contributors.
"""The patch embedding of ViTs with the stem of the small PS-ViTs."""

from mmpsvit.models import StemPatchEmbedding
from mmpsvit.registry import MODELS


@MODELS.register_module()
class MiniatureStemPatchEmbedding(StemPatchEmbedding):
    """The stem of configs/psvit.py; MMPretrain's ViT lets no config choose a stem."""

    def __init__(self, in_channels: int, out_channels: int, *args, **kwargs) -> None:
        channels = dict(base_channels=32, stem_channels=(out_channels, out_channels))
        super().__init__(in_channels, out_channels, *args, **channels, **kwargs)
