# Copyright (c) mmpsvit contributors.
"""Progressive sampling: tokens from points that move (PS-ViT, section 3.1)."""

import math
import random
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
import torch.utils.checkpoint as cp
from mmengine.model import BaseModule, ModuleList
from torch import Tensor, nn

from mmpsvit.models.encoder_layer import EncoderLayer, trunc_normal_
from mmpsvit.ops import KERNELS, SampledMap, is_compiling, is_untouched
from mmpsvit.registry import MODELS


class SampledTokens(NamedTuple):
    """Tokens and where they were taken. N points per image, row-major in the grid.

    Attributes:
        tokens (Tensor): Tokens of the last iteration, (B, N, C).
        points (Tensor): The points that these tokens were sampled at, (B, N, 2),
            (x, y) in pixels of the feature map, integer = pixel centre; float32,
            or float64 for a float64 map. Detached.
        trajectory (Tensor): The points of every iteration, (B, num_iters, N, 2).
            Detached.
        grid_size (tuple[int, int]): Rows and columns (h, w) of the start grid.
    """

    tokens: Tensor
    points: Tensor
    trajectory: Tensor
    grid_size: tuple[int, int]


class PointLinear(nn.Linear):
    """A linear layer from or to points, which computes in the dtype of its input.

    Also under autocast and with weights in half precision: points are never rounded to
    it. At 56 pixels one step of float16 is 1/32 of a pixel, one of bfloat16 a quarter.
    Dynamic quantisation, which asks for the exact class, leaves such a layer as it is.
    """

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = self.weight.to(x.dtype), self.bias.to(x.dtype)
        if x.is_cuda and is_compiling():
            # With two columns or rows it is no work for a matrix product: written like
            # this, torch.compile fuses it with what is before and after.
            return (x.unsqueeze(-2) * weight).sum(dim=-1) + bias
        if x.is_cuda and not torch.is_autocast_enabled():
            return F.linear(x, weight, bias)  # without the costs of the context
        # The meta device has no autocast that could be switched off.
        with torch.autocast('cpu' if x.is_meta else x.device.type, enabled=False):
            return F.linear(x, weight, bias)


@MODELS.register_module()
class ProgressiveSampling(BaseModule):
    """Samples tokens from a feature map at points that move in every iteration.

    Iteration t of PS-ViT (section 3.1, equations 1 to 6): the map F is sampled
    bilinearly at the points P_t; the samples, a linear embedding of the points and
    the tokens of the iteration before are added and go through a transformer
    layer, whose output predicts the offsets to P_{t+1}. The first points are the
    cell centres of a regular grid. The gradient reaches an offset only through the
    next bilinear sample.

    It is the ``sampler`` of :class:`PSViT`, and stands on its own in the ``neck``
    slot of a classifier behind any CNN.

    Args:
        embed_dims (int): Number of channels C of the tokens.
        num_heads (int): Number of attention heads.
        feedforward_channels (int): Hidden channels of the MLPs.
        in_channels (int, optional): Number of channels of the feature map. Where it
            differs from ``embed_dims``, a linear layer projects the samples.
            Defaults to None, which means ``embed_dims``.
        feat_stride (int): Stride of the feature map relative to the image; used by
            ``point_stride``, and by pictures of the points. Defaults to 4.
        num_iters (int): Number of iterations N. With 1, the points never move.
            Defaults to 4.
        num_points (int | tuple[int, int] | Sequence, optional): Points per side, or
            (h, w), whatever the size of the map. Three or more numbers, or several
            (h, w), are choices: :meth:`draw_points` picks one for a batch of training,
            which :class:`mmpsvit.ElasticPointsHook` calls, and otherwise the middle
            one is taken. Defaults to None, which means 14 unless ``point_stride`` is
            given.
        point_stride (int, optional): One point per cell of this many image pixels,
            for input of varying size; a multiple of ``feat_stride``, at least twice
            as large. Defaults to None.
        share_weights (bool): Whether one transformer layer and one offset layer
            serve all iterations. Defaults to False.
        offset_scale (float): Factor on the predicted offsets. Defaults to 1.
        center_offsets (bool): Whether the offsets of an image lose their mean over its
            points, so that the points cannot drift together. Not in the paper.
            Defaults to False.
        drop_rate (float): Dropout after the attention's projection and in the MLP.
            Defaults to 0.
        drop_path_rate (float | Sequence[float]): Stochastic depth rate, of all
            iterations or of each; shared weights take the mean. Defaults to 0.
        kernel (str): What samples on CUDA, 'mmcv' or 'triton', see
            :class:`mmpsvit.ops.SampledMap`. Defaults to 'mmcv'.
        layer_cfg (dict, optional): Other arguments of the transformer layers, see
            :class:`EncoderLayer`. Defaults to None.
        with_cp (bool): Whether to recompute the activations of each iteration in
            the backward pass, to save memory. Defaults to False.
        init_cfg (dict, optional): Initialisation config. Defaults to None.

    Attributes:
        num_points (tuple[int, int], optional): Points (h, w) of evaluation. It may be
            set to whatever the argument may be; no weight depends on it.
        choices (tuple[tuple[int, int], ...]): What a batch of training draws from, by
            number of points.

    Raises:
        ValueError: If an argument is out of its range, or two of them clash.
    """

    def __init__(
        self,
        embed_dims: int,
        num_heads: int,
        feedforward_channels: int,
        in_channels: int | None = None,
        feat_stride: int = 4,
        num_iters: int = 4,
        num_points: int | tuple[int, int] | Sequence | None = None,
        point_stride: int | None = None,
        share_weights: bool = False,
        offset_scale: float = 1.0,
        center_offsets: bool = False,
        drop_rate: float = 0.0,
        drop_path_rate: float | Sequence[float] = 0.0,
        kernel: str = 'mmcv',
        layer_cfg: dict | None = None,
        with_cp: bool = False,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(init_cfg)
        if kernel not in KERNELS:
            raise ValueError(f'kernel must be one of {KERNELS}, got {kernel!r}')
        if num_iters < 1:
            raise ValueError(f'num_iters must be at least 1, got {num_iters}')
        if embed_dims % num_heads:
            raise ValueError(
                f'embed_dims must be a multiple of num_heads, got {embed_dims} '
                f'and {num_heads}'
            )
        self.point_stride = _check_stride(num_points, point_stride, feat_stride)
        self.choices = ()
        self._drawn = None
        self._grid = None
        if point_stride is None:
            self.num_points = 14 if num_points is None else num_points
        self.embed_dims = embed_dims
        self.feat_stride = feat_stride
        self.num_iters = num_iters
        self.share_weights = share_weights
        self.offset_scale = offset_scale
        self.center_offsets = center_offsets
        self.kernel = kernel
        self.with_cp = with_cp

        self.in_proj = nn.Identity()
        if in_channels not in (None, embed_dims):
            self.in_proj = nn.Linear(in_channels, embed_dims)
        self.position_layer = PointLinear(2, embed_dims)
        self.layers = ModuleList(
            EncoderLayer(
                embed_dims,
                num_heads,
                feedforward_channels,
                drop_rate=drop_rate,
                drop_path_rate=rate,
                **(layer_cfg or {}),
            )
            for rate in self._layer_rates(drop_path_rate)
        )
        num_offset_layers = min(1, num_iters - 1) if share_weights else num_iters - 1
        self.offset_layers = ModuleList(
            PointLinear(embed_dims, 2) for _ in range(num_offset_layers)
        )

    @property
    def num_points(self) -> tuple[int, int] | None:
        """Points (h, w) of evaluation; None with ``point_stride``."""
        return self._grid

    @num_points.setter
    def num_points(self, value: int | tuple[int, int] | Sequence) -> None:
        if self.point_stride is not None:
            raise ValueError(
                f'num_points cannot be set to {value}: point_stride = '
                f'{self.point_stride} gives the points'
            )
        grids = _as_grids(value)
        if len(grids) > 1:
            self.choices = grids
        self._grid, self._drawn = grids[len(grids) // 2], None

    def draw_points(self, seed: int | str) -> None:
        """Draw one of ``choices`` for what is trained next; the same for equal seeds.

        Args:
            seed (int | str): E.g. the seed of the training and its iteration.
        """
        self._drawn = random.Random(seed).choice(self.choices or [self._grid])

    def _layer_rates(self, drop_path_rate: float | Sequence[float]) -> list[float]:
        """The stochastic depth rate of each transformer layer."""
        if isinstance(drop_path_rate, Sequence):
            rates = list(drop_path_rate)
        else:
            rates = [drop_path_rate] * self.num_iters
        if len(rates) != self.num_iters:
            raise ValueError(
                f'drop_path_rate must be one number or num_iters = {self.num_iters} '
                f'numbers, got {drop_path_rate}'
            )
        return [sum(rates) / len(rates)] if self.share_weights else rates

    def init_weights(self) -> None:
        """Initialise the weights: offset layers zero, other layers truncated normal."""
        if not self.is_init:
            for layer in (self.in_proj, self.position_layer):
                if isinstance(layer, nn.Linear):
                    trunc_normal_(layer.weight)
                    nn.init.zeros_(layer.bias)
            for layer in self.offset_layers:
                nn.init.zeros_(layer.weight)
                nn.init.zeros_(layer.bias)
        # Last, since a pretrained checkpoint overwrites everything.
        super().init_weights()

    def grid_size(self, feat_size: tuple[int, int]) -> tuple[int, int]:
        """Rows and columns (h, w) of the start grid on a map of size (H, W)."""
        if self.training and self._drawn is not None:
            return self._drawn
        if self.num_points is not None:
            return self.num_points
        # Rounded up without floats, which a traced network would keep as constants, and
        # without negative numbers, which ONNX divides otherwise.
        height, width = (
            (size * self.feat_stride + self.point_stride - 1) // self.point_stride
            for size in feat_size
        )
        return height, width

    def start_points(
        self,
        feat_size: tuple[int, int],
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
    ) -> Tensor:
        """The cell centres of the start grid, (i + 0.5) * size / n on each axis.

        Args:
            feat_size (tuple[int, int]): Size (H, W) of the feature map.
            dtype (torch.dtype): float32 or float64. Defaults to float32.
            device (torch.device | str, optional): Device of the result.

        Returns:
            Tensor: Points (x, y) of shape (h * w, 2), row-major.
        """
        y, x = (
            (torch.arange(count, dtype=dtype, device=device) + 0.5) * size / count
            for count, size in zip(self.grid_size(feat_size), feat_size, strict=True)
        )
        if self.point_stride is not None:
            # Where the map does not divide into cells, the last centre may lie outside.
            y, x = y.clamp(max=feat_size[0] - 1), x.clamp(max=feat_size[1] - 1)
        y, x = torch.meshgrid(y, x, indexing='ij')
        return torch.stack((x, y), dim=-1).flatten(0, 1)

    def forward(self, feats: Tensor | Sequence[Tensor]) -> SampledTokens:
        """Sample tokens.

        Args:
            feats (Tensor | Sequence[Tensor]): Feature map (B, C, H, W), or several,
                of which the last is taken.

        Returns:
            SampledTokens: The tokens and their points, see there.
        """
        feat = feats if isinstance(feats, Tensor) else feats[-1]
        feat_size = tuple(feat.shape[-2:])
        grid_size = self.grid_size(feat_size)
        sampled_map = SampledMap.of(feat, self.kernel)
        start = self.start_points(feat_size, sampled_map.dtype, feat.device)
        points = start.expand(feat.shape[0], -1, -1)
        size = None
        if not self._advances(sampled_map):
            # Filled on the device: a tensor of numbers of the host would wait for it.
            size = torch.stack(
                [start.new_full((), length) for length in feat_size[::-1]]
            )
        tokens = None
        trajectory = []
        for iteration in range(self.num_iters):
            tokens, points, sampled_map = self._iterate(
                iteration, sampled_map, points, tokens, size
            )
            points = points.detach()
            trajectory.append(points)
        return SampledTokens(
            tokens=tokens,
            points=points,
            trajectory=torch.stack(trajectory, dim=1),
            grid_size=grid_size,
        )

    def _advances(self, sampled_map: SampledMap) -> bool:
        """Whether one kernel does all that an iteration does before its layer."""
        if not sampled_map.advances or self.center_offsets:
            return False
        # Without an in_proj, another number of channels is an error; not of the kernel.
        if sampled_map.table.shape[-1] != self.embed_dims:
            return False
        layers = (self.position_layer, *self.offset_layers)
        is_plain = all(is_untouched(layer, PointLinear) for layer in layers)
        return is_plain and isinstance(self.in_proj, nn.Identity)

    def _iterate(self, iteration: int, *args) -> tuple[Tensor, Tensor, SampledMap]:
        if self.with_cp and self.training and torch.is_grad_enabled():
            return cp.checkpoint(
                self._iterate_once, iteration, *args, use_reentrant=False
            )
        return self._iterate_once(iteration, *args)

    def _iterate_once(
        self,
        iteration: int,
        sampled_map: SampledMap,
        points: Tensor,
        tokens: Tensor | None,
        size: Tensor | None,
    ) -> tuple[Tensor, Tensor, SampledMap]:
        """One iteration.

        Args:
            iteration (int): Its index.
            sampled_map (SampledMap): The map.
            points (Tensor): Points of the iteration before, (B, N, 2), detached; at
                first the start.
            tokens (Tensor, optional): Its tokens, (B, N, C); at first None.
            size (Tensor, optional): Size (W, H) of the map; None where one kernel moves
                the points, samples and embeds.

        Returns:
            tuple: Tokens (B, N, C), the points that they were sampled at, and the map
            for the next iteration.
        """
        index = 0 if self.share_weights else iteration
        offset_layer = self.offset_layers[max(0, index - 1)] if iteration else None
        if size is None:
            inputs, points, sampled_map = sampled_map.advance(
                points, tokens, offset_layer, self.offset_scale, self.position_layer
            )
        else:
            if offset_layer is not None:
                offsets = offset_layer(tokens.to(points.dtype))
                if self.center_offsets:
                    offsets = offsets - offsets.mean(dim=1, keepdim=True)
                points = points.add(offsets, alpha=self.offset_scale)
            samples, sampled_map = sampled_map.sample(points)
            if not isinstance(self.in_proj, nn.Identity):
                samples = self.in_proj(samples.to(sampled_map.feat_dtype))
            # (x, y) over (W, H)
            inputs = samples + self.position_layer(points.detach() / size)
            if tokens is not None:
                inputs = inputs + tokens
        return self.layers[index](inputs), points, sampled_map


def _as_grids(num_points: int | Sequence) -> tuple[tuple[int, int], ...]:
    """One grid (h, w), or several, in the order of their numbers of points."""
    given = list(num_points) if isinstance(num_points, Sequence) else [num_points]
    if all(isinstance(n, int) for n in given):
        # Two numbers are one grid.
        given = [tuple(given)] if len(given) == 2 else [(n, n) for n in given]
    grids = {tuple(grid) if isinstance(grid, Sequence) else () for grid in given}
    if not grids or any(
        len(grid) != 2 or not all(isinstance(n, int) and n > 0 for n in grid)
        for grid in grids
    ):
        raise ValueError(
            'num_points must be a positive int, (h, w) of such, or three or more ints '
            f'or pairs to choose from, got {num_points}'
        )
    return tuple(sorted(grids, key=lambda grid: (math.prod(grid), grid)))


def _check_stride(
    num_points: int | Sequence | None, point_stride: int | None, feat_stride: int
) -> int | None:
    """Return ``point_stride``, which excludes ``num_points``."""
    if point_stride is None:
        return None
    if num_points is not None:
        raise ValueError(
            f'num_points = {num_points} and point_stride = {point_stride} exclude each '
            'other: set one of them to None'
        )
    # A cell of one feature pixel would put its centre half a pixel outside the map.
    if point_stride % feat_stride or point_stride < 2 * feat_stride:
        raise ValueError(
            f'point_stride must be a multiple of feat_stride = {feat_stride} and at '
            f'least {2 * feat_stride}, got {point_stride}'
        )
    return point_stride
