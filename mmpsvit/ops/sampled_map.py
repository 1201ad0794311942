# Copyright (c) mmpsvit contributors.
"""A feature map on its way through several samplings, by a kernel if there is one."""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import Function, once_differentiable

from . import kernels
from .bilinear import sample_with_grid_sample, sample_with_torch

KERNELS = ('mmcv', 'triton')


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
        dtype = torch.promote_types(feat.dtype, torch.float32)
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
            return sample_with_grid_sample(self.table.to(points.dtype), points), self
        if self.kernel is None:
            return sample_with_torch(self.table, points), self
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
        offset = (None, None)
        if offset_layer is not None:
            offset = _weights(offset_layer)
            tokens = tokens.contiguous()
        args = (self.table, points.contiguous(), tokens, *offset, scale)
        args = (*args, *_weights(position_layer))
        if not torch.is_grad_enabled():
            from .triton_kernels import advance_with_triton

            return *advance_with_triton(*args), self
        inputs, moved, slot = _Advance.apply(self.table, self.slot, *args[1:])
        return inputs, moved, self._replace(slot=slot)


def _weights(layer: nn.Linear) -> tuple[Tensor, Tensor]:
    """Weight and bias of a layer, contiguous."""
    return layer.weight.contiguous(), layer.bias.contiguous()


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


def _passed_on(slot: Tensor | None) -> Tensor | None:
    """The slot for the next sampling: no memory, and values that nobody reads."""
    return None if slot is None else slot.new_empty(()).expand_as(slot)


class _Slot(Function):
    """A tensor whose gradient becomes the map's."""

    @staticmethod
    def forward(ctx, feat: Tensor) -> Tensor:
        ctx.set_materialize_grads(False)
        ctx.dtype = feat.dtype
        dtype = torch.promote_types(feat.dtype, torch.float32)
        return feat.new_empty((), dtype=dtype).expand(feat.permute(0, 2, 3, 1).shape)

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
        position_weight: Tensor,
        position_bias: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        from .triton_kernels import advance_with_triton

        layers = offset_weight, offset_bias, scale, position_weight, position_bias
        inputs, moved = advance_with_triton(table, points, tokens, *layers)
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(moved)
        ctx.scale, ctx.dtype = scale, position_weight.dtype
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
        if not any(ctx.needs_input_grad[:6]):
            return *[None] * 7, *to_position
        if grad_slot is None:
            # The later samplings, which come first here, have not made one.
            grad_slot = torch.zeros_like(table, dtype=moved.dtype)
        to_points, to_tokens = advance_with_triton_backward(
            grad.contiguous(), table, moved, tokens, offset_weight, ctx.scale, grad_slot
        )
        slot = grad_slot if ctx.needs_input_grad[1] else None
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
