# Copyright (c) mmpsvit contributors.
from .point_sampling import SampledMap, prepare_map, sample_points, splat_points

__all__ = ['SampledMap', 'prepare_map', 'sample_points', 'splat_points']
