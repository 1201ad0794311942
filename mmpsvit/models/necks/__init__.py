# Copyright (c) mmpsvit contributors.
from .patch_sampling import PatchSampling
from .progressive_sampling import ProgressiveSampling, SampledTokens

__all__ = ['PatchSampling', 'ProgressiveSampling', 'SampledTokens']
