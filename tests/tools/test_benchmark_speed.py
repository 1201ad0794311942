# Copyright (c) mmpsvit contributors.
"""The speed benchmark runs and its figures agree with each other; no speeds."""

import json
import statistics

import pytest
import torch

TOOL = 'tools/benchmarks/benchmark_speed.py'
SMALL = ('--batch-size', 2, '--runs', 3, '--warmup', 1, '--shape', 64)


@pytest.fixture
def benchmark_speed(import_benchmark):
    return import_benchmark('benchmark_speed')


def test_inference(run_tool, root, tmp_path):
    b10 = root / 'configs' / 'psvit' / 'b10.py'
    output = run_tool(
        TOOL, b10, 'plain-b10', f'plain:{b10}', 'resnet18', 'torchvision:squeezenet1_0',
        *SMALL, '--fuse', '--baseline', 'resnet18', 'plain-b10',
        '--out', 'results/speed',
    )  # fmt: skip
    results = json.loads((tmp_path / 'results' / 'speed.json').read_text())
    rows = {row['model']: row for row in results['results']}
    assert list(rows) == ['b10', 'plain-b10', 'resnet18', 'torchvision:squeezenet1_0']
    # Counted before BatchNorms are folded.
    assert rows['b10']['parameters'] == rows['plain-b10']['parameters'] == 21_344_302
    for row in rows.values():
        assert len(row['seconds']) == 3
        median = statistics.median(row['seconds'])
        assert row['images_per_second'] == pytest.approx(2 / median)
        assert list(row['ratios']) == ['resnet18', 'plain-b10']
        for name, ratio in row['ratios'].items():
            other = rows[name]['images_per_second']
            assert ratio == pytest.approx(row['images_per_second'] / other)
        assert (row['height'], row['width']) == (64, 64)
    assert results['settings']['runs'] == 3
    assert {'torch', 'mmpretrain', 'mmpsvit'} <= set(results['versions'])
    table = (tmp_path / 'results' / 'speed.md').read_text()
    assert table in output
    assert 'batch 2, BatchNorms folded, medians of 3' in table
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
    assert first['ratios'] == {str(config): 1}
    # The gradients of 11.7 M parameters take 4 bytes each.
    assert second['peak_bytes'] > 46e6
    table = (tmp_path / 'train.md').read_text()
    assert 'Speed of training steps: batch 2, autocast, channels_last' in table


def test_no_dropout(benchmark_speed, root, monkeypatch):
    """Then two steps in training mode give the same, unlike before."""
    monkeypatch.setattr('sys.argv', ['benchmark_speed.py', '--device', 'cpu'])
    _, parser = benchmark_speed.parse_args()
    images = torch.rand(2, 3, 64, 64)
    # The configs of B have both kinds of dropout; the plain one is rewritten here.
    for name in ('b10', 'plain-b10'):
        candidate = benchmark_speed.build_candidate(parser, name)
        candidate.model.train()
        with torch.no_grad():
            outs = [candidate.forward(images) for _ in range(2)]
            assert not torch.equal(*outs)
            benchmark_speed.turn_off_dropout(candidate.model)
            outs = [candidate.forward(images) for _ in range(2)]
        assert torch.equal(*outs)


def test_layout_and_folding_of_all_but_the_plain_networks(benchmark_speed, monkeypatch):
    options = '--device cpu --batch-size 1 --shape 64 --channels-last --fuse'
    monkeypatch.setattr('sys.argv', ['benchmark_speed.py', *options.split()])
    args, parser = benchmark_speed.parse_args()
    left = {}
    for name in ('ti14', 'resnet18', 'plain-ti14'):
        candidate = benchmark_speed.build_candidate(parser, name)
        benchmark_speed.prepare(candidate, args)
        modules = list(candidate.model.modules())
        left[name] = sum(isinstance(m, torch.nn.BatchNorm2d) for m in modules)
        conv = next(m for m in modules if isinstance(m, torch.nn.Conv2d))
        last = conv.weight.is_contiguous(memory_format=torch.channels_last)
        assert last == (name != 'plain-ti14')
    # The plain stem: one norm, three in each of two blocks, one of a projection.
    assert left == {'ti14': 0, 'resnet18': 0, 'plain-ti14': 1 + 2 * 3 + 1}


def test_wrong_folding_is_noticed(benchmark_speed):
    class Wrong(torch.nn.Module):
        """Its norm follows the convolution by name and not by what it does."""

        def __init__(self):
            super().__init__()
            self.conv = torch.nn.Conv2d(3, 3, 1)
            self.norm = torch.nn.BatchNorm2d(3)

        def forward(self, x):
            return self.conv(self.norm(x).relu())

    model = Wrong()
    candidate = benchmark_speed.Candidate('wrong', model, model, (8, 8))
    with pytest.raises(SystemExit, match='BatchNorms of wrong changes its logits'):
        benchmark_speed.fuse(candidate)


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['nonsense'], "argument models: 'nonsense' is no config file, no name of"),
        (['nowhere.py'], 'argument config: nowhere.py does not exist'),
        (['torchvision:raft'], 'argument models: torchvision has no classifier'),
        (['plain-b10_shared'], "'plain-b10_shared': the plain network cannot have"),
        (['resnet18', '--runs', '0'], 'argument --runs: must be at least 1, got 0'),
        (['resnet18', '--shape', '0'], 'argument --shape: must be at least 1, got 0'),
        (['resnet18', '--baseline', 'x'], "--baseline: 'x' is none of the models"),
        (['resnet18', '--device', 'x'], "argument --device: 'x' is no device"),
        (['--train', '--fuse'], 'argument --fuse: only for inference'),
    ],
)
def test_mistakes(arguments, message, benchmark_error, root, monkeypatch):
    monkeypatch.chdir(root)
    assert message in benchmark_error('benchmark_speed', *arguments)
