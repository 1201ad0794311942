# Copyright (c) mmpsvit contributors.
from .sampling import draw_sampling, record_sampling, sampling_figure

__all__ = ['draw_sampling', 'record_sampling', 'sampling_figure']
