# Copyright (c) mmpsvit contributors.
from .progressive_sampling import ProgressiveSampling, SampledTokens

__all__ = ['ProgressiveSampling', 'SampledTokens']
