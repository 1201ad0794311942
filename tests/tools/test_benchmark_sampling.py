# Copyright (c) mmpsvit contributors.
"""The benchmark of sampling: all implementations agree."""

import pytest
import torch
from scripts import error_of


@pytest.fixture
def benchmark_sampling(import_tool):
    return import_tool('benchmarks/benchmark_sampling.py')


@pytest.mark.parametrize(
    'layout', [torch.contiguous_format, torch.channels_last], ids=['NCHW', 'NHWC']
)
@pytest.mark.parametrize('dtype', [torch.float32, torch.float16, torch.bfloat16])
def test_implementations_agree(benchmark_sampling, dtype, layout, device):
    torch.manual_seed(0)
    feat = torch.randn(3, 8, 5, 7).to(device, dtype, memory_format=layout)
    feat.requires_grad_()
    # Some lie outside the map.
    points = [torch.rand(3, 40, 2) * 10 - 1.5 for _ in range(2)]
    points = [chosen.to(device).requires_grad_() for chosen in points]
    weight = torch.randn(3, 40, 8).to(device)
    results = {}
    for name, sample in benchmark_sampling.implementations(
        torch.device(device)
    ).items():
        outs = [out.float() for out in sample(feat, points)]
        loss = sum((out * weight).sum() for out in outs)
        results[name] = [*outs, *torch.autograd.grad(loss, (feat, *points))]
    assert {'grid_sample', 'sample_points', 'SampledMap'} <= set(results)
    # Half maps: the gradients are rounded, and added up, in half precision.
    tolerance = 1e-4 if dtype == torch.float32 else 1e-1
    for result in results.values():
        for value, expected in zip(result, results['grid_sample'], strict=True):
            assert value.shape == expected.shape
            assert (value.float() - expected.float()).abs().max() < tolerance


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['--batch-size', '0'], 'argument --batch-size: must be at least 1, got 0'),
        (['--dtype', 'float8'], "argument --dtype: invalid choice: 'float8'"),
        (['--dtype', 'amp-float16'], 'argument --dtype: amp-* only with --step-share'),
        (
            ['--step-share', 'b14.py', '--dtype', 'bfloat16'],
            'argument --dtype: with --step-share, float32 or one amp-*',
        ),
        (['--step-share', 'no.py'], 'argument config: no.py does not exist'),
        (
            ['--step-share', 'configs/psvit/ablations/vit_same_stem.py'],
            'vit_same_stem.py samples no points',
        ),
    ],
)
def test_mistakes(arguments, message, root, monkeypatch):
    monkeypatch.chdir(root)
    assert message in error_of('tools/benchmarks/benchmark_sampling.py', *arguments)
