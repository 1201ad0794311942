# Copyright (c) mmpsvit contributors.
from .point_sampling import prepare_map, sample_points, splat_points

__all__ = ['prepare_map', 'sample_points', 'splat_points']
