# Copyright (c) mmpsvit contributors.
"""``SampledMap`` against repeated calls of ``sample_points``."""

import pytest
import torch
from torch.autograd import gradcheck
from torch.utils.checkpoint import checkpoint

from mmpsvit.ops import SampledMap, sample_points


def inputs(device: str = 'cpu', dtype: torch.dtype = torch.float64) -> tuple:
    """A map and the points of three calls, some of them outside."""
    generator = torch.Generator().manual_seed(0)
    feat = torch.randn(2, 3, 5, 4, dtype=dtype, generator=generator)
    points = 7 * torch.rand(3, 2, 6, 2, dtype=dtype, generator=generator) - 1.5
    points[1, 0, 0] = torch.nan
    feat, points = feat.to(device), points.to(device)
    return feat.requires_grad_(), points.requires_grad_()


def gradients(sample, feat: torch.Tensor, points: torch.Tensor) -> list:
    """Samples, and gradients where each call weighs otherwise and one is left out."""
    outs = sample(feat, points)
    loss = outs[0].square().sum() + 3 * outs[2].sin().sum()
    return [*outs, *torch.autograd.grad(loss, (feat, points))]


def by_map(feat: torch.Tensor, points: torch.Tensor) -> list:
    sampled = SampledMap(feat, points.shape[2], len(points))
    return [sampled.sample(each, call) for call, each in enumerate(points)]


def by_calls(feat: torch.Tensor, points: torch.Tensor) -> list:
    return [sample_points(feat, each) for each in points]


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
def test_equals_single_calls(device, dtype):
    data = inputs(device, dtype)
    tolerance = 1e-12 if dtype == torch.float64 else 1e-5
    ours, expected = gradients(by_map, *data), gradients(by_calls, *data)
    for one, other in zip(ours, expected, strict=True):
        assert one.dtype == dtype
        torch.testing.assert_close(one, other, atol=tolerance, rtol=0)


def test_gradcheck():
    feat, points = inputs()
    points = points.detach().nan_to_num(0.3).requires_grad_()
    assert gradcheck(lambda f, p: tuple(by_map(f, p)), (feat, points))


def test_gradients_may_be_asked_for_in_parts_and_again():
    """No state is left behind from one backward pass to the next."""
    feat, points = inputs()
    expected = torch.autograd.grad(sum(o.sum() for o in by_calls(feat, points)), feat)
    loss = sum(out.sum() for out in by_map(feat, points))
    torch.autograd.grad(loss, points, retain_graph=True)
    for _ in range(2):
        (grad,) = torch.autograd.grad(loss, feat, retain_graph=True)
        torch.testing.assert_close(grad, expected[0], atol=1e-12, rtol=0)


def test_anomaly_detection():
    """A point that is NaN is no fault of the backward pass."""
    feat, points = inputs()
    with torch.autograd.detect_anomaly(check_nan=True):
        sum(out.sum() for out in by_map(feat, points)).backward()
    assert feat.grad.isfinite().all()


def test_recomputed_calls():
    feat, points = inputs()

    def recomputing(feat, points):
        sampled = SampledMap(feat, points.shape[2], len(points))
        return [
            checkpoint(sampled.sample, each, call, use_reentrant=False)
            for call, each in enumerate(points)
        ]

    ours, expected = (
        gradients(recomputing, feat, points),
        gradients(by_map, feat, points),
    )
    for one, other in zip(ours, expected, strict=True):
        torch.testing.assert_close(one, other, atol=0, rtol=0)


def test_half_precision_map():
    feat, points = inputs(dtype=torch.float32)
    half = feat.detach().bfloat16().requires_grad_()
    outs = by_map(half, points.detach())
    assert outs[0].dtype == torch.float32
    sum(out.sum() for out in outs).backward()
    assert half.grad.dtype == torch.bfloat16
    (exact,) = torch.autograd.grad(sum(o.sum() for o in by_map(feat, points)), feat)
    torch.testing.assert_close(half.grad.float(), exact, atol=0.02, rtol=0.01)


def test_without_gradients_nothing_is_collected():
    feat, points = inputs()
    assert SampledMap(feat.detach(), 6, 3).slots is None
    with torch.no_grad():
        assert SampledMap(feat, 6, 3).slots is None
    (only,) = torch.autograd.grad(sum(o.sum() for o in by_calls(feat, points)), points)
    outs = by_map(feat.detach(), points)
    (ours,) = torch.autograd.grad(sum(out.sum() for out in outs), points)
    assert torch.equal(ours, only)
