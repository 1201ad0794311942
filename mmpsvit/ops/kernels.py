# Copyright (c) mmpsvit contributors.
"""mmcv's kernel of deformable attention as operators of PyTorch.

As operators with shapes, they are single nodes in the graphs of torch.compile and
torch.export, which cannot see through mmcv's C++. The backward pass adds to a gradient
of the map that it is handed, so that all samplings of a map share one.

Maps are tables of pixels, (B, H, W, C), contiguous.
"""

import functools
import warnings
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

# The kernel addresses the elements of one call with 32-bit integers, also in the last
# step of its loop, which goes beyond them by up to 4096 blocks of 512 threads.
MAX_ELEMENTS = 2**31 - 2**21


@torch.compiler.assume_constant_result
def has_mmcv() -> bool:
    """Whether mmcv is compiled for CUDA; with one warning, where it is not."""
    return _look_for_mmcv()


@functools.cache
def _look_for_mmcv() -> bool:
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


def is_compiling() -> bool:
    """Whether torch.compile or torch.export traces this code."""
    if hasattr(torch.compiler, 'is_compiling'):
        return torch.compiler.is_compiling()
    # PyTorch 2.1
    return torch._dynamo.external_utils.is_compiling()


def is_untouched(module: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether a module may be left uncalled, its weights being used another way.

    Not one that somebody replaced, or that has hooks (pruning has).
    """
    if type(module) is not kind or 'forward' in vars(module):
        return False
    return not (
        module._forward_pre_hooks
        or module._forward_hooks
        or module._backward_pre_hooks
        or module._backward_hooks
    )


def operator(name: str, fake: Callable, mutates: tuple[str, ...] = ()) -> Callable:
    """Make a function an operator in graphs; before PyTorch 2.4, none sees it.

    Eagerly it is called as it is, without the host time of an operator in Python.

    Args:
        name (str): Name of the operator.
        fake (Callable): The function that makes results of the right shape.
        mutates (tuple[str, ...]): The arguments that it changes. Defaults to none.
    """

    def decorate(function: Callable) -> Callable:
        if not hasattr(torch.library, 'custom_op'):
            return function
        made = torch.library.custom_op(
            f'mmpsvit::{name}', function, mutates_args=mutates
        )
        made.register_fake(fake)

        @functools.wraps(function)
        def call(*args):
            in_graph = is_compiling() or torch.jit.is_tracing()
            return (made if in_graph else function)(*args)

        return call

    return decorate


def empty_samples(table: Tensor, points: Tensor) -> Tensor:
    """What samples look like."""
    return points.new_empty(*points.shape[:2], table.shape[-1])


@operator('sample_with_mmcv', empty_samples)
def sample_with_mmcv(table: Tensor, points: Tensor) -> Tensor:
    """Sample with deformable attention: 1 head, 1 level, 1 point, weight 1.

    Args:
        table (Tensor): Map (B, H, W, C), float32, contiguous.
        points (Tensor): Points (B, N, 2), (x, y) in pixels, float32, contiguous.

    Returns:
        Tensor: Samples (B, N, C), float32.
    """
    samples = [
        _mmcv().ms_deform_attn_forward(
            *_arguments(table[part], points[part]), im2col_step=len(points[part])
        )
        for part in _parts(table, points)
    ]
    return samples[0] if len(samples) == 1 else torch.cat(samples)


def _empty_point_gradients(
    grad: Tensor, table: Tensor, points: Tensor, grad_table: Tensor
) -> Tensor:
    """What the gradients of points look like."""
    return torch.empty_like(points)


@operator('sample_with_mmcv_backward', _empty_point_gradients, ('grad_table',))
def sample_with_mmcv_backward(
    grad: Tensor, table: Tensor, points: Tensor, grad_table: Tensor
) -> Tensor:
    """Add the gradient of the map to ``grad_table``.

    Args:
        grad (Tensor): Gradient of the samples, (B, N, C), float32, contiguous.
        table (Tensor): As in the forward pass.
        points (Tensor): As in the forward pass.
        grad_table (Tensor): (B, H, W, C), float32, contiguous.

    Returns:
        Tensor: Gradient of the points, (B, N, 2).
    """
    height, width = table.shape[1:3]
    to_points = torch.empty_like(points)
    for part in _parts(table, points):
        inputs = _arguments(table[part], points[part])
        to_locations, to_weights = map(torch.zeros_like, inputs[-2:])
        _mmcv().ms_deform_attn_backward(
            *inputs,
            grad[part],
            _rows(grad_table[part]),
            to_locations,
            to_weights,
            im2col_step=len(grad[part]),
        )
        to_locations = to_locations.view(-1, points.shape[1], 2)
        divide(to_locations, width, height, out=to_points[part])
    return to_points


def _parts(table: Tensor, points: Tensor) -> Iterator[slice]:
    """Slices of as many images as the kernel can address."""
    largest = max(table[0].numel(), points.shape[1] * table.shape[-1])
    if largest > MAX_ELEMENTS:
        raise ValueError(
            f"mmcv's kernel takes maps and samples of {MAX_ELEMENTS} numbers per image "
            f"at most, got {largest}; kernel = 'triton' takes more"
        )
    step = MAX_ELEMENTS // largest
    for start in range(0, len(table), step):
        yield slice(start, start + step)


def _rows(table: Tensor) -> Tensor:
    """(B, H, W, C) -> (B, H * W, 1 head, C), a view."""
    return table.view(len(table), -1, 1, table.shape[-1])


def divide(
    points: Tensor, width: int, height: int, out: Tensor | None = None
) -> Tensor:
    """(x / width, y / height), on square maps in one launch."""
    if width == height:
        return torch.div(points, width, out=out)
    x, y = points.unbind(-1)
    return torch.stack((x / width, y / height), dim=-1, out=out)


def _arguments(table: Tensor, points: Tensor) -> tuple[Tensor, ...]:
    """What mmcv wants: map, sizes and starts of levels, locations, weights."""
    height, width = table.shape[1:3]
    # (x, y) in [0, 1], with pixel centres at half-integers
    locations = divide(points + 0.5, width, height)[:, :, None, None, None, :]
    # Filled on the device: torch.tensor([...]) would wait for a copy at every call.
    shapes = torch.full((1, 2), height, device=table.device)
    if width != height:
        shapes[:, 1] = width
    starts = torch.zeros(1, dtype=torch.long, device=table.device)
    weights = locations.new_ones(locations.shape[:-1])
    return _rows(table), shapes, starts, locations, weights
