# Copyright (c) mmpsvit contributors.
"""When mmcv's kernel samples. (What it returns, test_cuda_sampling.py checks.)"""

from types import SimpleNamespace

import pytest
import torch

from mmpsvit.ops import deform_attn, point_sampling


@pytest.fixture
def mmcv_for_cuda(monkeypatch):
    """An mmcv with ops that says that it is compiled for CUDA."""
    pytest.importorskip('mmcv._ext', reason='needs mmcv with ops')
    monkeypatch.setattr('mmcv.ops.get_compiling_cuda_version', lambda: '13.0')
    deform_attn._look_for_kernel.cache_clear()
    yield
    deform_attn._look_for_kernel.cache_clear()


def table(device: str, dtype: torch.dtype) -> SimpleNamespace:
    return SimpleNamespace(is_cuda=device == 'cuda', dtype=dtype)


def test_kernel_is_found(mmcv_for_cuda, recwarn):
    assert deform_attn.has_kernel()
    assert not recwarn.list


def test_kernel_takes_single_precision_on_cuda(mmcv_for_cuda):
    assert point_sampling._uses_mmcv(table('cuda', torch.float32))
    assert not point_sampling._uses_mmcv(table('cuda', torch.float64))
    assert not point_sampling._uses_mmcv(table('cpu', torch.float32))


def test_kernel_rests_in_deterministic_mode(mmcv_for_cuda):
    """It adds gradients up in any order, and does not tell PyTorch so."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        assert not point_sampling._uses_mmcv(table('cuda', torch.float32))
    finally:
        torch.use_deterministic_algorithms(before)
