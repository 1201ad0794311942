# Copyright (c) mmpsvit contributors.
"""The initial values of PS-ViT: truncated normal, std 0.02."""

from torch import Tensor, nn

STD = 0.02
# PyTorch and MMEngine truncate at -2 and 2 by default, 100 standard deviations. Their
# draws are erfinv(uniform(-1, 1)), which is -inf once in 2**24 draws: a network of 20
# million weights would start with a weight of -2. Six standard deviations change
# nothing else.
_BOUND = 6 * STD

LINEAR_INIT = dict(type='TruncNormal', layer='Linear', std=STD, a=-_BOUND, b=_BOUND)


def trunc_normal_(tensor: Tensor) -> Tensor:
    """Fill a tensor in place with the initial values of PS-ViT's weights."""
    return nn.init.trunc_normal_(tensor, std=STD, a=-_BOUND, b=_BOUND)
