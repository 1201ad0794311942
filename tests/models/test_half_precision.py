# Copyright (c) mmpsvit contributors.
"""Half precision moves no point: at 256 pixels its steps are up to a pixel wide."""

import pytest
import torch
from small import move_points
from stack import skip_without_autocast

from mmpsvit import ProgressiveSampling


@pytest.mark.parametrize('size', [56, 256])
@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_points_of_given_tokens(size, dtype, monkeypatch):
    """The same tokens move the points to the same places, to 1e-3 of a pixel."""
    skip_without_autocast(dtype)
    torch.manual_seed(0)
    neck = ProgressiveSampling(24, 3, 48, num_iters=4).eval()
    neck.init_weights()
    move_points(neck, std=size / 20)
    # Tokens that depend on neither map nor points: those of single precision.
    given = iter([torch.randn(2, 196, 24) for _ in range(4)] * 2)
    monkeypatch.setattr(type(neck.layers[0]), 'forward', lambda self, x: next(given))
    feat = torch.randn(2, 24, size, size)
    with torch.no_grad():
        expected = neck(feat)
        with torch.autocast('cpu', dtype):
            actual = neck(feat.to(dtype))
    moved = expected.trajectory[:, 1:] - expected.trajectory[:, :-1]
    assert moved.abs().max() > size / 20
    assert actual.trajectory.dtype == torch.float32
    torch.testing.assert_close(
        actual.trajectory, expected.trajectory, rtol=0, atol=1e-3
    )
