# Copyright (c) mmpsvit contributors.
"""The scaling benchmark: settings, fit, parts, files; no speeds."""

import json

import mmpretrain
import pytest
import torch
from mmengine.config import Config

TOOL = 'tools/benchmarks/benchmark_scaling.py'


@pytest.fixture
def benchmark_scaling(import_benchmark):
    return import_benchmark('benchmark_scaling')


def test_exponent(benchmark_scaling):
    sides = [2, 3, 5]
    values = [7 * side**2.5 for side in sides]
    assert benchmark_scaling.exponent(sides, values) == pytest.approx(2.5)
    assert benchmark_scaling.exponent([2], [3.0]) is None
    assert benchmark_scaling.exponent(sides, [1.0, None, 2.0]) is None


@pytest.mark.parametrize('train', [False, True])
def test_parts_leave_the_network_as_it_was(train, benchmark_scaling, root):
    config = root / 'configs' / 'cluttered_digits' / 'psvit.py'
    model = mmpretrain.get_model(Config.fromfile(config)).train(train)
    images = torch.rand(2, 3, 48, 48)
    modules = benchmark_scaling.modules_of(model)
    steps = benchmark_scaling.part_steps(model, modules, images, train, amp=False)
    assert set(steps) == {*modules, 'sampling'}
    for step in steps.values():
        step()
    assert all(parameter.grad is None for parameter in model.parameters())
    for module in model.modules():
        assert not module._forward_pre_hooks and not module._forward_hooks
    with pytest.raises(ValueError, match='calls none of the modules'):
        unused = {'unused': [torch.nn.Linear(1, 1)]}
        benchmark_scaling.part_steps(model, unused, images, train, amp=False)


@pytest.mark.parametrize('train', [False, True])
def test_figures(train, run_tool, root, tmp_path):
    config = root / 'configs' / 'cluttered_digits' / 'psvit.py'
    output = run_tool(
        TOOL, config, '--vit', 'same', '--device', 'cpu', '--sizes', 48, 72,
        '--points', 3, 5, '--size', 64, '--num-points', 4, '--runs', 2, '--warmup', 1,
        '--out', 'scaling', *(['--train'] if train else []),
    )  # fmt: skip
    results = json.loads((tmp_path / 'scaling.json').read_text())
    rows = results['results']
    growing, fixed, points = dict.fromkeys(row['sweep'] for row in rows)
    assert [(row['sweep'], row['side'], row['tokens']) for row in rows] == [
        (growing, 48, 3 * 3), (growing, 72, 5 * 5),
        (fixed, 48, 4 * 4), (fixed, 72, 4 * 4),
        (points, 3, 3 * 3), (points, 5, 5 * 5),
    ]  # fmt: skip
    # Whole patches: 16 and 14, 12 and 18, 21 and 12 pixels a side.
    sizes = [row['networks']['same']['image_size'] for row in rows]
    assert sizes == [3 * 16, 5 * 14, 4 * 12, 4 * 18, 3 * 21, 5 * 12]
    sizes = [row['networks']['PS-ViT']['image_size'] for row in rows]
    assert sizes == [48, 72, 48, 72, 64, 64]
    for row in rows:
        parts = set(row['networks']['PS-ViT']['milliseconds'])
        assert parts == {'whole', 'stem', 'sampling', 'iterations', 'attention', 'FFN'}
        parts = set(row['networks']['same']['milliseconds'])
        assert parts == {'whole', 'attention', 'FFN'}
    assert len(results['growth']) == 3 * 2
    assert {entry['network'] for entry in results['growth']} == {'PS-ViT', 'same'}
    table = (tmp_path / 'scaling.md').read_text()
    assert table in output
    assert ('training steps' if train else 'inference') in table
    assert '| image size, 4 points per side |' in table
    png = (tmp_path / 'scaling.png').read_bytes()
    assert png.startswith(b'\x89PNG') and len(png) > 10_000


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['no.py'], 'argument config: no.py does not exist'),
        (['configs/psvit/ablations/vit_same_hparams.py'], 'has no PSViT that moves'),
        (['--sizes', '0'], 'argument --sizes: must be at least 1, got 0'),
        (['--points', '300'], 'argument --points: 300 points do not fit on 224 pixels'),
        (['--sizes', '9'], 'argument --num-points: 14 points do not fit on 9 pixels'),
        (['--vit', 'x'], "argument --vit: invalid choice: 'x'"),
    ],
)
def test_mistakes(arguments, message, benchmark_error, root, monkeypatch):
    monkeypatch.chdir(root)
    assert message in benchmark_error('benchmark_scaling', *arguments)
