# Copyright (c) mmpsvit contributors.
"""mmcv's kernel of deformable attention as an operator of PyTorch.

mmcv's own autograd function calls C++ that torch.compile and torch.export cannot see
through. As an operator with shapes and a gradient, it is one node of their graphs.
"""

import functools
import warnings
from collections.abc import Callable

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


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


class _EagerOperator:
    """A function with a gradient, called as an operator of ``torch.library`` is."""

    def __init__(self, function: Callable) -> None:
        self._function = self._call = function

    def register_fake(self, function: Callable) -> Callable:
        """Nothing here traces shapes."""
        return function

    def register_autograd(self, backward: Callable, *, setup_context: Callable) -> None:
        """Set the gradient."""
        methods = dict(
            forward=staticmethod(self._function),
            setup_context=staticmethod(setup_context),
            # As torch.library has it: no gradient of the gradient.
            backward=staticmethod(once_differentiable(backward)),
        )
        self._call = type('Function', (torch.autograd.Function,), methods).apply

    def __call__(self, *args):
        return self._call(*args)


def _custom_op(name: str, **kwargs) -> Callable:
    """``torch.library.custom_op``; before PyTorch 2.4, no graph sees the operator."""
    if hasattr(torch.library, 'custom_op'):
        return torch.library.custom_op(name, **kwargs)
    return _EagerOperator


@_custom_op('mmpsvit::deform_attn', mutates_args=(), device_types='cuda')
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


@_custom_op('mmpsvit::deform_attn_backward', mutates_args=(), device_types='cuda')
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
