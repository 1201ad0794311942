# Copyright (c) mmpsvit contributors.
"""The script that draws the figure of the method."""

import runpy

import numpy as np
from panels import all_panels_have_points
from PIL import Image
from small_network import save, small_config

RED = (230, 20, 10)


def test_figure_shows_the_image_and_its_points(root, tmp_path, monkeypatch):
    changes = {'sampler.num_iters': 4, 'arch.num_layers': 5}
    cfg = small_config(**{f'model.backbone.{k}': v for k, v in changes.items()})
    image, out = tmp_path / 'red.png', tmp_path / 'method.png'
    Image.new('RGB', (32, 32), RED).save(image)
    arguments = [*save(cfg, tmp_path), str(image), '--out', str(out)]
    monkeypatch.setattr('sys.argv', ['method.py', *arguments])
    runpy.run_path(str(root / 'docs' / 'images' / 'method.py'), run_name='__main__')
    picture = np.asarray(Image.open(out).convert('RGB'))
    assert picture.shape == (780, 1680, 3)
    # The image and its four copies fill a sixth of the figure, but for their points.
    red = np.abs(picture.astype(int) - RED).sum(-1) < 30
    assert 0.1 < red.mean() < 0.17
    # Each iteration has a column, of 1.44 inches, and shows its points.
    Image.open(out).crop((312, 0, 1464, 780)).save(tmp_path / 'columns.png')
    assert all_panels_have_points(tmp_path / 'columns.png', 1, 4)
