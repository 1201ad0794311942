# Copyright (c) mmpsvit contributors.
"""The transformer layer that sampling iterations and encoder share."""

import torch.utils.checkpoint as cp
from mmengine.model import BaseModule
from mmpretrain.models.backbones.vision_transformer import TransformerEncoderLayer
from mmpretrain.models.utils import MultiheadAttention
from torch import Tensor

from mmpsvit.compat import attention_kernels
from mmpsvit.models.initialization import LINEAR_INIT


class Attention(MultiheadAttention):
    """MMPretrain's attention, which can also answer for the first tokens alone."""

    def forward(self, x: Tensor, num_outputs: int | None = None) -> Tensor:
        """Attend to all tokens.

        Args:
            x (Tensor): Tokens (B, L, C).
            num_outputs (int, optional): How many of the first tokens attend. Defaults
                to None, which means all of them.

        Returns:
            Tensor: What is added to the tokens that attend, (B, L, C) or
            (B, num_outputs, C).
        """
        batch, length, _ = x.shape
        count = length if num_outputs is None else num_outputs
        # One call for q, k and v, so that a wrapped projection (LoRA) works as well.
        qkv = self.qkv(x).reshape(batch, length, 3, self.num_heads, self.head_dims)
        # Unbound, their gradients are stacked once. (MMPretrain indexes them: three
        # gradients of the size of all, filled with zeros and added up.)
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind()
        with attention_kernels(query):
            x = self.scaled_dot_product_attention(
                query[:, :, :count],
                key,
                value,
                dropout_p=self.attn_drop if self.training else 0.0,
            )
        x = self.proj(x.transpose(1, 2).reshape(batch, count, self.embed_dims))
        return self.out_drop(self.gamma1(self.proj_drop(x)))


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
        # The same module with the same weights, called in one more way.
        self.attn.__class__ = Attention
        self.with_cp = with_cp

    def init_weights(self) -> None:
        """Initialise the weights as ``init_cfg`` says.

        MMPretrain's layer afterwards overwrites its MLP with Xavier weights.
        """
        BaseModule.init_weights(self)

    def forward(self, x: Tensor, num_outputs: int | None = None) -> Tensor:
        """Encode tokens.

        Args:
            x (Tensor): Tokens (B, L, C).
            num_outputs (int, optional): How many of the first tokens to encode; the
                others are seen by these, but not encoded. Defaults to None, which
                means all of them.

        Returns:
            Tensor: Tokens (B, L, C), or (B, num_outputs, C).
        """
        if self.with_cp and self.training and x.requires_grad:
            return cp.checkpoint(self._encode, x, num_outputs, use_reentrant=False)
        return self._encode(x, num_outputs)

    def _encode(self, x: Tensor, num_outputs: int | None) -> Tensor:
        attended = self.attn(self.ln1(x), num_outputs=num_outputs)
        x = x[:, :num_outputs] + attended
        return self.ffn(self.ln2(x), identity=x)
