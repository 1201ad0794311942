# Copyright (c) mmpsvit contributors.
"""Sampling on CUDA against float64 on the CPU, which test_point_sampling.py checks."""

import contextlib
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from mmpsvit import ProgressiveSampling
from mmpsvit.ops import KERNELS, SampledMap, kernels, sample_points

DEVICE = 'cuda'
pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason='needs CUDA'),
]


def make(batch: int, channels: int, size: int, count: int) -> list[Tensor]:
    """A map, points from outside to outside, and a gradient of the samples."""
    generator = torch.Generator().manual_seed(0)
    feat = torch.randn(batch, channels, size, size, generator=generator)
    points = torch.rand(batch, count, 2, generator=generator) * (size + 4) - 2
    # At an integer, either one-sided gradient is right.
    points = torch.where((points - points.round()).abs() < 1e-3, 0.5, points)
    return [feat, points, torch.randn(batch, count, channels, generator=generator)]


def gradients(
    feat: Tensor, points: Tensor, grad: Tensor, kernel: str = 'mmcv'
) -> list[Tensor]:
    """The samples, and the gradients of map and points."""
    feat, points = (part.detach().requires_grad_() for part in (feat, points))
    out = sample_points(feat, points, kernel)
    out.backward(grad)
    return [out.detach(), feat.grad, points.grad]


def check(actual: Tensor, expected: Tensor, dtype: torch.dtype) -> None:
    """The right values, rounded once to ``dtype``."""
    assert actual.dtype == dtype
    tolerance = max(1e-3, 2 * torch.finfo(dtype).eps)
    torch.testing.assert_close(
        actual.double().cpu(), expected, atol=tolerance, rtol=tolerance
    )


def check_all(actual: list[Tensor], expected: list[Tensor], dtype: torch.dtype) -> None:
    """Samples and map in ``dtype``; points and their gradients are never rounded."""
    for result, right, kind in zip(
        actual, expected, (dtype, dtype, torch.float32), strict=True
    ):
        check(result, right, kind)


@pytest.mark.parametrize('channels', [64, 96, 192, 384])
@pytest.mark.parametrize('dtype', [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize('kernel', KERNELS)
def test_dtypes_under_autocast(dtype, channels, kernel):
    feat, points, grad = make(2, channels, 14, 49)
    feat, grad = feat.to(dtype), grad.to(dtype)
    expected = gradients(feat.double(), points.double(), grad.double())
    half = torch.float16 if dtype == torch.float32 else dtype
    with torch.autocast(DEVICE, half):
        inputs = (part.to(DEVICE) for part in (feat, points, grad))
        actual = gradients(*inputs, kernel)
    check_all(actual, expected, dtype)


@pytest.mark.parametrize(
    'sizes',
    # The last is B/14's.
    [*((batch, 32, 9, 16) for batch in (1, 3, 7, 65, 100)), (32, 384, 56, 196)],
)
@pytest.mark.parametrize(
    ('kernel', 'images_per_call'), [*((name, None) for name in KERNELS), ('mmcv', 3)]
)
def test_batch_sizes(sizes, images_per_call, kernel, monkeypatch):
    """mmcv wants a batch to be a multiple of im2col_step, or smaller than it."""
    assert kernels.has_mmcv()
    feat, points, grad = make(*sizes)
    if images_per_call:
        limit = images_per_call * feat[0].numel()
        monkeypatch.setattr(kernels, 'MAX_ELEMENTS', limit)
    expected = gradients(feat.double(), points.double(), grad.double())
    actual = gradients(feat.to(DEVICE), points.to(DEVICE), grad.to(DEVICE), kernel)
    check_all(actual, expected, torch.float32)


@pytest.mark.parametrize('half', [None, torch.float16, torch.bfloat16])
@pytest.mark.parametrize('kernel', KERNELS)
def test_sampled_map(half, kernel):
    """Three calls at different points, whose gradients meet in one map."""
    feat, points, grad = make(3, 96, 14, 49)
    if half:
        feat, grad = feat.to(half), grad.to(half)

    def run(feat, points, grad):
        feat, points = (part.detach().requires_grad_() for part in (feat, points))
        sampled_map = SampledMap.of(feat, kernel)
        outs = []
        for turn in range(3):
            samples, sampled_map = sampled_map.sample(points.roll(turn, 0))
            outs.append(samples)
        # Powers of two: nothing is rounded.
        grads = [(2**i * grad).to(out.dtype) for i, out in enumerate(outs)]
        torch.autograd.backward(outs, grads)
        return [sum(outs).detach(), feat.grad, points.grad]

    expected = run(feat.double(), points.double(), grad.double())
    with torch.autocast(DEVICE, half, enabled=half is not None):
        actual = run(*(part.to(DEVICE) for part in (feat, points, grad)))
    for result, right, kind in zip(
        actual, expected, (torch.float32, half or torch.float32, torch.float32),
        strict=True,
    ):  # fmt: skip
        check(result, right, kind)


@contextlib.contextmanager
def deterministic_mode() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def test_deterministic_mode():
    """Bit by bit the same gradients; mmcv's kernel adds them up in any order.

    PyTorch does not know that it does, and so does not raise either.
    """
    feat, points, grad = (part.to(DEVICE) for part in make(4, 64, 3, 3000))
    expected = gradients(feat, points, grad)
    with deterministic_mode():
        results = [gradients(feat, points, grad) for _ in range(10)]
        assert SampledMap.of(feat).kernel is None
    for result in results[1:]:
        for one, other in zip(result, results[0], strict=True):
            assert torch.equal(one, other)
    for one, other in zip(results[0], expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-2, rtol=1e-3)


@contextlib.contextmanager
def no_waiting() -> Iterator[None]:
    """Where the host waits for the device, PyTorch raises."""
    torch.cuda.set_sync_debug_mode('error')
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode('default')


@pytest.mark.parametrize('deterministic', [False, True])
@pytest.mark.parametrize('half', [None, torch.float16])
@pytest.mark.parametrize(
    'kwargs',
    [dict(num_points=7), dict(point_stride=16), dict(num_points=7, kernel='triton')],
)
def test_host_never_waits(kwargs, half, deterministic):
    """Not in a step of the sampler, forward and backward, on either path."""
    sampler = ProgressiveSampling(96, 3, 192, **kwargs).to(DEVICE)
    feat = torch.randn(2, 96, 28, 28, device=DEVICE, requires_grad=True)

    def step() -> None:
        with torch.autocast(DEVICE, half, enabled=half is not None):
            tokens = sampler(feat).tokens
        tokens.float().square().mean().backward()

    # Attention's products have no deterministic form without an environment variable.
    mode = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(deterministic, warn_only=True)
    try:
        step()  # loads and compiles what it needs
        with no_waiting():
            step()
            with pytest.raises(RuntimeError, match='synchroniz'):
                feat.sum().item()
    finally:
        torch.use_deterministic_algorithms(mode)
