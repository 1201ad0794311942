# Copyright (c) mmpsvit contributors.
"""points_curve.py: one checkpoint at several numbers of points."""

import argparse
import re
from types import SimpleNamespace

import pytest
from mmengine.registry import MODELS, init_default_scope
from scripts import error_of

TOOL = 'tools/analysis_tools/points_curve.py'


@pytest.fixture
def tool(import_tool):
    """The tool as a module."""
    return import_tool('analysis_tools/points_curve.py')


def test_table_and_picture(trained, small, run_here, run_tool, tmp_path):
    config, options, _ = small
    output = run_tool(
        TOOL, config, trained, '--num-points', 8, 4, '--out', 'curve', '--runs', 2,
        '--batch-size', 2, '--work-dir', 'curves', *options,
    )  # fmt: skip
    table = (tmp_path / 'curve.md').read_text()
    assert table in output
    header, _, *rows = (line.strip('| ').split(' | ') for line in table.splitlines())
    assert header == ['num_points', 'accuracy/top1', 'GMACs', 'images/s']
    four, eight = (dict(zip(header, row, strict=True)) for row in rows)
    assert (four['num_points'], eight['num_points']) == ('4', '8')
    assert float(eight['GMACs']) > 1.5 * float(four['GMACs'])
    # As tools/test.py has it at one of them.
    output = run_here(
        'tools/test.py', config, trained, '--work-dir', 'test', *options,
        'model.backbone.sampler.num_points=8',
    )  # fmt: skip
    (accuracy,) = re.findall(r'accuracy/top1: ([\d.]+)', output)
    assert float(eight['accuracy/top1']) == pytest.approx(float(accuracy), abs=0.01)
    assert (tmp_path / 'curve.png').read_bytes().startswith(b'\x89PNG')


@pytest.mark.parametrize(
    'lines',
    [
        'from mmpsvit import PSViT\nmodel = dict(backbone=dict(type=PSViT))\n',
        "model = dict(_scope_='mmpsvit', backbone=dict(type='PSViT'))\n",
    ],
    ids=['class', 'own scope'],
)
def test_names_of_the_backbone(tool, lines, tmp_path, monkeypatch):
    config, checkpoint = tmp_path / 'config.py', tmp_path / 'x.pth'
    config.write_text(f'{lines}test_dataloader = dict()\n')
    checkpoint.touch()
    command = ['points_curve.py', config, checkpoint, '--num-points', 4]
    monkeypatch.setattr('sys.argv', [*map(str, command)])
    _, cfg = tool.parse_args()
    assert cfg.model.backbone.sampler == {}


def test_speeds_of_a_grey_network(tool):
    arch = dict(embed_dims=24, num_layers=3, num_heads=3, feedforward_channels=48)
    sampler = dict(num_points=3, num_iters=2)
    backbone = dict(type='mmpsvit.PSViT', arch=arch, sampler=sampler, in_channels=1)
    init_default_scope('mmpretrain')
    model = MODELS.build(dict(type='ImageClassifier', backbone=backbone))
    args = argparse.Namespace(batch_size=1, amp=False, runs=1)
    speeds = tool.speeds(SimpleNamespace(model=model), [2, 3], (32, 32), args)
    assert len(speeds) == 2 and min(speeds) > 0


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['--num-points', 0], 'argument --num-points: at least 1, got 0'),
        (
            ['--num-points', 4, '--cfg-options', 'model.backbone.type=ResNet'],
            'is no PSViT',
        ),
    ],
)
def test_mistakes(arguments, message, root, tmp_path):
    checkpoint = tmp_path / 'x.pth'
    checkpoint.touch()
    config = root / 'configs/cluttered_digits/psvit.py'
    assert message in error_of(TOOL, config, checkpoint, *arguments)
