# Copyright (c) mmpsvit contributors.
"""Restated and fused convolutions against PyTorch's plain ones."""

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
import torch.nn.utils.prune
from stack import needs_new_torch
from torch import nn

from mmpsvit.ops import conv7_as_conv4, conv_relu, convolution, may_restate


@pytest.mark.parametrize('channels', [1, 3, 4])
@pytest.mark.parametrize('size', [(16, 12), (9, 14), (5, 7), (1, 1)])
def test_conv7_as_conv4(device, channels, size):
    """The same sums in float64, with the gradients of images and weights."""
    torch.manual_seed(0)
    x = torch.randn(2, channels, *size, dtype=torch.float64, device=device)
    weight = torch.randn(6, channels, 7, 7, dtype=torch.float64, device=device)
    x, weight = x.requires_grad_(), weight.requires_grad_()
    expected = F.conv2d(x, weight, stride=2, padding=3)
    images, restated = conv7_as_conv4(x, weight)
    assert restated.shape[1] % 8 == 0 and restated.shape[2:] == (4, 4)
    for tensor in (images, restated):
        assert tensor.is_contiguous(memory_format=torch.channels_last)
    out = F.conv2d(images, restated)
    torch.testing.assert_close(out, expected, atol=1e-12, rtol=0)
    grad = torch.randn_like(out)
    ours, right = (
        torch.autograd.grad(one, (x, weight), grad) for one in (out, expected)
    )
    for one, other in zip(ours, right, strict=True):
        torch.testing.assert_close(one, other, atol=1e-11, rtol=0)


@needs_new_torch
def test_compiles():
    x, weight = torch.randn(2, 3, 9, 12), torch.randn(8, 3, 7, 7)

    def run(x, weight):
        return F.conv2d(*conv7_as_conv4(x, weight))

    torch._dynamo.reset()
    compiled = torch.compile(run, backend='aot_eager', fullgraph=True)
    torch.testing.assert_close(compiled(x, weight), run(x, weight))


def on_cuda(dtype: torch.dtype) -> SimpleNamespace:
    return SimpleNamespace(is_cuda=True, dtype=dtype)


USUAL = dict(kernel_size=7, stride=2, padding=3)


@pytest.mark.parametrize(
    'changed',
    [
        dict(kernel_size=3),
        dict(stride=1),
        dict(padding=2),
        dict(dilation=2),
        dict(groups=3),
        dict(padding_mode='reflect'),
    ],
)
def test_another_convolution_is_not_restated(changed):
    """Such as that of a stem for smaller images."""
    half = on_cuda(torch.bfloat16)
    assert not may_restate(half, nn.Conv2d(3, 6, **USUAL | changed))


def test_what_is_restated(monkeypatch):
    """In half precision on CUDA only, and no module that somebody must call."""
    conv = nn.Conv2d(3, 6, **USUAL)
    half = on_cuda(torch.bfloat16)
    for other in (torch.ones(1, dtype=torch.bfloat16), on_cuda(torch.float32)):
        assert not may_restate(other, conv)
    assert may_restate(half, conv)
    assert not may_restate(half, nn.Sequential(conv))
    with conv.register_forward_hook(lambda *_: None):
        assert not may_restate(half, conv)
    assert may_restate(half, conv)
    torch.nn.utils.prune.l1_unstructured(conv, 'weight', 0.5)
    assert not may_restate(half, conv)
    monkeypatch.setattr(torch, 'is_autocast_enabled', lambda: True)  # to half precision
    for dtype, expected in ((torch.float32, True), (torch.float64, False)):
        assert may_restate(on_cuda(dtype), nn.Conv2d(3, 6, **USUAL)) == expected


def test_what_is_fused(monkeypatch):
    """What cuDNN takes, where no gradient is asked for; ONNX has no such operator."""
    monkeypatch.setattr(torch.version, 'cuda', '13.0')

    def fuses(dtype: torch.dtype = torch.float32, requires_grad: bool = False) -> bool:
        x = SimpleNamespace(is_cuda=True, dtype=dtype, requires_grad=requires_grad)
        return convolution._fuses(x, x, x)

    assert fuses() and not fuses(torch.float64) and not fuses(requires_grad=True)
    with torch.no_grad():
        assert fuses(requires_grad=True)
    for owner, name, value in (
        (torch.version, 'cuda', None),
        (torch.backends.cudnn, 'enabled', False),
        (torch.onnx, 'is_in_onnx_export', lambda: True),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, value)
            assert not fuses(), name


def inputs(device: str, dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = (2, 16, 9, 7), (24, 16, 3, 3), (24,)
    return [
        torch.randn(shape, generator=generator).to(device, dtype) for shape in shapes
    ]


def reference(x, weight, bias):
    return F.conv2d(x.double(), weight.double(), bias.double(), padding=1).relu()


def test_conv_relu(device):
    tensors = inputs(device)
    out = conv_relu(*tensors, padding=1).double()
    # With TF32 on CUDA
    torch.testing.assert_close(out, reference(*tensors), atol=5e-2, rtol=1e-2)


def test_conv_relu_has_gradients(device):
    """Where one is asked for, nothing is fused."""
    x, weight, bias = inputs(device)
    weight.requires_grad_()
    ours = torch.autograd.grad(conv_relu(x, weight, bias, 1).sum(), weight)
    right = torch.autograd.grad(reference(x, weight, bias).sum(), weight)
    # With TF32 on CUDA
    torch.testing.assert_close(ours[0], right[0], atol=0.1, rtol=1e-2)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs CUDA')
@pytest.mark.parametrize('half', [torch.float16, torch.bfloat16])
@pytest.mark.parametrize('autocast', [False, True])
def test_fused_in_half_precision(half, autocast, monkeypatch):
    tensors = inputs('cuda', torch.float32 if autocast else half)
    calls = []
    fused = convolution._fused_conv_relu
    monkeypatch.setattr(
        convolution, '_fused_conv_relu', lambda *args: calls.append(1) or fused(*args)
    )
    with torch.no_grad(), torch.autocast('cuda', half, enabled=autocast):
        out = conv_relu(*tensors, padding=1)
    assert calls and out.dtype == half
    assert out.is_contiguous(memory_format=torch.channels_last)
    expected = reference(*(tensor.to(half) for tensor in tensors))
    torch.testing.assert_close(out.double(), expected, atol=0.1, rtol=1e-2)
