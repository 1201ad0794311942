# Copyright (c) mmpsvit contributors.
"""Tokens from a regular grid of patches: the control without moving points."""

from collections.abc import Sequence

import torch
from mmengine.model import BaseModule
from mmpretrain.models.utils import resize_pos_embed
from torch import Tensor, nn

from mmpsvit.models.initialization import trunc_normal_
from mmpsvit.models.necks.progressive_sampling import SampledTokens
from mmpsvit.registry import MODELS


@MODELS.register_module()
class PatchSampling(BaseModule):
    """Cuts a feature map into patches, one token each, as a ViT cuts its image.

    Not in the paper: as the ``sampler`` of :class:`PSViT`, with ``num_iters=0``, it
    makes a ViT with the CNN stem of PS-ViT, whose layers are all encoder layers. It
    tells what the stem contributes from what the sampling contributes.

    A convolution with a kernel and stride of ``patch_size`` makes the tokens, and a
    learned embedding of the position is added, resized (bicubic) where the map has
    another size.

    Args:
        embed_dims (int): Number of channels C of the tokens.
        in_channels (int, optional): Number of channels of the feature map. Defaults
            to None, which means ``embed_dims``.
        feat_stride (int): Stride of the feature map relative to the image. Defaults
            to 4.
        patch_size (int): Side of a patch in pixels of the feature map. Defaults to 4.
        num_points (int | tuple[int, int]): Patches per side, or (h, w), that the
            position embedding is learned for. Defaults to 14.
        num_iters (int): Number of iterations; there are none. Defaults to 0.
        init_cfg (dict, optional): Initialisation config. Defaults to None.

    Raises:
        ValueError: If an argument is out of its range.
    """

    def __init__(
        self,
        embed_dims: int,
        in_channels: int | None = None,
        feat_stride: int = 4,
        patch_size: int = 4,
        num_points: int | tuple[int, int] = 14,
        num_iters: int = 0,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(init_cfg)
        if num_iters != 0:
            raise ValueError(
                f'num_iters must be 0: patches do not move, got {num_iters}'
            )
        if patch_size < 1:
            raise ValueError(f'patch_size must be at least 1, got {patch_size}')
        grid = (num_points,) * 2 if isinstance(num_points, int) else tuple(num_points)
        if len(grid) != 2 or min(grid) < 1:
            raise ValueError(
                f'num_points must be a positive int or (h, w) of such, got {num_points}'
            )
        self.embed_dims = embed_dims
        self.feat_stride = feat_stride
        self.num_iters = num_iters
        self.num_points = grid
        self.patch_size = patch_size
        # PSViT pads images to whole cells of this many pixels.
        self.point_stride = patch_size * feat_stride

        self.projection = nn.Conv2d(
            in_channels or embed_dims, embed_dims, patch_size, patch_size
        )
        self.pos_embed = nn.Parameter(torch.zeros(1, grid[0] * grid[1], embed_dims))

    def init_weights(self) -> None:
        """Initialise the position embedding; the convolution keeps its default."""
        trunc_normal_(self.pos_embed)
        # Last, since a pretrained checkpoint overwrites everything.
        super().init_weights()

    def forward(self, feats: Tensor | Sequence[Tensor]) -> SampledTokens:
        """Embed patches.

        Args:
            feats (Tensor | Sequence[Tensor]): Feature map (B, C, H, W), or several,
                of which the last is taken. Rows and columns that fill no whole patch
                are left out.

        Returns:
            SampledTokens: The tokens; the points are the patches' centres, and the
            trajectory has no iterations.
        """
        feat = feats if isinstance(feats, Tensor) else feats[-1]
        tokens = self.projection(feat)
        height, width = tokens.shape[-2:]
        position = resize_pos_embed(
            self.pos_embed, self.num_points, (height, width), num_extra_tokens=0
        )
        # (B, C, h, w) -> (B, N, C)
        tokens = tokens.flatten(2).transpose(1, 2) + position

        y, x = (
            (torch.arange(size, device=feat.device) + 0.5) * self.patch_size - 0.5
            for size in (height, width)
        )
        y, x = torch.meshgrid(y, x, indexing='ij')
        points = torch.stack((x, y), dim=-1).flatten(0, 1).expand(feat.shape[0], -1, -1)
        return SampledTokens(
            tokens=tokens,
            points=points,
            trajectory=points[:, None][:, :0],
            grid_size=(height, width),
        )
