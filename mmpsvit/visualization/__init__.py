# Copyright (c) mmpsvit contributors.
from .prediction import (
    SampledImage,
    SampledImages,
    class_name,
    predict_sampling,
    sample_images,
    spread_indices,
)
from .sampling import (
    draw_sampling,
    figure_to_rgb,
    find_sampler,
    record_sampling,
    sampling_figure,
    sampling_picture,
)
from .sampling_hook import SamplingVisualizationHook
from .trained import build_trained

__all__ = [
    'SampledImage',
    'SampledImages',
    'SamplingVisualizationHook',
    'build_trained',
    'class_name',
    'draw_sampling',
    'figure_to_rgb',
    'find_sampler',
    'predict_sampling',
    'record_sampling',
    'sample_images',
    'sampling_figure',
    'sampling_picture',
    'spread_indices',
]
