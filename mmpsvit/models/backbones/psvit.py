# Copyright (c) mmpsvit contributors.
"""PS-ViT: Vision Transformer with Progressive Sampling (ICCV 2021)."""

import itertools
from collections.abc import Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from mmengine.model import ModuleList
from mmpretrain.models.backbones.base_backbone import BaseBackbone
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from mmpsvit.guard.fit import refuse_foreign_weights
from mmpsvit.models.backbones.pyramid import build_pyramid, check_strides
from mmpsvit.models.backbones.stem import STEM_STRIDE, Stem
from mmpsvit.models.encoder_layer import EncoderLayer, trunc_normal_
from mmpsvit.registry import MODELS

REQUIRED_ARCH_KEYS = ('embed_dims', 'num_layers', 'num_heads', 'feedforward_channels')
OPTIONAL_ARCH_KEYS = ('stem_base_channels', 'stem_channels')


@MODELS.register_module()
class PSViT(BaseBackbone):
    """Vision Transformer with Progressive Sampling.

    A CNN stem computes a feature map of stride 4, a sampler takes tokens from it at
    points that it moves iteration by iteration, and a transformer encodes a class
    token and these tokens (https://arxiv.org/abs/2108.01684, section 3).

    Args:
        arch (str | dict): 'tiny', 'base', or a dict with the keys

            - **embed_dims** (int): Channels C of the feature map and the tokens.
            - **num_layers** (int): Sampling iterations and encoder layers together.
            - **num_heads** (int): Attention heads.
            - **feedforward_channels** (int): Hidden channels of the MLPs.
            - **stem_base_channels** (int): Channels of the stem's first convolution
              and middle channels of its bottlenecks. Optional, 64.
            - **stem_channels** (Sequence[int]): Output channels of the stem's
              bottlenecks, the last one equal to embed_dims. Optional,
              (256, embed_dims).

            Defaults to 'base'.
        sampler (dict, optional): Config of the sampler. What it leaves out of
            embed_dims, num_heads, feedforward_channels, feat_stride, drop_rate,
            drop_path_rate and with_cp is filled in; its num_iters layers count as
            layers of ``arch``. Defaults to None, which means
            ``dict(type='mmpsvit.ProgressiveSampling')``.
        in_channels (int): Channels of the image. Defaults to 3.
        out_type (str): What comes out, for each of ``out_indices``:

            - ``'cls_token'``: The class token, (B, C).
            - ``'avg_featmap'``: The mean of the point tokens, (B, C).
            - ``'raw'``: All tokens, (B, 1 + N, C), or (B, N, C) without class token.
            - ``'featmap'``: One map (B, C, ceil(H / s), ceil(W / s)) for each stride
              s of ``out_strides``, from the point tokens and the stem's map, see
              :func:`build_pyramid`. Takes one of ``out_indices``. Padding that a
              detector adds to the images of a batch is not masked.

            Defaults to 'cls_token'.
        out_indices (int | Sequence[int]): Encoder layers, counted from 0 after the
            sampler, whose output is returned; negative ones count from the end. The
            last layer's output is normalised. Defaults to -1.
        out_strides (Sequence[int]): Strides of the maps of ``out_type='featmap'``,
            increasing powers of two from 4 on. Defaults to (4, 8, 16, 32).
        with_cls_token (bool): Whether a class token joins the tokens after the
            sampling. Defaults to True.
        drop_rate (float): Dropout after the attention's projection and in the MLP.
            Defaults to 0.
        drop_path_rate (float): Stochastic depth rate of the last layer; it rises
            linearly from 0 over iterations and encoder layers. Defaults to 0.
        frozen_stages (int): What is not trained: -1 nothing, 0 the stem, 1 also the
            sampler, 1 + k also the first k encoder layers (with the class token, and
            with the last of them the final norm). Defaults to -1.
        norm_eval (bool): Whether the stem's BatchNorms stay in eval mode while
            training. Defaults to False.
        with_cp (bool): Whether to recompute activations in the backward pass, to
            save memory. Defaults to False.
        init_cfg (dict, optional): Initialisation config, e.g. a pretrained
            checkpoint. Defaults to None, which means the paper's initial values.

    Attributes:
        cls_token_only (bool): Whether the last layer leaves out all tokens but the
            class token, which changes no value and saves 5 % of B/14's operations.
            True for ``out_type='cls_token'``.

    Raises:
        ValueError: If an argument is out of its range, or two of them clash.
    """

    arch_zoo: ClassVar[dict] = {
        'tiny': {
            'embed_dims': 192,
            'num_layers': 12,
            'num_heads': 3,
            'feedforward_channels': 576,
            'stem_channels': (192, 192),
        },
        'base': {
            'embed_dims': 384,
            'num_layers': 14,
            'num_heads': 6,
            'feedforward_channels': 1152,
        },
    }
    OUT_TYPES = ('cls_token', 'avg_featmap', 'raw', 'featmap')
    OUT_STRIDES = (4, 8, 16, 32)

    def __init__(
        self,
        arch: str | dict = 'base',
        sampler: dict | None = None,
        in_channels: int = 3,
        out_type: str = 'cls_token',
        out_indices: int | Sequence[int] = -1,
        out_strides: Sequence[int] = OUT_STRIDES,
        with_cls_token: bool = True,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        frozen_stages: int = -1,
        norm_eval: bool = False,
        with_cp: bool = False,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(init_cfg)
        arch = resolve_arch(arch, self.arch_zoo)
        if out_type not in self.OUT_TYPES:
            raise ValueError(
                f'out_type must be one of {self.OUT_TYPES}, got {out_type!r}'
            )
        if out_type == 'cls_token' and not with_cls_token:
            raise ValueError("out_type = 'cls_token' needs with_cls_token = True")
        # The public method of this name exists from PyTorch 2.5 on.
        self._register_load_state_dict_pre_hook(
            refuse_foreign_weights, with_module=True
        )
        self.arch = arch
        self.in_channels = in_channels
        self.embed_dims = arch['embed_dims']
        self.num_layers = arch['num_layers']
        self.out_type = out_type
        self.cls_token_only = out_type == 'cls_token'
        self.out_strides = check_strides(out_strides)
        self.norm_eval = norm_eval

        self.stem = Stem(
            in_channels, arch['stem_base_channels'], arch['stem_channels'], with_cp
        )

        # From 0 to the rate, one for each layer; the sampler takes the first of them.
        # (torch.linspace would have no values under `torch.device('meta')`.)
        steps = max(1, self.num_layers - 1)
        rates = [drop_path_rate * i / steps for i in range(self.num_layers)]
        layer_args = dict(
            embed_dims=self.embed_dims,
            num_heads=arch['num_heads'],
            feedforward_channels=arch['feedforward_channels'],
            drop_rate=drop_rate,
            with_cp=with_cp,
        )
        sampler = dict(sampler or {})
        sampler.setdefault('type', 'mmpsvit.ProgressiveSampling')
        num_iters = sampler.setdefault('num_iters', 4)
        if not 1 <= num_iters < self.num_layers:
            raise ValueError(
                'sampler.num_iters must be in [1, arch.num_layers - 1] = '
                f'[1, {self.num_layers - 1}], got {num_iters}'
            )
        defaults = dict(feat_stride=STEM_STRIDE, drop_path_rate=rates[:num_iters])
        self.sampler = MODELS.build({**layer_args, **defaults, **sampler})
        if self.sampler.embed_dims != self.embed_dims:
            raise ValueError(
                f'sampler.embed_dims must be arch.embed_dims = {self.embed_dims}, got '
                f'{self.sampler.embed_dims}'
            )

        self.cls_token = None
        if with_cls_token:
            self.cls_token = nn.Parameter(torch.zeros(1, 1, self.embed_dims))
        self.layers = ModuleList(
            EncoderLayer(**layer_args, drop_path_rate=rate)
            for rate in rates[num_iters:]
        )
        self.norm = nn.LayerNorm(self.embed_dims, eps=1e-5)

        self.out_indices = self._check_out_indices(out_indices)
        if out_type == 'featmap' and len(self.out_indices) > 1:
            raise ValueError(
                f"out_type = 'featmap' takes one of out_indices, got {out_indices}"
            )
        if not -1 <= frozen_stages <= 1 + len(self.layers):
            raise ValueError(
                f'frozen_stages must be in [-1, {1 + len(self.layers)}], got '
                f'{frozen_stages}'
            )
        self.frozen_stages = frozen_stages
        self._freeze_stages()

    def _check_out_indices(self, out_indices: int | Sequence[int]) -> tuple[int, ...]:
        depth = len(self.layers)
        given = [out_indices] if isinstance(out_indices, int) else list(out_indices)
        indices = tuple(index + depth if index < 0 else index for index in given)
        if (
            not indices
            or any(not 0 <= index < depth for index in indices)
            or any(a >= b for a, b in itertools.pairwise(indices))
        ):
            raise ValueError(
                f'out_indices must be increasing indices of the {depth} encoder layers '
                f'(in [-{depth}, {depth - 1}]), got {out_indices}'
            )
        return indices

    def init_weights(self) -> None:
        """Initialise the weights: the class token here, the rest in the modules."""
        if self.cls_token is not None and not self.is_init:
            trunc_normal_(self.cls_token)
        # Last, since a pretrained checkpoint overwrites everything.
        super().init_weights()

    def _frozen(self) -> list[nn.Module | nn.Parameter]:
        """The modules and parameters that are not trained."""
        frozen = []
        if self.frozen_stages >= 0:
            frozen.append(self.stem)
        if self.frozen_stages >= 1:
            frozen.append(self.sampler)
        if self.frozen_stages >= 2:
            frozen.extend(self.layers[: self.frozen_stages - 1])
            if self.cls_token is not None:
                frozen.append(self.cls_token)
        # What no output comes from would have no gradient, at which DDP stops.
        unused = self.layers[self.out_indices[-1] + 1 :]
        frozen.extend(unused)
        if unused or self.frozen_stages == 1 + len(self.layers):
            frozen.append(self.norm)
        return frozen

    def _freeze_stages(self) -> None:
        for part in self._frozen():
            part.requires_grad_(False)

    def train(self, mode: bool = True) -> 'PSViT':
        """Set the mode; frozen parts, and norms under ``norm_eval``, stay in eval."""
        super().train(mode)
        if mode:
            for part in self._frozen():
                if isinstance(part, nn.Module):
                    part.eval()
            if self.norm_eval:
                for module in self.modules():
                    if isinstance(module, _BatchNorm):
                        module.eval()
        return self

    def switch_to_deploy(self) -> None:
        """Make inference faster, see :meth:`Stem.switch_to_deploy`.

        Call it once, with the final weights; the backbone cannot be trained, nor other
        weights be loaded afterwards.
        """
        self.stem.switch_to_deploy()

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Compute features.

        Args:
            x (Tensor): Images (B, in_channels, H, W) of any size.

        Returns:
            tuple[Tensor, ...]: For each of ``out_indices``, or of ``out_strides``, what
            ``out_type`` says.

        Raises:
            ValueError: If ``x`` has another shape, or no pixels.
            TypeError: If ``x`` is no tensor, or not floating point.
        """
        images = self._prepare_images(x)
        feat = self.stem(images)
        sampled = self.sampler(feat)
        outs = self._encode(sampled.tokens)
        if self.out_type == 'featmap':
            return build_pyramid(
                self._point_tokens(outs[0]),
                sampled.grid_size,
                feat,
                self.out_strides,
                image_size=x.shape[-2:],
                padded_size=images.shape[-2:],
            )
        return tuple(self._format_output(out) for out in outs)

    def _encode(self, x: Tensor) -> list[Tensor]:
        """Run the encoder on point tokens; return the tokens of ``out_indices``."""
        if self.cls_token is not None:
            # (B, N, C) -> (B, 1 + N, C)
            # Not len(x), which is a constant in an exported graph.
            x = torch.cat((self.cls_token.expand(x.shape[0], -1, -1), x), dim=1)

        outs = []
        for index, layer in enumerate(self.layers):
            if index < len(self.layers) - 1:
                x = layer(x)
            else:
                x = layer(x, num_outputs=1 if self.cls_token_only else None)
                x = self.norm(x)
            if index in self.out_indices:
                outs.append(x)
            if index == self.out_indices[-1]:
                break
        return outs

    def _prepare_images(self, x: Tensor) -> Tensor:
        """Check images, and pad them to whole cells of the sampler's grid."""
        if not isinstance(x, Tensor):
            raise TypeError(
                f'x must be a tensor (B, {self.in_channels}, H, W), got a '
                f'{type(x).__name__}: images must be stacked, by the collate function '
                'or the data preprocessor'
            )
        if x.ndim != 4 or x.shape[1] != self.in_channels or 0 in x.shape[2:]:
            raise ValueError(
                f'x must have shape (B, {self.in_channels}, H, W) with at least one '
                f'pixel, got {tuple(x.shape)}'
            )
        if not x.is_floating_point():
            raise TypeError(f'x must be floating point, got {x.dtype}')
        stride = getattr(self.sampler, 'point_stride', None)
        if stride is not None:
            height, width = x.shape[-2:]
            x = F.pad(x, (0, -width % stride, 0, -height % stride))
        return x

    def _format_output(self, x: Tensor) -> Tensor:
        if self.out_type == 'raw':
            return x
        if self.out_type == 'cls_token':
            return x[:, 0]
        return self._point_tokens(x).mean(dim=1)

    def _point_tokens(self, x: Tensor) -> Tensor:
        """All tokens (B, L, C) but the class token."""
        return x if self.cls_token is None else x[:, 1:]

    def get_layer_depth(self, param_name: str, prefix: str = '') -> tuple[int, int]:
        """The depth of a parameter, for layer-wise learning rate decay.

        Args:
            param_name (str): Name of the parameter.
            prefix (str): Prefix of this backbone's parameters. Defaults to ''.

        Returns:
            tuple[int, int]: The depth and the number of depths. The stem has depth
            0, iteration t (from 1) depth t, shared iterations 1, the encoder layers
            follow, the final norm and everything outside the backbone are last. The
            class token enters with the last iteration's tokens and has their depth.
        """
        num_depths = self.num_layers + 2
        last = num_depths - 1
        if not param_name.startswith(prefix):
            return last, num_depths
        room, *path = param_name[len(prefix) :].split('.')
        if room == 'stem':
            return 0, num_depths
        if room == 'cls_token':
            return self.sampler.num_iters, num_depths
        if room == 'layers':
            return self.sampler.num_iters + int(path[0]) + 1, num_depths
        if room == 'sampler':
            indexed = len(path) > 1 and path[1].isdigit()
            depth = (int(path[1]) if indexed else 0) + 1
            return min(depth, self.sampler.num_iters), num_depths
        return last, num_depths


def resolve_arch(arch: str | dict, arch_zoo: dict[str, dict]) -> dict:
    """Return a complete copy of an architecture's settings.

    Args:
        arch (str | dict): Name in the zoo, or settings, as in :class:`PSViT`.
        arch_zoo (dict[str, dict]): Settings by name.

    Returns:
        dict: All settings, optional ones filled in.

    Raises:
        ValueError: If the name is unknown, or keys are missing, unknown or clash.
    """
    if isinstance(arch, str):
        if arch not in arch_zoo:
            raise ValueError(
                f'arch must be one of {list(arch_zoo)} or a dict, got {arch!r}'
            )
        arch = arch_zoo[arch]
    unknown = sorted(set(arch) - {*REQUIRED_ARCH_KEYS, *OPTIONAL_ARCH_KEYS})
    missing = [key for key in REQUIRED_ARCH_KEYS if key not in arch]
    if unknown or missing:
        raise ValueError(
            f'arch has unknown keys {unknown} and lacks the keys {missing}; '
            f'required are {REQUIRED_ARCH_KEYS}, optional {OPTIONAL_ARCH_KEYS}'
        )
    arch = {
        'stem_base_channels': 64,
        'stem_channels': (256, arch['embed_dims']),
        **arch,
    }
    channels = arch['stem_channels']
    is_list = isinstance(channels, list | tuple) and len(channels) > 0
    if not is_list or channels[-1] != arch['embed_dims']:
        raise ValueError(
            'arch.stem_channels must be a list that ends with arch.embed_dims = '
            f'{arch["embed_dims"]}, got {channels}'
        )
    if arch['embed_dims'] % arch['num_heads']:
        raise ValueError(
            'arch.embed_dims must be a multiple of arch.num_heads, got '
            f'{arch["embed_dims"]} and {arch["num_heads"]}'
        )
    return arch
