# Copyright (c) mmpsvit contributors.
"""The tool that draws where a network looks."""

import io

import numpy as np
import pytest
from mmengine.dataset import BaseDataset
from mmengine.registry import DATASETS
from PIL import Image
from small_network import PIPELINE, save, small_config

from mmpsvit.guard import load_checkpoint
from mmpsvit.visualization import (
    movement_shares,
    sampling_figure,
    without_drift,
)

LOAD, PACK = PIPELINE
RED = (230, 20, 10)
URL = 'https://example.org/weights.pth'


@DATASETS.register_module()
class RedArrays(BaseDataset):
    """Images in memory, in RGB, as CIFAR has them."""

    def load_data_list(self) -> list[dict]:
        image = np.full((32, 32, 3), RED, dtype=np.uint8)
        return [dict(img=image, gt_label=index % 3) for index in range(5)]


def is_red(picture: np.ndarray) -> bool:
    """Whether the picture shows red images, and none in which red and blue swapped."""
    red = (np.abs(picture - RED).sum(-1) < 30).mean()
    blue = (np.abs(picture - RED[::-1]).sum(-1) < 30).mean()
    return red > 0.1 and blue == 0


def test_test_set_of_arrays(draw):
    """Without IMAGES, the images of the test data set; here behind a wrapper."""
    arrays = dict(type='mmengine.RedArrays', pipeline=[PACK])
    wrapped = dict(type='RepeatDataset', times=2, dataset=arrays)
    cfg = small_config(**{'test_dataloader.dataset': wrapped})
    printed, picture = draw('vis_sampling', cfg, '--num-images', 3)
    assert '3 images drawn' in printed and is_red(picture)
    assert 'is common to all points and images' in printed


@pytest.mark.parametrize('centered', [False, True])
def test_drift_is_taken_away(draw, centered):
    """From a network that has one; centred offsets have none."""
    arrays = dict(type='mmengine.RedArrays', pipeline=[PACK])
    changes = {
        'test_dataloader.dataset': arrays,
        'model.backbone.sampler.center_offsets': centered,
    }
    drawn = [
        draw('vis_sampling', small_config(**changes), '--num-images', 1, *options)
        for options in ([], ['--without-drift'])
    ]
    (printed, picture), (again, other) = drawn
    assert np.array_equal(picture, other) == centered
    assert printed == again
    assert ('movement: 0% is common to all points\n' in printed) == centered


def test_files_for_a_network_of_arrays_and_hidden_folders(draw, tmp_path):
    """The folder of a class may be a link, as in subsets of ImageNet."""
    for name in ('a/1.png', 'a/.ipynb_checkpoints/1-checkpoint.png', 'a/._1.png'):
        path = tmp_path / 'all' / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new('RGB', (40, 30), RED).save(path)
    (tmp_path / 'images').mkdir()
    (tmp_path / 'images/a').symlink_to(tmp_path / 'all/a')
    cfg = small_config(**{'test_dataloader.dataset.pipeline': [PACK]})
    printed, picture = draw('vis_sampling', cfg, tmp_path / 'images')
    assert '1 images drawn' in printed and is_red(picture)


def test_four_channels(draw, tmp_path):
    cfg = small_config(
        **{
            'model.backbone.in_channels': 4,
            'test_dataloader.dataset.pipeline': [
                dict(LOAD, color_type='unchanged'),
                PACK,
            ],
        }
    )
    Image.new('RGBA', (40, 30), (*RED, 200)).save(tmp_path / 'image.png')
    _, picture = draw('vis_sampling', cfg, tmp_path / 'image.png')
    assert is_red(picture)


def test_url_of_a_checkpoint_and_no_default_scope(run_here, tmp_path, monkeypatch):
    Image.new('RGB', (40, 30), RED).save(tmp_path / 'image.png')
    config, path = save(small_config(default_scope=None), tmp_path)
    monkeypatch.setattr(
        'mmpsvit.guard.checkpoint.load_from_http',
        lambda url, device: load_checkpoint(path if url == URL else url, device),
    )
    tool = 'tools/visualization/vis_sampling.py'
    printed = run_here(tool, config, URL, 'image.png', '--out', 'x.png')
    assert '1 images drawn' in printed


def test_mistakes(draw, tmp_path):
    def error(*args) -> str:
        output, _ = draw('vis_sampling', small_config(), *args, code=1)
        line = output.removeprefix('vis_sampling.py: error: ')
        assert line != output and line.count('\n') == 1
        return line

    assert 'test data set cannot be read' in error()
    assert f'argument images: no images below {tmp_path}' in error(tmp_path)
    text = tmp_path / 'text.png'
    text.write_text('no image')
    assert 'text.png cannot be read as an image' in error(text)
    other = ('--cfg-options', 'model.head.num_classes=5')
    assert 'does not fit the config' in error(text, *other)


def test_class_names_are_no_formulas():
    panel = (np.zeros((8, 8, 3), np.uint8), np.ones((2, 1, 2)), '$10 (9%), truth: $5')
    sampling_figure([panel]).savefig(io.BytesIO())


def test_movement_shares():
    """A drift, a movement of each place, and one of each image, by their squares."""
    start = np.zeros((2, 4, 2))
    drift, place, image = 3.0, np.array([1, -1, 1, -1.0]), np.array([2.0, -2.0])
    moved = drift + place[None, :, None] + image[:, None, None] * np.ones((2, 4, 2))
    trajectories = list(np.stack([start, start + 9, start + moved], axis=1))
    shares = movement_shares(trajectories)
    assert shares == pytest.approx((9 / 14, 4 / 14))
    # Of one image, 5 is common and place is not.
    assert movement_shares(trajectories[:1]) == pytest.approx((25 / 26, None))
    assert movement_shares([each[[0, 0]] for each in trajectories]) is None
    assert movement_shares([trajectories[0], trajectories[1][:, :3]]) is None


def test_without_drift():
    """What all points share is gone in every iteration, and nothing else."""
    rng = np.random.default_rng(0)
    trajectories = [rng.normal(size=(3, 5, 2)) for _ in range(2)]
    drift = np.array([[0, 0], [3, -2], [40, 1]])[:, None]
    for points in trajectories:
        points[1:] -= points[1:] - points[:1]  # still
        points[1:, 0] += 1
        points[1:, 1] -= 1
    drifting = [points + drift for points in trajectories]
    for found, expected in zip(without_drift(drifting), trajectories, strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-12)
