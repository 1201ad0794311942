# Copyright (c) mmpsvit contributors.
"""tools/benchmarks/benchmark_checkpointing.py on a small image."""

import json

import pytest
import torch


def test_figures(run_tool, tmp_path):
    options = '--device cpu --arch tiny --shape 160 224 --runs 1 --warmup 1 --threads 1'
    output = run_tool(
        'tools/benchmarks/benchmark_checkpointing.py', *options.split(), '--out', 'cp'
    )
    assert (tmp_path / 'cp.md').read_text() in output
    results = json.loads((tmp_path / 'cp.json').read_text())['results']
    plain, with_cp = results['with_cp=False'], results['with_cp=True']
    assert len(plain['seconds']) == len(with_cp['seconds']) == 1
    assert 0 < with_cp['peak_bytes'] < 0.7 * plain['peak_bytes']


def test_wrong_shape(run_tool):
    output = run_tool(
        'tools/benchmarks/benchmark_checkpointing.py', '--shape', '0', '5', code=2
    )
    assert 'argument --shape: must be at least 1, got 0' in output


def test_peak_memory(import_benchmark):
    """Of tensors alive at the same time; what stays from before does not count."""
    peak_bytes_of = import_benchmark('_measuring').peak_bytes_of
    kept = torch.zeros(10**6)

    def step() -> None:
        for size in (10**6, 3 * 10**6, 2 * 10**6):
            one = torch.ones(size)
            two = one + 1
            del one, two

    assert peak_bytes_of(step, torch.device('cpu')) == pytest.approx(24e6, rel=0.01)
    assert kept.sum() == 0
