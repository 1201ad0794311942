# Copyright (c) mmpsvit contributors.
from .prediction import SampledImages, predict_sampling, spread_indices
from .sampling import (
    draw_sampling,
    figure_to_rgb,
    find_sampler,
    record_sampling,
    sampling_figure,
)

__all__ = [
    'SampledImages',
    'draw_sampling',
    'figure_to_rgb',
    'find_sampler',
    'predict_sampling',
    'record_sampling',
    'sampling_figure',
    'spread_indices',
]
