# Copyright (c) mmpsvit contributors.
"""Bilinear sampling of a feature map at free points (PS-ViT, section 3.1), and back.

With the files beside it, the only one that knows devices, dtypes and memory formats.

Coordinates are pixels of the map, (x, y), and an integer coordinate is the
centre of a pixel. Outside the map the feature is zero: a corner of the bilinear
stencil that lies outside contributes nothing, so a point in the border strip
``(-1, 0)`` fades towards zero, and a point at or beyond -1 or the size of the map
samples zero and has no gradient. So does a point with a NaN or infinite
coordinate. (On CUDA a point within float32's rounding of that limit may count as
just inside, with a sample of zero to rounding.)
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from packaging.version import Version
from torch import Tensor, nn
from torch.autograd.function import Function, once_differentiable

from . import kernels

# Before, F.embedding_bag fails if its weights have a gradient and its table has none.
BAG_NEEDS_GRADIENT_OF_TABLE = Version(torch.__version__) < Version('2.6')
KERNELS = ('mmcv', 'triton')


def channels_last(x: Tensor) -> Tensor:
    """``x.contiguous(memory_format=torch.channels_last)``, also under ``vmap``."""
    # (B, C, H, W) -> (B, H, W, C) and back
    return x.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)


def sample_points(feat: Tensor, points: Tensor, kernel: str = 'mmcv') -> Tensor:
    """Sample a feature map bilinearly at points, with zeros outside the map.

    Value and gradients (to ``feat`` and to ``points``) are exact everywhere,
    the border strip included. On CUDA, in single or half precision, this runs a kernel;
    where there is none, in PyTorch's deterministic mode and under ``torch.func``,
    PyTorch's own operators. ``torch.onnx.export`` finds ``F.grid_sample`` here, which
    is one operator of ONNX.

    There are first derivatives only, also through ``torch.func.grad``: the backward
    pass of a gradient (a gradient penalty, a Hessian) raises a RuntimeError or its
    subclass NotImplementedError.

    Args:
        feat (Tensor): Feature map of shape (B, C, H, W), finite: a point outside may
            sample zero times a pixel.
        points (Tensor): Points of shape (B, N, 2), (x, y) in pixels of ``feat``,
            integer = pixel centre; float32 or float64.
        kernel (str): See :class:`SampledMap`. Defaults to 'mmcv'.

    Returns:
        Tensor: Samples of shape (B, N, C) in the dtype of ``feat``.

    Raises:
        TypeError: If ``feat`` is not floating point, or ``points`` are neither
            float32 nor float64.
        ValueError: If ranks, last dimension, batch sizes or devices do not fit, the
            map has no pixels or no channels, or the kernel is unknown.
    """
    dtype = feat.dtype
    _check_arguments(feat, points)
    if points.dtype == torch.float64:
        feat = feat.double()
    elif dtype == torch.float64:
        points = points.double()
    samples, _ = SampledMap.of(feat, kernel).sample(points)
    return samples.to(dtype)


class SampledMap(NamedTuple):
    """A feature map on its way through several samplings.

    Every sampling is that of :func:`sample_points`, and returns the map for the next:

        sampled_map = SampledMap.of(feat)
        samples, sampled_map = sampled_map.sample(points)
        others, sampled_map = sampled_map.sample(other_points)

    The map is cast and laid out once. On CUDA, its gradient is one tensor, to which the
    backward pass of each sampling adds: it is the gradient of ``slot``, which passes
    through the samplings from the last to the first.

    Attributes:
        table (Tensor): The map as it is sampled, (B, H, W, C), contiguous.
        slot (Tensor, optional): A tensor of the shape of ``table``, which takes no
            memory. None where PyTorch's operators sample, or the map has no gradient.
        kernel (str, optional): What samples: 'mmcv' is deformable attention's kernel
            of mmcv, on float32 maps; 'triton' reads maps in half precision as they
            are, the points and weights stay float32. None means PyTorch's operators.
        feat_dtype (torch.dtype): The dtype of the feature map.
    """

    feat_dtype: torch.dtype
    table: Tensor
    slot: Tensor | None = None
    kernel: str | None = None

    @classmethod
    def of(cls, feat: Tensor, kernel: str = 'mmcv') -> 'SampledMap':
        """Prepare a feature map.

        Args:
            feat (Tensor): Feature map of shape (B, C, H, W), any floating dtype and
                memory format.
            kernel (str): Which kernel samples on CUDA, 'mmcv' or 'triton'. Defaults
                to 'mmcv'.

        Raises:
            ValueError: If the kernel is unknown.
        """
        if kernel not in KERNELS:
            raise ValueError(f'kernel must be one of {KERNELS}, got {kernel!r}')
        chosen = kernel if _has_kernel(feat, kernel) else None
        dtype = torch.float64 if feat.dtype == torch.float64 else torch.float32
        if chosen == 'triton':
            dtype = feat.dtype
        collects = chosen and torch.is_grad_enabled() and feat.requires_grad
        slot = _Slot.apply(feat) if collects else None
        source = feat.detach() if collects else feat
        # (B, C, H, W) -> (B, H, W, C)
        table = source.to(dtype).permute(0, 2, 3, 1).contiguous()
        return cls(feat.dtype, table, slot, chosen)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of points and samples."""
        return torch.promote_types(self.table.dtype, torch.float32)

    def sample(self, points: Tensor) -> tuple[Tensor, 'SampledMap']:
        """Sample the map.

        Args:
            points (Tensor): Points of shape (B, N, 2), as in :func:`sample_points`, of
                ``dtype``.

        Returns:
            tuple[Tensor, SampledMap]: Samples of shape (B, N, C), of ``dtype``, and the
            map for the next sampling.
        """
        if torch.onnx.is_in_onnx_export():
            return _sample_with_grid_sample(self.table.to(points.dtype), points), self
        if self.kernel is None:
            return _sample_with_torch(self.table, points), self
        if not torch.is_grad_enabled():  # without the costs of a Function
            return _sample(self.table, points, self.kernel), self
        samples, slot = _Sample.apply(self.table, self.slot, points, self.kernel)
        return samples, self._replace(slot=slot)

    @property
    def advances(self) -> bool:
        """Whether :meth:`advance` is there: in one kernel of Triton."""
        return self.kernel == 'triton' and not torch.onnx.is_in_onnx_export()

    def advance(
        self,
        points: Tensor,
        tokens: Tensor | None,
        offset_layer: nn.Linear | None,
        scale: float,
        position_layer: nn.Linear,
    ) -> tuple[Tensor, Tensor, 'SampledMap']:
        """What a sampling iteration does around its transformer layer, at once.

        ``moved = points + scale * offset_layer(tokens)``, and the samples there, plus
        ``position_layer(moved / size)``, plus the tokens. All of it is computed in
        float32. The moved points pass no gradient on, but to the layer that moves them.

        Args:
            points (Tensor): Points of shape (B, N, 2), of ``dtype``.
            tokens (Tensor, optional): Tokens of shape (B, N, C). None leaves the
                points where they are.
            offset_layer (nn.Linear, optional): From C channels to 2; None without
                tokens.
            scale (float): Factor on the offsets.
            position_layer (nn.Linear): From (x, y), relative to the size of the map,
                to C channels.

        Returns:
            tuple[Tensor, Tensor, SampledMap]: The sum, (B, N, C), in the dtype of the
            position layer's weights, the moved points, detached, and the map for the
            next sampling.
        """
        weights = (None, None)
        if offset_layer is not None:
            weights = offset_layer.weight.contiguous(), offset_layer.bias
            tokens = tokens.contiguous()
        args = (self.table, points.contiguous(), tokens, *weights, scale)
        args = (*args, position_layer.weight.contiguous(), position_layer.bias)
        if not torch.is_grad_enabled():
            from .triton_kernels import advance_with_triton

            return *advance_with_triton(*args), self
        inputs, moved, slot = _Advance.apply(self.table, self.slot, *args[1:])
        return inputs, moved, self._replace(slot=slot)


def _has_kernel(feat: Tensor, kernel: str) -> bool:
    """Whether a kernel samples this map."""
    # The kernels floor in float32: a float64 point may land a pixel outside.
    if not feat.is_cuda or feat.dtype == torch.float64:
        return False
    # They add gradients up in any order, and do not tell PyTorch so.
    if torch.are_deterministic_algorithms_enabled():
        return False
    # They do not take the tensors of torch.func.
    if torch._C._are_functorch_transforms_active():
        return False
    return kernel == 'triton' or kernels.has_mmcv()


def _operators(kernel: str) -> tuple:
    """The operators of a kernel, forward and backward."""
    if kernel == 'mmcv':
        return kernels.sample_with_mmcv, kernels.sample_with_mmcv_backward
    # Triton comes with PyTorch's builds for CUDA only.
    from . import triton_kernels

    return (
        triton_kernels.sample_with_triton,
        triton_kernels.sample_with_triton_backward,
    )


def _new_slot(like: Tensor, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """A tensor that takes no memory, and whose values nobody reads."""
    return like.new_empty((), dtype=dtype).expand(shape)


def _passed_on(slot: Tensor | None) -> Tensor | None:
    """The slot for the next sampling."""
    return None if slot is None else _new_slot(slot, slot.shape, slot.dtype)


class _Slot(Function):
    """A tensor whose gradient becomes the map's."""

    @staticmethod
    def forward(ctx, feat: Tensor) -> Tensor:
        ctx.set_materialize_grads(False)
        ctx.dtype = feat.dtype
        batch, channels, height, width = feat.shape
        dtype = torch.promote_types(feat.dtype, torch.float32)
        return _new_slot(feat, (batch, height, width, channels), dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor | None) -> Tensor | None:
        # (B, H, W, C) -> (B, C, H, W)
        return None if grad is None else grad.permute(0, 3, 1, 2).to(ctx.dtype)


def _sample(table: Tensor, points: Tensor, kernel: str) -> Tensor:
    """A kernel's samples."""
    if not points.numel():
        return kernels.empty_samples(table, points)
    forward, _ = _operators(kernel)
    return forward(table, points.contiguous())


class _Sample(Function):
    """A kernel's samples, and the slot for the next sampling."""

    @staticmethod
    def forward(
        ctx, table: Tensor, slot: Tensor | None, points: Tensor, kernel: str
    ) -> tuple[Tensor, Tensor | None]:
        ctx.set_materialize_grads(False)
        ctx.kernel = kernel
        ctx.save_for_backward(table, points)
        return _sample(table, points, kernel), _passed_on(slot)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor | None, grad_slot: Tensor | None) -> tuple:
        table, points = ctx.saved_tensors
        if grad is None:
            return None, grad_slot, None, None
        if grad_slot is None:
            # The later samplings, which come first here, have not made one.
            grad_slot = torch.zeros_like(table, dtype=grad.dtype)
        if not points.numel():
            grad_points = torch.zeros_like(points)
        else:
            _, backward = _operators(ctx.kernel)
            # It adds in place: only the samplings of this map see this tensor.
            grad_points = backward(
                grad.contiguous(), table, points.contiguous(), grad_slot
            )
        return None, grad_slot if ctx.needs_input_grad[1] else None, grad_points, None


class _Advance(Function):
    """:meth:`SampledMap.advance`, and the slot for the next sampling."""

    @staticmethod
    def forward(
        ctx,
        table: Tensor,
        slot: Tensor | None,
        points: Tensor,
        tokens: Tensor | None,
        offset_weight: Tensor | None,
        offset_bias: Tensor | None,
        scale: float,
        *position: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        from .triton_kernels import advance_with_triton

        layers = offset_weight, offset_bias, scale, *position
        inputs, moved = advance_with_triton(table, points, tokens, *layers)
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(moved)
        ctx.scale, ctx.dtype = scale, position[0].dtype
        ctx.save_for_backward(table, moved, tokens, offset_weight)
        return inputs, moved, _passed_on(slot)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor | None, _, grad_slot: Tensor | None) -> tuple:
        from .triton_kernels import advance_with_triton_backward

        table, moved, tokens, offset_weight = ctx.saved_tensors
        if grad is None:
            return None, grad_slot, *[None] * 7
        height, width = table.shape[1:3]
        relative = kernels.divide(moved, width, height)
        to_position = _gradients(grad, relative, ctx.dtype)
        _, of_slot, of_points, *of_layers = ctx.needs_input_grad[:6]
        if not (of_slot or of_points or any(of_layers)):
            return *[None] * 7, *to_position
        if grad_slot is None:
            # The later samplings, which come first here, have not made one.
            grad_slot = torch.zeros_like(table, dtype=moved.dtype)
        to_points, to_tokens = advance_with_triton_backward(
            grad.contiguous(), table, moved, tokens, offset_weight, ctx.scale, grad_slot
        )
        slot = grad_slot if of_slot else None
        if tokens is None:
            return None, slot, to_points, *[None] * 4, *to_position
        to_offset = _gradients(to_points, tokens, offset_weight.dtype)
        return None, slot, None, to_tokens, *to_offset, None, *to_position


def _gradients(
    grad: Tensor, inputs: Tensor, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Gradients of a linear layer's weight and bias, summed in float32."""
    grad = grad.flatten(0, 1).float()
    # Compiled, a backward pass is under the autocast of the forward pass.
    with torch.autocast(grad.device.type, enabled=False):
        weight = grad.mT @ inputs.flatten(0, 1).float()
    return weight.to(dtype), grad.sum(dim=0).to(dtype)


def splat_points(tokens: Tensor, points: Tensor, size: tuple[int, int]) -> Tensor:
    """Scatter tokens bilinearly onto a map, the adjoint of :func:`sample_points`.

    Each token is added to the four pixels around its point, with the weights with
    which ``sample_points`` would read them: for any map F of this size,
    ``(sample_points(F, P) * T).sum() == (F * splat_points(T, P, size)).sum()``. So what
    lies outside the map is lost, and a point with a NaN or infinite coordinate adds
    nothing. The gradients (to ``tokens`` and to ``points``) are exact.

    Args:
        tokens (Tensor): Tokens of shape (B, N, C).
        points (Tensor): Points of shape (B, N, 2), (x, y) in pixels of the map,
            integer = pixel centre; float32 or float64.
        size (tuple[int, int]): Size (H, W) of the map.

    Returns:
        Tensor: The map, (B, C, H, W), channels_last, in the dtype of ``tokens``, summed
        in float32 at least.

    Raises:
        TypeError: If ``tokens`` are not floating point, or ``points`` are neither
            float32 nor float64.
        ValueError: If ranks, last dimension, batch sizes, numbers of points or devices
            do not fit, or the map has no pixels.
    """
    if tokens.ndim != 3:
        raise ValueError(f'tokens must have shape (B, N, C), got {tuple(tokens.shape)}')
    _check_points(points, 'tokens', tokens)
    if tokens.shape[1] != points.shape[1]:
        raise ValueError(
            'tokens and points must be as many, got tokens '
            f'{tuple(tokens.shape)} and points {tuple(points.shape)}'
        )
    if len(size) != 2 or min(size) < 1:
        raise ValueError(f'size must be (H, W) with at least one pixel, got {size}')
    height, width = size
    dtype = torch.promote_types(tokens.dtype, points.dtype)
    index, weight = _corners(points.to(dtype), height, width)
    batch, _, channels = tokens.shape
    # One bag of tokens per pixel. Unlike a scatter, this never holds (B, N, 4, C), and
    # the order of each sum is fixed.
    index, order = index.flatten().sort(stable=True)
    pixels = torch.arange(batch * height * width, device=index.device)
    table = _bag(
        order // 4,  # four corners per token
        tokens.to(dtype).flatten(0, 1),
        weight.flatten()[order],
        torch.searchsorted(index, pixels),
    )
    # (B * H * W, C) -> (B, C, H, W)
    table = table.view(batch, height, width, channels)
    return table.permute(0, 3, 1, 2).to(tokens.dtype)


def _check_arguments(feat: Tensor, points: Tensor) -> None:
    if feat.ndim != 4:
        raise ValueError(
            f'feat must have shape (B, C, H, W), got feat {tuple(feat.shape)} and '
            f'points {tuple(points.shape)}'
        )
    _check_points(points, 'feat', feat)
    if 0 in feat.shape[1:]:
        raise ValueError(
            'feat must have at least one pixel and one channel, got feat '
            f'{tuple(feat.shape)}'
        )


def _check_points(points: Tensor, name: str, other: Tensor) -> None:
    """Check points, and that the tensor called ``name`` goes with them."""
    shapes = f'{name} {tuple(other.shape)} and points {tuple(points.shape)}'
    if points.ndim != 3 or points.shape[-1] != 2:
        raise ValueError(f'points must have shape (B, N, 2), got {shapes}')
    if other.shape[0] != points.shape[0]:
        raise ValueError(
            f'{name} and points must have the same batch size, got {shapes}'
        )
    if other.device != points.device:
        raise ValueError(
            f'{name} and points must be on the same device, got {shapes} '
            f'on {other.device} and {points.device}'
        )
    if not other.is_floating_point():
        raise TypeError(f'{name} must be floating point, got {other.dtype}')
    if points.dtype not in (torch.float32, torch.float64):
        raise TypeError(
            'points must be float32 or float64 (half precision cannot place a '
            f'point), got {points.dtype}'
        )


def _sample_with_torch(table: Tensor, points: Tensor) -> Tensor:
    """Sample with ``F.embedding_bag``: the map is the table, the stencil the bag.

    On the CPU this is several times faster than ``F.grid_sample``, see
    ``tools/benchmarks/benchmark_sampling.py``.
    """
    batch, height, width, channels = table.shape
    index, weight = _corners(points, height, width)
    rows = table.reshape(batch * height * width, channels)
    samples = _bag(index.flatten(0, 1), rows, weight.flatten(0, 1))
    return samples.view(batch, points.shape[1], channels)


def _bag(
    index: Tensor, table: Tensor, weight: Tensor, starts: Tensor | None = None
) -> Tensor:
    """Weighted sums of rows of a table, see ``F.embedding_bag``."""
    if BAG_NEEDS_GRADIENT_OF_TABLE and weight.requires_grad and not table.requires_grad:
        table = table.detach().requires_grad_()
    return F.embedding_bag(index, table, starts, per_sample_weights=weight, mode='sum')


def _corners(points: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """The four pixels around each point, as rows of a table of pixels.

    Args:
        points (Tensor): Points of shape (B, N, 2).
        height (int): Height of the map.
        width (int): Width of the map.

    Returns:
        tuple[Tensor, Tensor]: Indices in [0, B * height * width) and bilinear weights,
        both (B, N, 4). A pixel outside the map has weight 0.
    """
    x, y = points.unbind(-1)
    inside = _inside(points, height, width)
    x_index, x_weight = _stencil(torch.where(inside, x, 0), width)
    y_index, y_weight = _stencil(torch.where(inside, y, 0), height)

    # (B, N, 2, 1) and (B, N, 1, 2) -> (B, N, 2, 2)
    weight = y_weight.unsqueeze(-1) * x_weight.unsqueeze(-2)
    weight = weight * inside[..., None, None]
    index = y_index.unsqueeze(-1) * width + x_index.unsqueeze(-2)
    image = torch.arange(points.shape[0], device=points.device) * (height * width)
    index = index + image.view(-1, 1, 1, 1)
    return index.flatten(2), weight.flatten(2)


def _inside(points: Tensor, height: int, width: int) -> Tensor:
    """Which points (B, N, 2) see a pixel of the map, (B, N).

    False for NaN as well: where such points are replaced, every later operation sees
    finite numbers only.
    """
    x, y = points.unbind(-1)
    return (x > -1) & (x < width) & (y > -1) & (y < height)


def _stencil(coords: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """The two pixels around each coordinate of one axis and their weights.

    Args:
        coords (Tensor): Coordinates in (-1, size), of any shape.
        size (int): Number of pixels on this axis.

    Returns:
        tuple[Tensor, Tensor]: Indices in [0, size) and weights, both with a last
        dimension of 2. A pixel outside the map has weight 0.
    """
    low = coords.detach().floor()
    pixels = torch.stack((low, low + 1), dim=-1)
    fraction = coords - low
    weights = torch.stack((1 - fraction, fraction), dim=-1)
    weights = weights * ((pixels >= 0) & (pixels < size))
    return pixels.clamp(0, size - 1).long(), weights


def _sample_with_grid_sample(table: Tensor, points: Tensor) -> Tensor:
    """Sample with ``F.grid_sample``, the only one of these ways that ONNX has."""
    height, width = table.shape[1:3]
    # None of the four pixels around -2 is in the map, whatever the rounding. Runtimes
    # turn coordinates into integers, which huge numbers and NaN do not survive.
    inside = _inside(points, height, width)
    x, y = torch.where(inside.unsqueeze(-1), points, -2.0).unbind(-1)
    grid = torch.stack(((2 * x + 1) / width - 1, (2 * y + 1) / height - 1), dim=-1)
    feat = table.permute(0, 3, 1, 2)
    # (B, N, 2) -> (B, N, 1, 2), as an image of one column
    samples = F.grid_sample(feat, grid.unsqueeze(2), align_corners=False)
    # (B, C, N, 1) -> (B, N, C)
    return samples.squeeze(-1).transpose(1, 2)
