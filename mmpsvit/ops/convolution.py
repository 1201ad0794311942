# Copyright (c) mmpsvit contributors.
"""Convolutions in the form that GPUs compute fastest; the same values to rounding."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .kernels import is_untouched, operator

# What cuDNN's fused convolution takes.
_FUSED_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def conv_relu(x: Tensor, weight: Tensor, bias: Tensor, padding: int = 0) -> Tensor:
    """Convolution of stride 1, bias and ReLU.

    On CUDA one call of cuDNN does all three, where nothing has a gradient.

    Args:
        x (Tensor): Input (B, C, H, W).
        weight (Tensor): Weights (K, C, h, w).
        bias (Tensor): Bias (K,).
        padding (int): Zeros on all sides. Defaults to 0.

    Returns:
        Tensor: Output (B, K, H', W'), in the dtype of ``x`` or of autocast.
    """
    if not _fuses(x, weight, bias):
        return F.relu(F.conv2d(x, weight, bias, padding=padding), inplace=True)
    # The operator is unknown to autocast.
    inputs = (tensor.to(_conv_dtype(x)) for tensor in (x, weight, bias))
    return _fused_conv_relu(*inputs, padding)


def may_restate(x: Tensor, conv: nn.Module) -> bool:
    """Whether :func:`conv7_as_conv4` may replace a module, and is faster.

    It is on CUDA, in half precision.
    """
    if not x.is_cuda or _conv_dtype(x) not in (torch.float16, torch.bfloat16):
        return False
    if not is_untouched(conv, nn.Conv2d):
        return False
    settings = conv.kernel_size, conv.stride, conv.padding, conv.dilation, conv.groups
    is_restatable = settings == ((7, 7), (2, 2), (3, 3), (1, 1), 1)
    return is_restatable and conv.padding_mode == 'zeros'


def conv7_as_conv4(x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Restate a 7x7 convolution of stride 2 and padding 3 as one of 4x4 and stride 1.

    It sees 2x2 pixels as one of four times the channels, filled up with zeros to a
    multiple of eight: for three channels, GPUs have no fast kernel.

    Args:
        x (Tensor): Images (B, C, H, W).
        weight (Tensor): Weights (K, C, 7, 7).

    Returns:
        tuple[Tensor, Tensor]: Images and weights of a convolution without padding, both
        channels_last, in the dtype that it computes in.
    """
    batch, channels, height, width = x.shape
    filled = -(-4 * channels // 8) * 8
    # Two of padding before, for the pixel at -3; its neighbour at -4 is not seen.
    # (K, C, 7, 7) -> (K, filled, 4, 4)
    weight = F.pixel_unshuffle(F.pad(weight, (1, 0, 1, 0)), 2)
    weight = F.pad(weight, (0, 0, 0, 0, 0, filled - 4 * channels))
    if height % 2 or width % 2:  # a row or column of zeros completes it
        x = F.pad(x, (0, width % 2, 0, height % 2))
    rows, columns = x.shape[2] // 2, x.shape[3] // 2
    # All in one copy: (B, C, 2 h, 2 w) -> (B, h + 3, w + 3, filled)
    dtype = _conv_dtype(x)
    out = x.new_zeros((batch, rows + 3, columns + 3, filled), dtype=dtype)
    inner = out[:, 2:-1, 2:-1, : 4 * channels].unflatten(-1, (channels, 2, 2))
    inner.copy_(
        x.unflatten(3, (columns, 2)).unflatten(2, (rows, 2)).permute(0, 2, 4, 1, 3, 5)
    )
    weight = weight.to(dtype, memory_format=torch.channels_last)
    return out.permute(0, 3, 1, 2), weight


def _conv_dtype(x: Tensor) -> torch.dtype:
    """The dtype in which a convolution of ``x`` computes."""
    is_cast = x.is_cuda and x.dtype != torch.float64 and torch.is_autocast_enabled()
    if not is_cast:
        return x.dtype
    return torch.get_autocast_gpu_dtype()


def _fuses(*tensors: Tensor) -> bool:
    """Whether cuDNN's fused convolution, which has no gradient, takes these tensors."""
    x = tensors[0]
    if not x.is_cuda or torch.version.cuda is None or not torch.backends.cudnn.enabled:
        return False
    if torch.onnx.is_in_onnx_export():  # which does not know the operator
        return False
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors):
        return False
    return _conv_dtype(x) in _FUSED_DTYPES


def _empty_output(x: Tensor, weight: Tensor, bias: Tensor, padding: int) -> Tensor:
    """What the output looks like."""
    out = F.conv2d(x, weight, bias, padding=padding)
    return out.contiguous(memory_format=torch.channels_last)


@operator('conv_relu', _empty_output)
def _fused_conv_relu(x: Tensor, weight: Tensor, bias: Tensor, padding: int) -> Tensor:
    """cuDNN's convolution with a bias and ReLU; its output is channels_last."""
    x, weight = (
        tensor.contiguous(memory_format=torch.channels_last) for tensor in (x, weight)
    )
    return torch.cudnn_convolution_relu(
        x, weight, bias, (1, 1), (padding, padding), (1, 1), 1
    )
