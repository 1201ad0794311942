# Copyright (c) mmpsvit contributors.
from .convolution import conv7_as_conv4, conv_relu, may_restate
from .kernels import is_compiling, is_untouched
from .point_sampling import channels_last, sample_points, splat_points
from .sampled_map import KERNELS, SampledMap

__all__ = [
    'KERNELS',
    'SampledMap',
    'channels_last',
    'conv7_as_conv4',
    'conv_relu',
    'is_compiling',
    'is_untouched',
    'may_restate',
    'sample_points',
    'splat_points',
]
