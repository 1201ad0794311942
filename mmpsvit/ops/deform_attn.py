# Copyright (c) mmpsvit contributors.
"""mmcv's kernel of deformable attention as an operator of PyTorch.

mmcv's own autograd function calls C++ that torch.compile and torch.export cannot see
through. As an operator with shapes and a gradient, it is one node of their graphs.
"""

import functools
import warnings

import torch
from torch import Tensor

from mmpsvit.compat import custom_op


@torch.compiler.assume_constant_result
def has_kernel() -> bool:
    """Whether mmcv is compiled for CUDA; with one warning, where it is not."""
    return _look_for_kernel()


@functools.cache
def _look_for_kernel() -> bool:
    try:
        from mmcv.ops import get_compiling_cuda_version

        compiled_for = get_compiling_cuda_version()
    except (ImportError, AssertionError):
        compiled_for = 'not available'
    if compiled_for == 'not available':
        warnings.warn(
            'mmcv has no compiled CUDA ops: PS-ViT samples with the slower '
            'operators of PyTorch. Install mmcv with CUDA ops to mend this.',
            stacklevel=4,
        )
        return False
    return True


def _mmcv():
    """The module with mmcv's compiled operators."""
    from mmcv.ops.multi_scale_deform_attn import ext_module

    return ext_module


@custom_op('mmpsvit::deform_attn', mutates_args=(), device_types='cuda')
def deform_attn(
    value: Tensor, shapes: Tensor, starts: Tensor, locations: Tensor, weights: Tensor
) -> Tensor:
    """Deformable attention, with gradients to ``value`` and ``locations`` only.

    Args:
        value (Tensor): Maps (B, pixels, heads, C / heads), float32.
        shapes (Tensor): Size (h, w) of each level, (levels, 2), int64.
        starts (Tensor): First pixel of each level, (levels,), int64.
        locations (Tensor): Points (B, N, heads, levels, points, 2), (x, y) in [0, 1].
        weights (Tensor): Weights (B, N, heads, levels, points).

    Returns:
        Tensor: Samples (B, N, C).
    """
    # All images in one launch: mmcv wants the batch to be a multiple of the step.
    return _mmcv().ms_deform_attn_forward(
        value, shapes, starts, locations, weights, im2col_step=len(value)
    )


@deform_attn.register_fake
def _(value, shapes, starts, locations, weights):
    batch, _, heads, channels = value.shape
    return value.new_empty(batch, locations.shape[1], heads * channels)


@custom_op('mmpsvit::deform_attn_backward', mutates_args=(), device_types='cuda')
def deform_attn_backward(
    grad: Tensor,
    value: Tensor,
    shapes: Tensor,
    starts: Tensor,
    locations: Tensor,
    weights: Tensor,
) -> tuple[Tensor, Tensor]:
    """The gradients of ``value`` and ``locations``."""
    inputs = (value, shapes, starts, locations, weights)
    grads = [torch.zeros_like(tensor) for tensor in (value, locations, weights)]
    _mmcv().ms_deform_attn_backward(
        *inputs, grad.contiguous(), *grads, im2col_step=len(value)
    )
    return grads[0], grads[1]


@deform_attn_backward.register_fake
def _(grad, value, shapes, starts, locations, weights):
    return torch.empty_like(value), torch.empty_like(locations)


def _keep(ctx, inputs: tuple, output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _differentiate(ctx, grad: Tensor) -> tuple:
    to_value, to_locations = deform_attn_backward(grad, *ctx.saved_tensors)
    return to_value, None, None, to_locations, None


deform_attn.register_autograd(_differentiate, setup_context=_keep)
