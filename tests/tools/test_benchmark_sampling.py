# Copyright (c) mmpsvit contributors.
"""The benchmark of sampling: all implementations agree; its figures are consistent."""

import json

import pytest
import torch

TOOL = 'tools/benchmarks/benchmark_sampling.py'


@pytest.fixture
def benchmark_sampling(import_benchmark):
    return import_benchmark('benchmark_sampling')


@pytest.mark.parametrize('dtype', [torch.float32, torch.float16, torch.bfloat16])
def test_implementations_agree(benchmark_sampling, dtype, device):
    torch.manual_seed(0)
    feat = torch.randn(3, 8, 5, 7).to(device, dtype).requires_grad_()
    # Some lie outside the map.
    points = (torch.rand(3, 40, 2) * 10 - 1.5).to(device).requires_grad_()
    found = benchmark_sampling.implementations(torch.device(device))
    assert {'grid_sample', 'gather', 'embedding_bag', 'sample_points'} <= set(found)
    weight = torch.randn(3, 40, 8).to(device)
    results = {}
    for name, sample in found.items():
        out = sample(feat, points).float()
        grads = torch.autograd.grad((out * weight).sum(), (feat, points))
        results[name] = out, *grads
    tolerance = 1e-4 if dtype == torch.float32 else 5e-2
    for result in results.values():
        for value, expected in zip(result, results['sample_points'], strict=True):
            assert value.shape == expected.shape
            assert (value - expected).abs().max() < tolerance


def test_bytes_moved(benchmark_sampling):
    feat = torch.zeros(2, 3, 4, 5, dtype=torch.float16)
    # In the first image four pixels, once more the same ones; in the second one pixel
    # (the other three have weight 0) and none.
    points = torch.tensor([[[1.5, 1.5], [1.2, 1.8]], [[2.0, 3.0], [9.0, 9.0]]])
    moved = benchmark_sampling.bytes_moved(feat, points)
    pixels, samples, place = 5 * 3 * 2, 2 * 2 * 3 * 2, 2 * 2 * 2 * 4
    assert moved == {
        'forward': pixels + samples + place,
        'backward': pixels + samples + feat.numel() * 2 + 2 * place,
    }


def test_figures(run_tool, tmp_path):
    output = run_tool(
        TOOL, '--device', 'cpu', '--batch', 2, '--channels', 4, '--size', 6,
        '--points', 3, '--dtype', 'float32', 'bfloat16', '--runs', 2, '--warmup', 1,
        '--out', 'sampling',
    )  # fmt: skip
    results = json.loads((tmp_path / 'sampling.json').read_text())
    rows = {
        (row['implementation'], row['layout'], row['dtype']): row
        for row in results['results']
    }
    assert len(rows) == 4 * 2 * 2
    for (_, _, dtype), row in rows.items():
        base = rows['grid_sample', 'NCHW', dtype]
        for way in ('forward', 'backward'):
            ratio = base[f'{way}_ms'] / row[f'{way}_ms']
            assert row[f'{way}_ratio'] == pytest.approx(ratio)
            rate = row[f'{way}_bytes'] / row[f'{way}_ms'] * 1e3
            share = rate / row['copy_bandwidth']
            assert row[f'{way}_bandwidth'] == pytest.approx(share)
    assert (tmp_path / 'sampling.md').read_text() in output
    assert '| embedding_bag | channels_last | bfloat16 |' in output
    assert 'map (2, 4, 6, 6), 9 points' in output


def test_step_share(run_tool, root, tmp_path):
    config = root / 'configs' / 'cluttered_digits' / 'psvit.py'
    run_tool(
        TOOL, '--device', 'cpu', '--step-share', config, '--batch', 1, '--runs', 2,
        '--warmup', 1, '--amp', '--out', 'share',
    )  # fmt: skip
    results = json.loads((tmp_path / 'share.json').read_text())['results']
    whole, sampling = results
    assert (whole['part'], whole['share']) == ('training step', 1)
    assert sampling['part'] == 'sampling'
    share = sampling['milliseconds'] / whole['milliseconds']
    assert sampling['share'] == pytest.approx(share)
    assert 'batch 1, autocast' in (tmp_path / 'share.md').read_text()


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['--batch', '0'], 'argument --batch: must be at least 1, got 0'),
        (['--dtype', 'float8'], "argument --dtype: invalid choice: 'float8'"),
        (['--amp'], 'argument --amp: only with --step-share'),
        (['--step-share', 'no.py'], 'argument config: no.py does not exist'),
        (
            ['--step-share', 'configs/psvit/ablations/vit_same_stem.py'],
            'vit_same_stem.py samples no points',
        ),
    ],
)
def test_mistakes(arguments, message, benchmark_error, root, monkeypatch):
    monkeypatch.chdir(root)
    assert message in benchmark_error('benchmark_sampling', *arguments)
