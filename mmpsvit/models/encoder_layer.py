# Copyright (c) mmpsvit contributors.
"""The transformer layer that sampling iterations and encoder share."""

import torch.utils.checkpoint as cp
from mmengine.model import BaseModule
from mmpretrain.models.backbones.vision_transformer import TransformerEncoderLayer
from torch import Tensor

from mmpsvit.models.initialization import LINEAR_INIT


class EncoderLayer(TransformerEncoderLayer):
    """MMPretrain's pre-LN transformer layer as PS-ViT has it.

    Without qkv bias, with LayerNorm's eps at 1e-5, with truncated-normal weights,
    and with activation checkpointing.

    Args:
        embed_dims (int): Number of channels.
        num_heads (int): Number of attention heads.
        feedforward_channels (int): Hidden channels of the MLP.
        with_cp (bool): Whether to recompute the activations in the backward pass,
            to save memory. Defaults to False.
        **kwargs: Other arguments of MMPretrain's ``TransformerEncoderLayer``.
    """

    def __init__(
        self,
        embed_dims: int,
        num_heads: int,
        feedforward_channels: int,
        with_cp: bool = False,
        **kwargs,
    ) -> None:
        kwargs.setdefault('qkv_bias', False)
        kwargs.setdefault('norm_cfg', dict(type='LN', eps=1e-5))
        kwargs.setdefault('init_cfg', LINEAR_INIT)
        super().__init__(embed_dims, num_heads, feedforward_channels, **kwargs)
        self.with_cp = with_cp

    def init_weights(self) -> None:
        """Initialise the weights as ``init_cfg`` says.

        MMPretrain's layer afterwards overwrites its MLP with Xavier weights.
        """
        BaseModule.init_weights(self)

    def forward(self, x: Tensor) -> Tensor:
        """Encode tokens of shape (B, L, C)."""
        if self.with_cp and self.training and x.requires_grad:
            return cp.checkpoint(super().forward, x, use_reentrant=False)
        return super().forward(x)
