# Copyright (c) mmpsvit contributors.
"""The tool that draws what a decision rests on."""

import re
import runpy
import sys

import numpy as np
import pytest
from PIL import Image
from small_network import save, small_config

TOOL = 'tools/visualization/vis_cam.py'


@pytest.fixture
def image(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 255, (60, 72, 3), dtype=np.uint8)
    path = tmp_path / 'images' / 'image.png'
    path.parent.mkdir()
    Image.fromarray(pixels).save(path)
    return path


@pytest.fixture
def draw(root, tmp_path, monkeypatch, image):
    """Draw with the tool in this process; the picture's pixels."""
    monkeypatch.syspath_prepend(str((root / TOOL).parent))

    def run(*args, **changes) -> np.ndarray:
        config, checkpoint = save(small_config(**changes), tmp_path, classes=['cat'])
        out = tmp_path / 'cam.png'
        command = ['vis_cam.py', config, checkpoint, str(image), '--out', str(out)]
        monkeypatch.setattr('sys.argv', [*command, *args])
        runpy.run_path(str(root / TOOL), run_name='__main__')
        assert [path.name for path in tmp_path.glob('.*')] == []
        return np.asarray(Image.open(out).convert('RGB')).astype(int)

    return run


def test_places_side_by_side(draw, capsys):
    """Left what `--at points` draws, right what `--at grid` does."""
    attention = ('--method', 'attention')
    both = draw(*attention, '--at', 'both')
    assert '1 images drawn' in capsys.readouterr().out
    points, grid = draw(*attention), draw(*attention, '--at', 'grid')
    assert points.shape == grid.shape and (points != grid).mean() > 0.05
    below = 50  # the titles
    width = points.shape[1] - 20
    left, right = both[below:, :width], both[below:, -width:]
    assert (np.abs(left - points[below:, :width]) > 60).mean() < 0.02
    assert (np.abs(right - grid[below:, -width:]) > 60).mean() < 0.02


def test_methods(draw, monkeypatch):
    """Grad-CAM unless told otherwise; without its package, how to get it."""
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, 'pytorch_grad_cam', None)
        with pytest.raises(SystemExit) as stopped:
            draw()
    assert stopped.value.code == (
        'vis_cam.py: error: Grad-CAM needs the package grad-cam: pip install grad-cam'
    )
    pytest.importorskip('pytorch_grad_cam', reason='needs grad-cam')
    assert (draw() != draw('--method', 'attention')).mean() > 0.05


def test_as_a_command(run_tool, tmp_path, image):
    config, checkpoint = save(small_config(), tmp_path)
    arguments = (TOOL, config, checkpoint, image.parent, '--method', 'attention')
    assert '1 images drawn' in run_tool(*arguments, '--out', 'new/cam.pdf')
    assert (tmp_path / 'new' / 'cam.pdf').stat().st_size > 1000
    output = run_tool(*arguments, '--out', 'x.png', '--at', 'home', code=2)
    assert re.search("argument --at: invalid choice: 'home'", output)


def test_other_networks(draw):
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
    with pytest.raises(SystemExit, match=r'PSViT as its backbone .*, got ResNet'):
        draw('--method', 'attention', **neck)
