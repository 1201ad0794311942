# Copyright (c) mmpsvit contributors.
"""Initial values have no outliers."""

import torch

from mmpsvit import PSViT, PSViTClsHead


def test_no_outliers(monkeypatch):
    """Where the uniform draw is its lower limit, whose erfinv is infinite."""
    monkeypatch.setattr(
        torch.Tensor, 'uniform_', lambda self, low, *_, **__: self.fill_(low)
    )
    patches = dict(type='mmpsvit.PatchSampling', num_iters=0)
    for sampler in (None, patches):
        backbone = PSViT('tiny', sampler=sampler)
        backbone.init_weights()
        head = PSViTClsHead(10, 192)
        head.init_weights()
        for model in (backbone, head):
            for name, parameter in model.named_parameters():
                if parameter.ndim > 1 and 'stem' not in name:
                    is_convolution = parameter.ndim == 4
                    assert is_convolution or parameter.abs().max() <= 0.12 + 1e-6, name
