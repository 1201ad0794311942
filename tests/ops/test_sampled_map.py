# Copyright (c) mmpsvit contributors.
"""Several samplings of one map, by PyTorch and by kernels, against single ones.

mmcv's kernel needs CUDA: a stand-in of the same signature shows everywhere what it is
handed.
"""

import types
import warnings

import pytest
import torch
import torch.nn.functional as F
from references import by_map, gradients, inputs
from stack import needs_new_torch
from torch import Tensor
from torch.autograd import gradcheck
from torch.utils.checkpoint import checkpoint

from mmpsvit.ops import SampledMap, kernels, sample_points
from mmpsvit.ops import sampled_map as module_of_map


def as_grid_sample(value, shapes, starts, locations, weights) -> tuple:
    """The map and the grid for ``F.grid_sample``: one head, level and point."""
    assert value.is_contiguous()
    sampled = locations.shape[:2].numel() * value.shape[-1]
    assert max(value.numel(), sampled) <= kernels.MAX_ELEMENTS
    assert shapes.dtype == starts.dtype == torch.int64 and starts.tolist() == [0]
    assert (weights == 1).all()
    (height, width), (batch, _, _, channels) = shapes[0].tolist(), value.shape
    feat = value.view(batch, height, width, channels).permute(0, 3, 1, 2)
    return feat, 2 * locations[:, :, 0, 0] - 1


def forward_of_mmcv(value, *args, im2col_step):
    """Deformable attention."""
    assert len(value) == im2col_step
    feat, grid = as_grid_sample(value, *args)
    return F.grid_sample(feat, grid, align_corners=False).squeeze(-1).mT.contiguous()


def backward_of_mmcv(*args, im2col_step):
    """Like mmcv's, it adds to the gradients that it is handed."""
    *inputs, grad, to_value, to_locations, _ = args
    assert grad.is_contiguous() and to_value.is_contiguous()
    feat, grid = as_grid_sample(*inputs)
    to_feat, to_grid = torch.ops.aten.grid_sampler_2d_backward(
        grad.mT.unsqueeze(-1), feat, grid, 0, 0, False, (True, True)
    )
    to_value += to_feat.permute(0, 2, 3, 1).flatten(1, 2).unsqueeze(2)
    to_locations += 2 * to_grid[:, :, None, :, None]


@pytest.fixture
def stand_in(monkeypatch):
    """mmcv's kernel on the CPU, in any dtype; the buffers that it was handed."""
    buffers = []

    def backward(*args, im2col_step):
        buffers.append(args[-3].data_ptr())
        backward_of_mmcv(*args, im2col_step=im2col_step)

    module = types.SimpleNamespace(
        ms_deform_attn_forward=forward_of_mmcv, ms_deform_attn_backward=backward
    )
    monkeypatch.setattr(kernels, '_mmcv', lambda: module)
    monkeypatch.setattr(module_of_map, '_has_kernel', lambda *_: True)
    return buffers


@pytest.fixture(params=['operators', 'kernel'])
def way(request):
    """By PyTorch's operators, and by a kernel."""
    if request.param == 'kernel':
        request.getfixturevalue('stand_in')
    return request.param


def by_calls(feat: Tensor, points: Tensor) -> list:
    return [sample_points(feat, each) for each in points]


def assert_all_close(ours: list, expected: list, **tolerances) -> None:
    for one, other in zip(ours, expected, strict=True):
        torch.testing.assert_close(one, other, **tolerances)


@pytest.mark.parametrize('images_per_call', [1, 2, 10**6])
@pytest.mark.parametrize('width', [4, 5])
@pytest.mark.parametrize('count', [6, 30])
def test_kernel_equals_operators(count, width, images_per_call, stand_in, monkeypatch):
    """Also where a batch is more than the kernel can address."""
    data = inputs(width=width, count=count)
    largest = 3 * max(5 * width, count)
    fitting = images_per_call * largest + largest - 1
    monkeypatch.setattr(kernels, 'MAX_ELEMENTS', fitting)
    ours = gradients(by_map, *data)
    monkeypatch.setattr(module_of_map, '_has_kernel', lambda *_: False)
    # Outside the map, the stand-in's gradients are those of F.grid_sample: the same.
    assert_all_close(ours, gradients(by_map, *data), atol=1e-12, rtol=0)


def test_image_that_mmcv_cannot_address(stand_in, monkeypatch):
    feat, points = inputs()
    monkeypatch.setattr(kernels, 'MAX_ELEMENTS', feat[0].numel())
    by_map(feat, points)
    monkeypatch.setattr(kernels, 'MAX_ELEMENTS', feat[0].numel() - 1)
    with pytest.raises(ValueError, match=r"59 numbers .* got 60; kernel = 'triton'"):
        by_map(feat, points)


def test_one_gradient_of_the_map(stand_in):
    """All backward passes add to the same buffer, also the second time."""
    feat, points = inputs()
    loss = sum(out.sum() for out in by_map(feat, points))
    for _ in range(2):
        torch.autograd.grad(loss, feat, retain_graph=True)
        assert len(stand_in) == 3 and len(set(stand_in)) == 1
        stand_in.clear()


def test_gradcheck(way):
    feat, points = inputs()
    assert gradcheck(lambda f, p: tuple(by_map(f, p)), (feat, points))


def test_gradients_may_be_asked_for_in_parts_and_again(way):
    """No state is left behind from one backward pass to the next."""
    feat, points = inputs()
    expected = torch.autograd.grad(sum(o.sum() for o in by_calls(feat, points)), feat)
    loss = sum(out.sum() for out in by_map(feat, points))
    torch.autograd.grad(loss, points, retain_graph=True)
    for _ in range(2):
        (grad,) = torch.autograd.grad(loss, feat, retain_graph=True)
        torch.testing.assert_close(grad, expected[0], atol=1e-12, rtol=0)


def test_second_derivatives_are_refused(way):
    """They would lack what the sampling contributes."""
    feat, points = inputs()
    loss = sum(out.square().sum() for out in by_map(feat, points))
    grads = torch.autograd.grad(loss, (feat, points), create_graph=True)
    reason = 'once_differentiable' if way == 'kernel' else 'is not implemented'
    with pytest.raises(RuntimeError, match=reason):
        sum(grad.square().sum() for grad in grads).backward()


def test_points_of_a_map_without_gradient(way):
    feat, points = inputs()
    (only,) = torch.autograd.grad(sum(o.sum() for o in by_calls(feat, points)), points)
    sampled_map = SampledMap.of(feat.detach())
    assert sampled_map.slot is None
    outs = by_map(feat.detach(), points)
    (ours,) = torch.autograd.grad(sum(out.sum() for out in outs), points)
    torch.testing.assert_close(ours, only, atol=1e-12, rtol=0)
    with torch.no_grad():
        assert not any(out.requires_grad for out in by_map(feat, points))


def test_no_points(way):
    feat, points = inputs()
    outs = by_map(feat, points[:, :, :0])
    assert [out.shape for out in outs] == [(2, 0, 3)] * 3
    assert by_map(feat[:0], points[:, :0])[0].shape == (0, 6, 3)
    sum(out.sum() for out in [*outs, *by_map(feat, points)]).backward()
    assert feat.grad.abs().sum() > 0


def test_anomaly_detection(device):
    """A point that is NaN is no fault of the backward pass."""
    feat, points = inputs(device, torch.float32)
    points = points.detach()
    points[1, 0, 0] = torch.nan
    with torch.autograd.detect_anomaly(check_nan=True):
        sum(out.sum() for out in by_map(feat, points.requires_grad_())).backward()
    assert feat.grad.isfinite().all() and points.grad.isfinite().all()


def test_recomputed_calls(way):
    feat, points = inputs()

    def recomputing(feat, points):
        sampled_map = SampledMap.of(feat)
        outs = []
        for each in points:
            samples, sampled_map = checkpoint(
                sampled_map.sample, each, use_reentrant=False
            )
            outs.append(samples)
        return outs

    ours = gradients(recomputing, feat, points)
    assert_all_close(ours, gradients(by_map, feat, points), atol=0, rtol=0)


@needs_new_torch
def test_one_graph(way):
    """torch.compile sees through all of it, forward and backward."""
    feat, points = inputs()
    torch._dynamo.reset()
    compiled = torch.compile(by_map, backend='aot_eager', fullgraph=True)
    ours = gradients(compiled, feat, points)
    assert_all_close(ours, gradients(by_map, feat, points), atol=1e-12, rtol=0)


@needs_new_torch
def test_kernel_is_one_node_of_a_graph(stand_in):
    """torch.compile does not look into it, which it could not do with mmcv's."""
    feat, points = inputs()
    nodes = []

    def backend(graph, _):
        nodes.extend(str(node.target) for node in graph.graph.nodes)
        return graph

    torch._dynamo.reset()
    with torch.no_grad():
        torch.compile(by_map, backend=backend, fullgraph=True)(feat, points)
    assert sum('mmpsvit.sample_with_mmcv' in name for name in nodes) == 3


@needs_new_torch
@pytest.mark.filterwarnings('ignore')  # traces are deprecated
def test_kernel_is_one_node_of_a_trace(stand_in):
    feat, points = inputs()
    with torch.no_grad():
        traced = torch.jit.trace(by_map, (feat, points), check_trace=False)
        assert str(traced.graph).count('mmpsvit::sample_with_mmcv') == 3
        feat = feat.flip(2)
        assert_all_close(
            list(traced(feat, points)), by_map(feat, points), atol=1e-12, rtol=0
        )


def test_half_map_in_onnx(monkeypatch):
    """Points stay float32, whatever the map that Triton's kernel would read."""
    monkeypatch.setattr(torch.onnx, 'is_in_onnx_export', lambda: True)
    table, points = torch.rand(2, 5, 6, 8).half(), 5 * torch.rand(2, 7, 2)
    sampled_map = SampledMap(torch.half, table, None, 'triton')
    assert not sampled_map.advances
    samples, _ = sampled_map.sample(points)
    expected = sample_points(table.float().permute(0, 3, 1, 2), points)
    torch.testing.assert_close(samples, expected)


def test_half_precision_map(way):
    feat, points = inputs(dtype=torch.float32)
    half = feat.detach().bfloat16().requires_grad_()
    outs = by_map(half, points.detach())
    assert outs[0].dtype == torch.float32
    sum(out.sum() for out in outs).backward()
    assert half.grad.dtype == torch.bfloat16
    (exact,) = torch.autograd.grad(sum(o.sum() for o in by_map(feat, points)), feat)
    torch.testing.assert_close(half.grad.float(), exact, atol=0.02, rtol=0.01)


def test_one_warning_without_cuda_ops(monkeypatch):
    """CUDA tensors take the slow way, with one warning, where mmcv has no kernel."""
    monkeypatch.setattr('mmcv.ops.get_compiling_cuda_version', lambda: 'not available')
    kernels._look_for_mmcv.cache_clear()
    try:
        feat = types.SimpleNamespace(is_cuda=True, dtype=torch.float32)
        with pytest.warns(UserWarning, match='no compiled CUDA ops'):
            assert not module_of_map._has_kernel(feat, 'mmcv')
        with warnings.catch_warnings():
            warnings.simplefilter('error')
            assert not module_of_map._has_kernel(feat, 'mmcv')
    finally:
        kernels._look_for_mmcv.cache_clear()


def test_where_kernels_sample(monkeypatch):
    """Not float64, whose points they would round, deterministic mode or torch.func."""

    def has(dtype: torch.dtype) -> bool:
        feat = types.SimpleNamespace(is_cuda=True, dtype=dtype)
        return module_of_map._has_kernel(feat, 'triton')

    assert has(torch.half) and has(torch.float32) and not has(torch.float64)
    with monkeypatch.context() as patch:
        name = 'are_deterministic_algorithms_enabled'
        patch.setattr(torch, name, lambda: True)
        assert not has(torch.half)
    found = []
    torch.func.grad(lambda x: found.append(has(torch.half)) or x)(torch.ones(()))
    assert found == [False]


def test_gradients_of_layers_under_autocast():
    """Compiled, backward passes are under autocast: no sum is in half precision."""
    grad, inputs = torch.randn(2, 40, 5), torch.randn(2, 40, 3)
    expected = torch.einsum('bnc,bni->ci', grad, inputs)
    with torch.autocast('cpu', torch.bfloat16):
        weight, bias = module_of_map._gradients(grad, inputs, torch.float32)
    torch.testing.assert_close(weight, expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(bias, grad.sum((0, 1)), atol=1e-4, rtol=1e-4)


def test_points_of_a_half_map_are_single(monkeypatch):
    monkeypatch.setattr(module_of_map, '_has_kernel', lambda *_: True)
    half = torch.zeros(1, 2, 3, 3).half()
    assert SampledMap.of(half, 'triton').dtype == torch.float32
