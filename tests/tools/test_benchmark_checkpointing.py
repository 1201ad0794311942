# Copyright (c) mmpsvit contributors.
"""tools/benchmarks/benchmark_checkpointing.py on a small image."""

import json


def test_figures(run_tool, tmp_path):
    options = '--device cpu --arch tiny --shape 96 128 --runs 1 --warmup 1 --threads 1'
    output = run_tool(
        'tools/benchmarks/benchmark_checkpointing.py', *options.split(), '--out', 'cp'
    )
    assert (tmp_path / 'cp.md').read_text() in output
    results = json.loads((tmp_path / 'cp.json').read_text())['results']
    plain, with_cp = results['with_cp=False'], results['with_cp=True']
    assert len(plain['seconds']) == len(with_cp['seconds']) == 1
    if plain['peak_bytes'] is not None:  # known on Linux and CUDA
        assert 0 < with_cp['peak_bytes'] < plain['peak_bytes']


def test_wrong_shape(run_tool):
    output = run_tool(
        'tools/benchmarks/benchmark_checkpointing.py', '--shape', '0', '5', code=2
    )
    assert 'argument --shape: must be at least 1, got 0' in output
