# Copyright (c) mmpsvit contributors.
"""Bilinear sampling of a feature map at free points (PS-ViT, section 3.1), and back.

The only file that knows mmcv's op, devices, dtypes and memory formats.

Coordinates are pixels of the map, (x, y), and an integer coordinate is the
centre of a pixel. Outside the map the feature is zero: a corner of the bilinear
stencil that lies outside contributes nothing, so a point in the border strip
``(-1, 0)`` fades towards zero, and a point at or beyond -1 or the size of the map
samples zero and has no gradient. So does a point with a NaN or infinite
coordinate. (On CUDA a point within float32's rounding of that limit may count as
just inside, with a sample of zero to rounding.)
"""

import torch
import torch.nn.functional as F
from packaging.version import Version
from torch import Tensor
from torch.autograd.function import once_differentiable

from .deform_attn import deform_attn, has_kernel

# Before, F.embedding_bag fails if its weights have a gradient and its table has none.
BAG_NEEDS_GRADIENT_OF_TABLE = Version(torch.__version__) < Version('2.6')
# mmcv's CUDA kernel addresses the elements of one call with 32-bit integers.
_MAX_ELEMENTS = 2**31 - 1


def channels_last(x: Tensor) -> Tensor:
    """``x.contiguous(memory_format=torch.channels_last)``, also under ``vmap``."""
    # (B, C, H, W) -> (B, H, W, C) and back
    return x.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)


def prepare_map(feat: Tensor) -> Tensor:
    """Bring a feature map into the form from which it is sampled.

    :func:`sample_points` does this by itself. Whoever samples one map several
    times does it once beforehand, and pays for the copies only once.

    Args:
        feat (Tensor): Feature map of shape (B, C, H, W), any floating dtype and
            memory format.

    Returns:
        Tensor: The same map in channels_last and float32 (float64 stays float64).
        The points are never rounded to half precision and neither are their
        bilinear weights, so the map has to meet them in their precision.
    """
    dtype = torch.float64 if feat.dtype == torch.float64 else torch.float32
    return channels_last(feat.to(dtype))


def sample_points(feat: Tensor, points: Tensor) -> Tensor:
    """Sample a feature map bilinearly at points, with zeros outside the map.

    Value and gradients (to ``feat`` and to ``points``) are exact everywhere,
    the border strip included. On CUDA, in float32 and unless PyTorch is in
    deterministic mode, this runs mmcv's kernel; otherwise, or where mmcv has no
    compiled CUDA ops, PyTorch's own operators. ``torch.onnx.export`` finds
    ``F.grid_sample`` here, which is one operator of ONNX.

    There are first derivatives only, also through ``torch.func.grad`` and ``vmap``: the
    backward pass of a gradient (a gradient penalty, a Hessian) raises a RuntimeError or
    its subclass NotImplementedError.

    Args:
        feat (Tensor): Feature map of shape (B, C, H, W), finite: a point outside may
            sample zero times a pixel.
        points (Tensor): Points of shape (B, N, 2), (x, y) in pixels of ``feat``,
            integer = pixel centre; float32 or float64.

    Returns:
        Tensor: Samples of shape (B, N, C) in the dtype of ``feat``.

    Raises:
        TypeError: If ``feat`` is not floating point, or ``points`` are neither
            float32 nor float64.
        ValueError: If ranks, last dimension, batch sizes or devices do not fit, or
            the map has no pixels.
    """
    _check_arguments(feat, points)
    table = prepare_map(feat)
    if points.dtype == torch.float64:
        table = table.double()
    else:
        points = points.to(table.dtype)

    if torch.onnx.is_in_onnx_export():
        sample = _sample_with_grid_sample
    elif points.numel() and _uses_mmcv(table):
        sample = _sample_with_mmcv
    else:
        sample = _sample_with_torch
    return sample(table, points).to(feat.dtype)


class SampledMap:
    """A feature map that is sampled several times, at as many points each time.

    Every call samples as :func:`sample_points` does. The map is cast and laid out once,
    and where PyTorch's operators do the work, its gradient is written once, by one
    splat of the gradients of all calls, and not once per call and then added up.

    Args:
        feat (Tensor): Feature map of shape (B, C, H, W).
        num_points (int): Points per image and call, N.
        num_calls (int): How many times the map is sampled.

    Attributes:
        dtype (torch.dtype): The dtype of ``feat``.
        table (Tensor): The map as it is sampled, see :func:`prepare_map`.
    """

    def __init__(self, feat: Tensor, num_points: int, num_calls: int) -> None:
        self.dtype = feat.dtype
        self.table = prepare_map(feat)
        self.slots = None
        collects = torch.is_grad_enabled() and self.table.requires_grad
        collects = collects and not BAG_NEEDS_GRADIENT_OF_TABLE
        if collects and num_points and not _uses_mmcv(self.table):
            self.slots = _CollectGradients.apply(self.table, num_points, num_calls)
            self.table = self.table.detach()

    def sample(self, points: Tensor, call: int) -> Tensor:
        """Sample the map.

        Args:
            points (Tensor): Points of shape (B, N, 2), as in :func:`sample_points`, in
                the dtype of ``table``.
            call (int): Which call this is, from 0; each has its own number.

        Returns:
            Tensor: Samples of shape (B, N, C), float32 or float64.
        """
        samples = sample_points(self.table, points)
        if self.slots is None:
            return samples
        # As a gradient, NaN would look like a fault. -2 is outside every map as well.
        points = points.detach().nan_to_num(nan=-2.0)
        return _DivertGradient.apply(samples, points, self.slots[call])


class _CollectGradients(torch.autograd.Function):
    """Hands out a slot per call; turns what they receive into the map's gradient.

    A slot is (B, N, C + 2) zeros that take no memory. What it receives as a gradient is
    a call's gradient and, in the last two channels, the points it belongs to.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(table: Tensor, num_points: int, num_calls: int) -> tuple[Tensor, ...]:
        batch, channels = table.shape[:2]
        zero = table.new_zeros(())
        return tuple(
            zero.expand(batch, num_points, channels + 2) for _ in range(num_calls)
        )

    @staticmethod
    def setup_context(ctx, inputs: tuple, output: tuple[Tensor, ...]) -> None:
        ctx.set_materialize_grads(False)
        ctx.size = inputs[0].shape[-2:]

    @staticmethod
    @once_differentiable
    def backward(ctx, *received: Tensor | None):
        given = [grad for grad in received if grad is not None]
        if not given:
            return None, None, None
        given = torch.cat(given, dim=1)
        return splat_points(given[..., :-2], given[..., -2:], ctx.size), None, None


class _DivertGradient(torch.autograd.Function):
    """Returns samples as they are; their gradient goes to a slot as well."""

    generate_vmap_rule = True

    @staticmethod
    def forward(samples: Tensor, points: Tensor, slot: Tensor) -> Tensor:
        return samples.view_as(samples)

    @staticmethod
    def setup_context(ctx, inputs: tuple, output: Tensor) -> None:
        ctx.save_for_backward(inputs[1])

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):
        (points,) = ctx.saved_tensors
        return grad, None, torch.cat((grad, points), dim=-1)


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
    if feat.shape[2] == 0 or feat.shape[3] == 0:
        raise ValueError(
            f'feat must have at least one pixel, got feat {tuple(feat.shape)}'
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


def _sample_with_torch(feat: Tensor, points: Tensor) -> Tensor:
    """Sample with ``F.embedding_bag``: the map is the table, the stencil the bag.

    On the CPU this is several times faster than ``F.grid_sample``, see
    ``tools/benchmarks/benchmark_sampling.py``.
    """
    batch, channels, height, width = feat.shape
    index, weight = _corners(points, height, width)
    # (B, C, H, W) -> (B * H * W, C), a view of a channels_last map
    table = feat.permute(0, 2, 3, 1).reshape(batch * height * width, channels)
    samples = _bag(index.flatten(0, 1), table, weight.flatten(0, 1))
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


def _sample_with_grid_sample(feat: Tensor, points: Tensor) -> Tensor:
    """Sample with ``F.grid_sample``, the only one of these ways that ONNX has."""
    height, width = feat.shape[-2:]
    # None of the four pixels around -2 is in the map, whatever the rounding. Runtimes
    # turn coordinates into integers, which huge numbers and NaN do not survive.
    inside = _inside(points, height, width)
    x, y = torch.where(inside.unsqueeze(-1), points, -2.0).unbind(-1)
    grid = torch.stack(((2 * x + 1) / width - 1, (2 * y + 1) / height - 1), dim=-1)
    # (B, N, 2) -> (B, N, 1, 2), as an image of one column
    samples = F.grid_sample(feat, grid.unsqueeze(2), align_corners=False)
    # (B, C, N, 1) -> (B, N, C)
    return samples.squeeze(-1).transpose(1, 2)


def _uses_mmcv(table: Tensor) -> bool:
    """Whether mmcv's kernel samples this map."""
    # The kernel floors in float32: a float64 point may land a pixel outside.
    if not table.is_cuda or table.dtype != torch.float32:
        return False
    # It adds gradients up in any order, and does not tell PyTorch so.
    return not torch.are_deterministic_algorithms_enabled() and has_kernel()


def _sample_with_mmcv(feat: Tensor, points: Tensor) -> Tensor:
    """Sample with deformable attention's kernel: 1 head, 1 level, 1 point, weight 1."""
    # One call per chunk of images that the kernel can address.
    largest = max(feat[0].numel(), points.shape[1] * feat.shape[1], 1)
    chunk = max(1, _MAX_ELEMENTS // largest)
    if len(feat) > chunk:
        parts = zip(feat.split(chunk), points.split(chunk), strict=True)
        return torch.cat([_sample_with_mmcv(*part) for part in parts])

    batch, channels, height, width = feat.shape
    # (B, C, H, W) -> (B, H * W, 1 head, C), a view of a channels_last map
    value = feat.permute(0, 2, 3, 1).reshape(batch, height * width, 1, channels)
    # The kernel wants (x, y) in [0, 1] with pixel centres at half-integers.
    x, y = points.unbind(-1)
    locations = torch.stack(((x + 0.5) / width, (y + 0.5) / height), dim=-1)
    locations = locations[:, :, None, None, None, :]
    # Filled on the device: torch.tensor([...]) would wait for a copy at every call.
    spatial_shape = torch.full((1, 2), height, device=feat.device)
    spatial_shape[:, 1] = width
    return deform_attn(
        value,
        spatial_shape,
        torch.zeros(1, dtype=torch.long, device=feat.device),
        locations,
        locations.new_ones(locations.shape[:-1]),
    )
