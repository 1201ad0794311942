# Copyright (c) mmpsvit contributors.
"""The CNN stem of PS-ViT: image to feature map of stride 4."""

import contextlib
import itertools
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction

import torch
import torch.nn.functional as F
import torch.utils.checkpoint as cp
from mmengine.model import BaseModule, Sequential
from mmengine.utils import to_2tuple
from mmpretrain.models.backbones.resnet import Bottleneck
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_eval

from mmpsvit.ops import (
    channels_last,
    conv7_as_conv4,
    conv_relu,
    is_compiling,
    may_restate,
)
from mmpsvit.registry import MODELS

STEM_STRIDE = 4


class Stem(BaseModule):
    """Convolution 7x7/2, max pooling 3x3/2 and ResNet bottlenecks (section 3.2).

    Args:
        in_channels (int): Channels of the image.
        base_channels (int): Channels of the first convolution, and middle channels
            of every bottleneck.
        out_channels (Sequence[int]): Output channels of each bottleneck. Where they
            differ from the block's input, a 1x1 convolution projects the identity.
        with_cp (bool): Whether to recompute activations in the backward pass, to
            save memory; without effect under ``torch.compile``. Defaults to False.
    """

    def __init__(
        self,
        in_channels: int,
        base_channels: int,
        out_channels: Sequence[int],
        with_cp: bool = False,
    ) -> None:
        super().__init__()
        self.with_cp = with_cp
        self.conv1 = nn.Conv2d(in_channels, base_channels, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(base_channels)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, 1)

        blocks = []
        channels = base_channels
        for out in out_channels:
            downsample = None
            if out != channels:
                downsample = Sequential(
                    nn.Conv2d(channels, out, 1, bias=False), nn.BatchNorm2d(out)
                )
            # Bottleneck derives its middle channels as out_channels / expansion.
            blocks.append(
                Bottleneck(
                    channels,
                    out,
                    expansion=Fraction(out, base_channels),
                    downsample=downsample,
                )
            )
            channels = out
        self.blocks = Sequential(*blocks)

    def forward(self, x: Tensor) -> Tensor:
        """Turn images (B, 3, H, W) into features (B, C, ceil(H/4), ceil(W/4))."""
        parts = [(self._start, self.bn1)]
        parts += [(block, block) for block in self.blocks]
        for part, norms in parts:
            x = self._checkpoint(part, norms, x) if self._recomputes() else part(x)
        return x

    def _start(self, x: Tensor) -> Tensor:
        conv = self.conv1
        if may_restate(x, conv):
            images, weight = conv7_as_conv4(x, conv.weight)
            if isinstance(self.bn1, nn.Identity):  # deployed
                return self.maxpool(conv_relu(images, weight, conv.bias))
            x = F.conv2d(images, weight, conv.bias)
        else:
            # The map comes out channels_last too, and is sampled without another copy.
            x = conv(channels_last(x))
        # The maximum first: the same values, and a quarter of them for the ReLU.
        return self.relu(self.maxpool(self.bn1(x)))

    def switch_to_deploy(self) -> None:
        """Fold the BatchNorms into the convolutions, for inference only.

        The values are the same but for rounding. It cannot be undone, a second call
        does nothing, and the weights get other names. In each bottleneck that projects
        its identity, the projection becomes a part of the last convolution. On CUDA
        convolution, bias and ReLU are one call of cuDNN.
        """
        if isinstance(self.bn1, nn.Identity):
            return
        self.conv1 = fuse_conv_bn_eval(self.conv1.eval(), self.bn1.eval())
        self.bn1 = nn.Identity()
        self.blocks = Sequential(*(_FoldedBottleneck(block) for block in self.blocks))

    def _recomputes(self) -> bool:
        # torch.compile cannot tell the recomputation from the first pass.
        if is_compiling():
            return False
        return self.with_cp and self.training and torch.is_grad_enabled()

    @staticmethod
    def _checkpoint(part: Callable, norms: nn.Module, x: Tensor) -> Tensor:
        # The recomputations, one for each backward pass, must not count the batch again
        # in the running statistics, which MMPretrain's own `with_cp` does.
        calls = itertools.count()

        def run(x: Tensor) -> Tensor:
            with _untracked(norms) if next(calls) else contextlib.nullcontext():
                return part(x)

        return cp.checkpoint(run, x, use_reentrant=False)


@MODELS.register_module()
class StemPatchEmbedding(BaseModule):
    """The stem and a convolution over its map, in place of a ViT's patch embedding.

    Not in the paper: it makes MMPretrain's ``VisionTransformer`` a control that has the
    stem of PS-ViT, but no sampling. ``patch_cfg=dict(conv_type=
    'mmpsvit.StemPatchEmbedding')`` puts it in, and MMPretrain fills in what a
    convolution takes.

    Args:
        in_channels (int): Channels of the image.
        out_channels (int): Channels C of the tokens.
        kernel_size (int | tuple[int, int]): Side of a patch in pixels of the image, a
            multiple of 4.
        stride (int | tuple[int, int]): Way from patch to patch, a multiple of 4.
        padding (int | tuple[int, int]): There is none. Defaults to 0.
        dilation (int | tuple[int, int]): There is none. Defaults to 1.
        bias (bool): Whether the convolution over the map has a bias. Defaults to True.
        base_channels (int): As in :class:`Stem`. Defaults to 64.
        stem_channels (Sequence[int], optional): Output channels of the stem's
            bottlenecks. Defaults to None, which means (256, out_channels).

    Raises:
        ValueError: If an argument is out of its range.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int],
        padding: int | tuple[int, int] = 0,
        dilation: int | tuple[int, int] = 1,
        bias: bool = True,
        base_channels: int = 64,
        stem_channels: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        sizes = dict(
            kernel_size=kernel_size, stride=stride, padding=padding, dilation=dilation
        )
        kernel, stride, padding, dilation = map(to_2tuple, sizes.values())
        if any(length % STEM_STRIDE for length in (*kernel, *stride)) or (
            padding != (0, 0) or dilation != (1, 1)
        ):
            raise ValueError(
                f'kernel_size and stride must be multiples of {STEM_STRIDE}, padding 0 '
                f'and dilation 1, got {sizes}'
            )
        channels = stem_channels or (256, out_channels)
        self.stem = Stem(in_channels, base_channels, channels)
        self.projection = nn.Conv2d(
            channels[-1],
            out_channels,
            [length // STEM_STRIDE for length in kernel],
            [length // STEM_STRIDE for length in stride],
            bias=bias,
        )

    def forward(self, x: Tensor) -> Tensor:
        """Turn images (B, 3, H, W) into patches (B, C, H / stride, W / stride)."""
        return self.projection(self.stem(x))


class _FoldedBottleneck(BaseModule):
    """A bottleneck in eval mode, without BatchNorms.

    Args:
        block (Bottleneck): The bottleneck.
    """

    def __init__(self, block: Bottleneck) -> None:
        super().__init__()
        self.conv1, self.conv2, self.conv3 = (
            fuse_conv_bn_eval(conv.eval(), norm.eval())
            for conv, norm in (
                (block.conv1, block.norm1),
                (block.conv2, block.norm2),
                (block.conv3, block.norm3),
            )
        )
        self.projects = block.downsample is not None
        if self.projects:
            # The sum of two 1x1 convolutions is one over the channels of both inputs.
            projection = fuse_conv_bn_eval(*block.downsample.eval())
            last = self.conv3
            merged = nn.Conv2d(
                last.in_channels + projection.in_channels, last.out_channels, 1
            ).to(last.weight)
            with torch.no_grad():
                torch.cat((last.weight, projection.weight), 1, out=merged.weight)
                torch.add(last.bias, projection.bias, out=merged.bias)
            self.conv3 = merged

    def forward(self, x: Tensor) -> Tensor:
        out = conv_relu(x, self.conv1.weight, self.conv1.bias)
        out = conv_relu(out, self.conv2.weight, self.conv2.bias, padding=1)
        last = self.conv3
        if self.projects:
            return conv_relu(torch.cat((out, x), dim=1), last.weight, last.bias)
        return F.relu(last(out).add_(x), inplace=True)


@contextlib.contextmanager
def _untracked(module: nn.Module) -> Iterator[None]:
    """Keep the BatchNorms in training mode from updating their statistics."""
    norms = [
        child
        for child in module.modules()
        if isinstance(child, _BatchNorm) and child.training
    ]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
            norm.num_batches_tracked -= 1
