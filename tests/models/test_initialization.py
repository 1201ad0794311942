# Copyright (c) mmpsvit contributors.
"""Initial values have no outliers."""

import torch
from mmengine.model.weight_init import trunc_normal_
from torch.overrides import TorchFunctionMode

from mmpsvit import PSViT, PSViTClsHead


class LowestDraw(TorchFunctionMode):
    """Every uniform draw is its lower limit, whose erfinv is infinite."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is torch.Tensor.uniform_:
            return args[0].fill_(args[1])
        return func(*args, **(kwargs or {}))


def test_no_outliers():
    backbone, head = PSViT('tiny'), PSViTClsHead(10, 192)
    with LowestDraw():
        assert trunc_normal_(torch.empty(1)) < -1.99
        backbone.init_weights()
        head.init_weights()
    for name, parameter in [*backbone.named_parameters(), *head.named_parameters()]:
        if parameter.ndim > 1 and 'stem' not in name:
            assert parameter.abs().max() <= 0.12 + 1e-6, name
            assert 'offset' in name or parameter.abs().min() > 0.1, name
