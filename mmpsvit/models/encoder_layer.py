# Copyright (c) mmpsvit contributors.
"""The transformer layer that sampling iterations and encoder share."""

from functools import partial

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
        encode = super().forward
        if num_outputs is not None:
            encode = partial(self._encode_first, num_outputs)
        if self.with_cp and self.training and x.requires_grad:
            return cp.checkpoint(encode, x, use_reentrant=False)
        return encode(x)

    def _encode_first(self, count: int, x: Tensor) -> Tensor:
        """The first tokens of what MMPretrain's layer returns, and nothing else."""
        attn = self.attn
        batch, length, _ = x.shape
        # One call for all of q, k and v, so that a wrapped layer (LoRA) works as well.
        qkv = attn.qkv(self.ln1(x)).reshape(
            batch, length, 3, attn.num_heads, attn.head_dims
        )
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        out = attn.scaled_dot_product_attention(
            query[:, :, :count],
            key,
            value,
            dropout_p=attn.attn_drop if self.training else 0.0,
        )
        out = attn.proj(out.transpose(1, 2).reshape(batch, count, attn.embed_dims))
        x = x[:, :count] + attn.out_drop(attn.gamma1(attn.proj_drop(out)))
        return self.ffn(self.ln2(x), identity=x)
