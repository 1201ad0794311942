# Copyright (c) mmpsvit contributors.
from .explanation import (
    EXPLANATION_METHODS,
    Explanation,
    blend_heat,
    explain,
    heat_map,
)
from .file_pipeline import (
    FilePipeline,
    find_channels,
    first_view,
    in_channels,
    testing_dataset,
)
from .prediction import (
    SampledImage,
    class_name,
    sample_images,
    spread_indices,
)
from .sampling import (
    draw_sampling,
    figure_to_rgb,
    find_sampler,
    movement_shares,
    record_sampling,
    sampling_figure,
    sampling_picture,
    without_drift,
)
from .sampling_hook import SamplingVisualizationHook
from .trained import build_model, build_trained

__all__ = [
    'EXPLANATION_METHODS',
    'Explanation',
    'FilePipeline',
    'SampledImage',
    'SamplingVisualizationHook',
    'blend_heat',
    'build_model',
    'build_trained',
    'class_name',
    'draw_sampling',
    'explain',
    'figure_to_rgb',
    'find_channels',
    'find_sampler',
    'first_view',
    'heat_map',
    'in_channels',
    'movement_shares',
    'record_sampling',
    'sample_images',
    'sampling_figure',
    'sampling_picture',
    'spread_indices',
    'testing_dataset',
    'without_drift',
]
