# Copyright (c) mmpsvit contributors.
"""The speed benchmark runs and its figures agree with each other; no speeds."""

import json
import statistics

import pytest

TOOL = 'tools/benchmarks/benchmark_speed.py'
SMALL = ('--batch-size', 2, '--runs', 3, '--warmup', 1, '--shape', 64)


def test_inference(run_tool, root, tmp_path):
    b10 = root / 'configs' / 'psvit' / 'b10.py'
    output = run_tool(
        TOOL, b10, 'resnet18', 'torchvision:squeezenet1_0', *SMALL,
        '--baseline', 'resnet18', '--out', 'results/speed',
    )  # fmt: skip
    results = json.loads((tmp_path / 'results' / 'speed.json').read_text())
    rows = {row['model']: row for row in results['results']}
    assert list(rows) == ['b10', 'resnet18', 'torchvision:squeezenet1_0']
    assert rows['b10']['parameters'] == 21_344_302
    for row in rows.values():
        assert len(row['seconds']) == 3
        median = statistics.median(row['seconds'])
        assert row['images_per_second'] == pytest.approx(2 / median)
        other = rows['resnet18']['images_per_second']
        assert row['ratio'] == pytest.approx(row['images_per_second'] / other)
        assert (row['height'], row['width']) == (64, 64)
    assert results['settings']['runs'] == 3
    assert {'torch', 'mmpretrain', 'mmpsvit'} <= set(results['versions'])
    table = (tmp_path / 'results' / 'speed.md').read_text()
    assert table in output
    assert f'| resnet18 | 64 | {rows["resnet18"]["parameters"]:,} |' in table
    assert sorted(path.name for path in (tmp_path / 'results').iterdir()) == [
        'speed.json',
        'speed.md',
    ]


def test_training_steps(run_tool, root, tmp_path):
    config = root / 'configs' / 'cluttered_digits' / 'psvit.py'
    run_tool(
        TOOL, config, 'resnet18', *SMALL, '--train', '--amp', '--channels-last',
        '--device', 'cpu', '--out', 'train',
    )  # fmt: skip
    results = json.loads((tmp_path / 'train.json').read_text())
    first, second = results['results']
    assert first['model'] == str(config)
    assert (first['ratio'], first['paper_ratio']) == (1, None)
    # Gradients and activations of 11.7 M parameters take more than 4 bytes each.
    assert second['peak_bytes'] is None or second['peak_bytes'] > 40e6
    table = (tmp_path / 'train.md').read_text()
    assert 'Speed of training steps: batch 2, autocast, channels_last' in table


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['nonsense'], "argument models: 'nonsense' is no config file, no name of"),
        (['nowhere.py'], 'argument config: nowhere.py does not exist'),
        (['torchvision:raft'], 'argument models: torchvision has no classifier'),
        (['resnet18', '--runs', '0'], 'argument --runs: must be at least 1, got 0'),
        (['resnet18', '--shape', '0'], 'argument --shape: H W or one number > 0'),
        (['resnet18', '--baseline', 'x'], "--baseline: 'x' is none of the models"),
        (['resnet18', '--device', 'x'], "argument --device: 'x' is no device"),
    ],
)
def test_mistakes(arguments, message, run_tool):
    output = run_tool(TOOL, *arguments, code=2)
    assert message in output
    assert 'Traceback' not in output
