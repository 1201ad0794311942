# Copyright (c) mmpsvit contributors.
from .point_sampling import (
    SampledMap,
    channels_last,
    prepare_map,
    sample_points,
    splat_points,
)

__all__ = [
    'SampledMap',
    'channels_last',
    'prepare_map',
    'sample_points',
    'splat_points',
]
