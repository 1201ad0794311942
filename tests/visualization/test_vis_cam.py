# Copyright (c) mmpsvit contributors.
"""The tool that draws what a decision rests on."""

import re
import sys

import numpy as np
import pytest
from PIL import Image
from scripts import error_of
from small_network import save, small_config

TOOL = 'tools/visualization/vis_cam.py'


@pytest.fixture
def image(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 255, (60, 72, 3), dtype=np.uint8)
    path = tmp_path / 'images' / 'image.png'
    path.parent.mkdir()
    Image.fromarray(pixels).save(path)
    return path


def test_places_side_by_side(draw, image):
    """Left what `--at points` draws, right what `--at grid` does."""

    def picture(*args) -> np.ndarray:
        command = (small_config(), image, '--method', 'attention', *args)
        output, pixels = draw('vis_cam', *command)
        assert '1 images drawn' in output
        return pixels

    both, points, grid = picture('--at', 'both'), picture(), picture('--at', 'grid')
    assert points.shape == grid.shape and (points != grid).mean() > 0.05
    below = 50  # the titles
    width = points.shape[1] - 20
    left, right = both[below:, :width], both[below:, -width:]
    assert (np.abs(left - points[below:, :width]) > 60).mean() < 0.02
    assert (np.abs(right - grid[below:, -width:]) > 60).mean() < 0.02


def test_methods(draw, image, monkeypatch):
    """Grad-CAM unless told otherwise; without its package, how to get it."""
    command = ('vis_cam', small_config(), image)
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, 'pytorch_grad_cam', None)
        output, _ = draw(*command, code=1)
    assert output == (
        'vis_cam.py: error: Grad-CAM needs the package grad-cam: pip install grad-cam\n'
    )
    pytest.importorskip('pytorch_grad_cam', reason='needs grad-cam')
    _, gradcam = draw(*command)
    _, attention = draw(*command, '--method', 'attention')
    assert (gradcam != attention).mean() > 0.05


def test_as_a_command(run_tool, tmp_path, image):
    config, checkpoint = save(small_config(), tmp_path)
    arguments = (config, checkpoint, image.parent, '--method', 'attention')
    assert '1 images drawn' in run_tool(TOOL, *arguments, '--out', 'new/cam.pdf')
    assert (tmp_path / 'new' / 'cam.pdf').stat().st_size > 1000
    line = error_of(TOOL, *arguments, '--out', 'x.png', '--at', 'home')
    assert "argument --at: invalid choice: 'home'" in line


def test_other_networks(draw, image):
    neck = {
        'model.backbone': dict(type='ResNet', depth=18),
        'model.neck': dict(
            type='mmpsvit.ProgressiveSampling',
            in_channels=512,
            embed_dims=24,
            num_heads=3,
            feedforward_channels=48,
            num_points=2,
            feat_stride=32,
        ),
        'model.head': dict(
            type='mmpsvit.PSViTClsHead', num_classes=3, in_channels=24, pool='mean'
        ),
    }
    command = (small_config(**neck), image, '--method', 'attention')
    output, _ = draw('vis_cam', *command, code=1)
    assert re.search(r'PSViT as its backbone .*, got ResNet', output)
