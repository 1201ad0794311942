# Copyright (c) mmpsvit contributors.
"""A small network, and points that move."""

import torch
from torch import nn

from mmpsvit import PSViT


def small_arch(**changes) -> dict:
    """The settings of a network that is built and run in no time."""
    arch = dict(
        embed_dims=24,
        num_layers=4,
        num_heads=3,
        feedforward_channels=48,
        stem_base_channels=8,
        stem_channels=(24,),
    )
    return arch | changes


def move_points(sampler: nn.Module, std: float = 0.3, bias_std: float = 0.0) -> None:
    """Randomise the offset layers, which are zero at first."""
    for layer in sampler.offset_layers:
        nn.init.normal_(layer.weight, std=std)
        if bias_std:
            nn.init.normal_(layer.bias, std=bias_std)


def small_backbone(**kwargs) -> PSViT:
    """A small backbone whose points move."""
    torch.manual_seed(0)
    kwargs.setdefault('sampler', dict(num_points=4))
    arch = small_arch(num_layers=6, stem_channels=(16, 24))
    backbone = PSViT(arch, **kwargs)
    backbone.init_weights()
    move_points(backbone.sampler, std=0.1, bias_std=0.1)
    return backbone
