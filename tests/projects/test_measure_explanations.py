# Copyright (c) mmpsvit contributors.
"""projects/miniature/measure_explanations.py: how much of the heat is on the digit."""

import importlib
import re
import sys
from pathlib import Path
from unittest import mock

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope

pytest.importorskip('sklearn')

ROOT = Path(__file__).parents[2]
TOOL = 'projects/miniature/measure_explanations.py'
CONFIG = ROOT / 'projects' / 'miniature' / 'configs' / 'psvit.py'
with mock.patch.object(sys, 'path', [str((ROOT / TOOL).parent), *sys.path]):
    tool = importlib.import_module('measure_explanations')


def test_scores_of_a_box():
    heat = torch.tensor([[1.0, 2, 3, 4], [0, 0, 0, 0]])
    # On the upper left corner, inside, on the lower right corner, outside
    points = torch.tensor([[[2, 1], [3.9, 2.9], [4, 3], [9, 9]]] * 2)
    boxes = torch.tensor([[2, 1, 4, 3]] * 2)
    maps = torch.zeros(2, 5, 6)
    maps[0, 2, 3], maps[0, 1, 2], maps[0, 3, 3] = 5, 1, 2
    scores = tool.scores_in_box(heat, points, maps, boxes)
    torch.testing.assert_close(scores, torch.tensor([[0.3, 6 / 8, 1], [0, 0, 0]]))
    maps[0, 3, 4] = 5  # as hot, but outside
    assert tool.scores_in_box(heat, points, maps, boxes)[0, 2] == 0.5


def test_table(run_tool, run_here, tmp_path):
    """Of two checkpoints, one of which moves the points, the other does not."""
    pytest.importorskip('pytorch_grad_cam', reason='needs grad-cam')
    run_here(
        'tools/dataset_converters/make_cluttered_digits.py', 'data/miniature/64',
        '--size', 64, '--num-train', 1, '--num-val', 20,
    )  # fmt: skip
    init_default_scope('mmpretrain')
    torch.manual_seed(0)
    model = MODELS.build(Config.fromfile(CONFIG).model)
    model.init_weights()
    torch.save(dict(state_dict=model.state_dict()), tmp_path / 'still.pth')
    for layer in model.backbone.sampler.offset_layers:
        torch.nn.init.normal_(layer.weight, std=0.3)
    torch.save(dict(state_dict=model.state_dict()), tmp_path / 'moves.pth')

    def run(*checkpoints) -> list[list[str]]:
        output = run_tool(TOOL, CONFIG, *checkpoints)
        rows = re.findall(r'^\| (.*) \|$', output, re.M)
        return [row.split(' | ') for row in rows]

    still, both = run('still.pth'), run('still.pth', 'moves.pth')
    assert both[0] == ['heat', 'in the box', 'grid', '2', '3', '4', 'last - grid']
    kinds = ('Grad-CAM', 'attention of the class token', 'all tokens alike')
    scores = ('tokens', 'map', 'hottest')
    names = [row[:2] for row in both[2:-1]]
    assert names == [[kind, score] for kind in kinds for score in scores]
    for row, alone in zip(both[2:-1], still[2:-1], strict=True):
        grid, *_, last, difference = (float(cell.split(' ± ')[0]) for cell in row[2:])
        assert difference == pytest.approx(last - grid, abs=0.11)
        assert alone[2:6] == [alone[2]] * 4 and alone[6] == '0.0'
    # Where all tokens are alike and have not moved, all pixels are alike too.
    (_, _, *alike), (*_, uniform) = still[-3], still[-1][:3]
    assert float(alike[0]) == pytest.approx(float(uniform), abs=1)
    assert both[-3][2] == f'{alike[0]} ± 0.0' != both[-3][5]
