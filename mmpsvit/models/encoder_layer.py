# Copyright (c) mmpsvit contributors.
"""The transformer layer that sampling iterations and encoder share."""

from contextlib import AbstractContextManager, nullcontext

import torch
import torch.utils.checkpoint as cp
from mmcv.cnn.bricks import DropPath as MMCVDropPath
from mmcv.cnn.bricks.transformer import FFN
from mmengine.model import BaseModule, weight_init
from mmpretrain.models.utils import (
    MultiheadAttention,
    SwiGLUFFNFused,
    build_norm_layer,
)
from packaging.version import Version
from torch import Tensor

# The initial values of PS-ViT: truncated normal. MMEngine truncates at -2 and 2 by
# default, 100 standard deviations. Its draws are erfinv(uniform(-1, 1)), which is -inf
# once in 2**24 draws: a network of 20 million weights would start with a weight of -2.
# Six standard deviations change nothing else.
_STD = 0.02
_BOUND = 6 * _STD
LINEAR_INIT = dict(type='TruncNormal', layer='Linear', std=_STD, a=-_BOUND, b=_BOUND)

# Before, fused attention in bfloat16 on the CPU writes out of bounds in its backward
# pass with some odd numbers of tokens, 197 for one (pytorch/pytorch#115253).
_FUSED_BFLOAT16_ATTENTION_IS_SAFE = Version(torch.__version__) >= Version('2.2')


def trunc_normal_(tensor: Tensor) -> Tensor:
    """Fill a tensor in place with the initial values of PS-ViT's weights."""
    return weight_init.trunc_normal_(tensor, std=_STD, a=-_BOUND, b=_BOUND)


def _safe_kernels(x: Tensor) -> AbstractContextManager:
    """A context where the attention of ``x`` takes no kernel that damages memory."""
    is_safe = _FUSED_BFLOAT16_ATTENTION_IS_SAFE or x.device.type != 'cpu'
    if is_safe or x.dtype != torch.bfloat16:
        return nullcontext()
    return torch.backends.cuda.sdp_kernel(enable_flash=False)


class DropPath(MMCVDropPath):
    """Stochastic depth, and the sum after it, in half as many operations.

    mmcv's draws in the dtype of the tokens, which rounds the rate on the CPU: in
    bfloat16 it leaves out 1/256 of the samples for a rate of 0.005.
    """

    def forward(self, x: Tensor, identity: Tensor) -> Tensor:
        """Add ``x`` to ``identity``, both (B, ...), but in some samples of a batch."""
        if not (self.training and self.drop_prob):
            return identity + x
        keep_prob = 1 - self.drop_prob
        kept = x.new_empty(x.shape[:1] + (1,) * (x.ndim - 1)).bernoulli_(keep_prob)
        return torch.add(identity, x * kept, alpha=1 / keep_prob)


class Attention(MultiheadAttention):
    """MMPretrain's attention, which can also answer for the first tokens alone."""

    def forward(self, x: Tensor, identity: Tensor) -> Tensor:
        """Attend to all tokens.

        Args:
            x (Tensor): Tokens (B, L, C).
            identity (Tensor): What is added to the result: (B, M, C), of the first M
                tokens, which alone attend.

        Returns:
            Tensor: The sum, (B, M, C).
        """
        (batch, length, _), count = x.shape, identity.shape[1]
        # One call for q, k and v, so that a wrapped projection (LoRA) works as well.
        # Cut like this, their gradients become one contiguous one in one copy.
        # (MMPretrain indexes a stack: three gradients of its size, mostly zeros.)
        # (B, L, 3 * C) -> 3 x (B, heads, L, d)
        qkv = self.qkv(x).view(batch, length, 3 * self.num_heads, self.head_dims)
        query, key, value = (part.transpose(1, 2) for part in qkv.chunk(3, dim=2))
        with _safe_kernels(query):
            x = self.scaled_dot_product_attention(
                query[:, :, :count],
                key,
                value,
                dropout_p=self.attn_drop if self.training else 0.0,
            )
        x = self.proj(x.transpose(1, 2).reshape(batch, count, self.embed_dims))
        return self.out_drop(self.gamma1(self.proj_drop(x)), identity)


class MLP(FFN):
    """mmcv's, without its decorator, which inspects a signature in every call."""

    def forward(self, x: Tensor, identity: Tensor) -> Tensor:
        """Add what the MLP makes of ``x`` to ``identity``, both (B, L, C)."""
        return self.dropout_layer(self.gamma2(self.layers(x)), identity)


class EncoderLayer(BaseModule):
    """A pre-LN transformer layer: attention, then an MLP with exact GELU.

    Its parameters are named as in MMPretrain's ViT.

    Args:
        embed_dims (int): Number of channels.
        num_heads (int): Number of attention heads.
        feedforward_channels (int): Hidden channels of the MLP.
        layer_scale_init_value (float): Initial value of a learned factor on what each
            of the two parts adds; 0 means no such factor. Defaults to 0.
        drop_rate (float): Dropout after the attention's projection and in the MLP.
            Defaults to 0.
        attn_drop_rate (float): Dropout of the attention's weights. Defaults to 0.
        drop_path_rate (float): Stochastic depth rate. Defaults to 0.
        num_fcs (int): Number of linear layers in the MLP. Defaults to 2.
        qkv_bias (bool): Whether queries, keys and values have a bias. Defaults to
            False.
        ffn_type (str): 'origin' for mmcv's MLP, 'swiglu_fused' for MMPretrain's SwiGLU,
            which has no dropout. Defaults to 'origin'.
        act_cfg (dict, optional): Activation of the MLP. Defaults to None, which means
            exact GELU.
        norm_cfg (dict, optional): Norm before both parts. Defaults to None, which means
            LayerNorm with an eps of 1e-5.
        with_cp (bool): Whether to recompute the activations in the backward pass,
            to save memory. Defaults to False.
        init_cfg (dict, optional): Initialisation config. Defaults to None, which means
            truncated normal weights of std 0.02.

    Raises:
        ValueError: If ``ffn_type`` is unknown.
    """

    def __init__(
        self,
        embed_dims: int,
        num_heads: int,
        feedforward_channels: int,
        layer_scale_init_value: float = 0.0,
        drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        num_fcs: int = 2,
        qkv_bias: bool = False,
        ffn_type: str = 'origin',
        act_cfg: dict | None = None,
        norm_cfg: dict | None = None,
        with_cp: bool = False,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(LINEAR_INIT if init_cfg is None else init_cfg)
        norm_cfg = norm_cfg or dict(type='LN', eps=1e-5)
        drop_path = dict(type=DropPath, drop_prob=drop_path_rate)
        self.with_cp = with_cp
        self.ln1 = build_norm_layer(norm_cfg, embed_dims)
        self.attn = Attention(
            embed_dims,
            num_heads,
            attn_drop=attn_drop_rate,
            proj_drop=drop_rate,
            dropout_layer=drop_path,
            qkv_bias=qkv_bias,
            layer_scale_init_value=layer_scale_init_value,
        )
        self.ln2 = build_norm_layer(norm_cfg, embed_dims)
        if ffn_type == 'origin':
            self.ffn = MLP(
                embed_dims,
                feedforward_channels,
                num_fcs=num_fcs,
                act_cfg=act_cfg or dict(type='GELU'),
                ffn_drop=drop_rate,
                dropout_layer=drop_path,
                layer_scale_init_value=layer_scale_init_value,
            )
        elif ffn_type == 'swiglu_fused':
            self.ffn = SwiGLUFFNFused(
                embed_dims,
                feedforward_channels,
                layer_scale_init_value=layer_scale_init_value,
            )
        else:
            raise ValueError(
                f"ffn_type must be 'origin' or 'swiglu_fused', got {ffn_type!r}"
            )

    def forward(self, x: Tensor, num_outputs: int | None = None) -> Tensor:
        """Encode tokens.

        Args:
            x (Tensor): Tokens (B, L, C), cast to the dtype of this layer: under
                autocast, the sum that runs through all layers stays in float32, as in
                MMPretrain's ViT.
            num_outputs (int, optional): How many of the first tokens to encode; the
                others are seen by these, but not encoded. Defaults to None, which
                means all of them.

        Returns:
            Tensor: Tokens (B, L, C), or (B, num_outputs, C).
        """
        if self.ln1.weight is not None:
            x = x.to(self.ln1.weight.dtype)
        if self.with_cp and self.training and x.requires_grad:
            return cp.checkpoint(self._encode, x, num_outputs, use_reentrant=False)
        return self._encode(x, num_outputs)

    def _encode(self, x: Tensor, num_outputs: int | None) -> Tensor:
        first = x if num_outputs is None else x[:, :num_outputs]
        x = self.attn(self.ln1(x), identity=first)
        return self.ffn(self.ln2(x), identity=x)
