# Copyright (c) mmpsvit contributors.
"""Image files through the test pipelines of configs, and the colours that come out."""

import numpy as np
import pytest
from mmcv.transforms import LoadImageFromFile
from mmengine.config import Config
from mmpretrain.datasets import CustomDataset, PackInputs
from PIL import Image
from small_network import PIPELINE, small_config

from mmpsvit.visualization import FilePipeline, find_channels
from mmpsvit.visualization.prediction import to_image

LOAD, PACK = PIPELINE
TO_RGB = [dict(type='NumpyToPIL', to_rgb=True), dict(type='PILToNumpy')]
TO_BGR = [dict(type='NumpyToPIL'), dict(type='PILToNumpy', to_bgr=True)]
ONE = dict(type='CustomDataset', data_root='none', pipeline=PIPELINE)


@pytest.fixture
def picture(tmp_path):
    """An image file with other colours in every part; its path and pixels."""

    def write(mode: str, size: tuple[int, int] = (24, 16)):
        rng = np.random.default_rng(0)
        shape = (*size[::-1], len(mode)) if len(mode) > 1 else size[::-1]
        pixels = rng.integers(0, 255, shape, dtype=np.uint8)
        path = tmp_path / 'picture.png'
        Image.fromarray(pixels).save(path)
        return path, pixels

    return write


@pytest.mark.parametrize(
    ('steps', 'mode'),
    [
        ([LOAD], 'RGB'),
        ([dict(LOAD, imdecode_backend='pillow')], 'RGB'),
        ([LOAD, *TO_RGB], 'RGB'),
        ([LOAD, *TO_BGR], 'RGB'),
        ([LOAD, *TO_RGB, *TO_BGR], 'RGB'),
        ([dict(LOAD, to_float32=True)], 'RGB'),
        # A data set of arrays, such as CIFAR or MNIST.
        ([], 'RGB'),
        (TO_BGR, 'RGB'),
        ([], 'L'),
        ([dict(LOAD, color_type='grayscale')], 'L'),
        ([dict(LOAD, color_type='unchanged')], 'RGBA'),
        ([dict(LOAD, color_type='unchanged', imdecode_backend='pillow')], 'RGBA'),
    ],
)
def test_pictures_have_the_colours_of_the_file(steps, mode, picture):
    cfg = small_config(**{'test_dataloader.dataset.pipeline': [*steps, PACK]})
    path, pixels = picture(mode)
    pipeline = FilePipeline(cfg, channels=len(mode))
    image = to_image(pipeline(path)['inputs'], pipeline.channels)
    expected = pixels[..., None] if mode == 'L' else pixels[..., :3]
    np.testing.assert_array_equal(image, np.broadcast_to(expected, image.shape))


def test_colours_behind_padding(picture):
    """Most of what comes out may be padding."""
    steps = [LOAD, dict(type='Pad', size=(900, 900), pad_val=dict(img=114)), PACK]
    cfg = small_config(**{'test_dataloader.dataset.pipeline': steps})
    assert FilePipeline(cfg).channels == [2, 1, 0]


@pytest.mark.parametrize(
    'dataset',
    [
        dict(type='KFoldDataset', fold=0, num_splits=2, dataset=ONE),
        dict(type='ConcatDataset', datasets=[ONE, ONE]),
        dict(type='RepeatDataset', times=2, dataset=dict(type='X', dataset=ONE)),
        # Lazy configs name classes.
        dict(
            type=CustomDataset,
            pipeline=[dict(type=LoadImageFromFile), dict(type=PackInputs)],
        ),
        dict(ONE, pipeline=[dict(LOAD, backend_args=dict(backend='petrel')), PACK]),
        dict(ONE, pipeline=[LOAD, dict(type='LoadAnnotations', with_bbox=True), PACK]),
        dict(
            ONE,
            pipeline=[
                LOAD,
                dict(
                    type='TestTimeAug',
                    transforms=[
                        [dict(type='RandomFlip', prob=p) for p in (1.0, 0.0)],
                        [PACK],
                    ],
                ),
            ],
        ),
    ],
    ids=['kfold', 'concat', 'nested', 'lazy', 'storage', 'annotations', 'tta'],
)
def test_data_sets(dataset, picture):
    path, pixels = picture('RGB')
    pipeline = FilePipeline(small_config(**{'test_dataloader.dataset': dataset}))
    assert pipeline.channels == [2, 1, 0]
    image = to_image(pipeline(path)['inputs'], pipeline.channels)
    np.testing.assert_array_equal(image, pixels)


def test_other_formats_and_no_data():
    def other(results):
        raise OSError('not of this format')

    assert find_channels(other) is None
    with pytest.raises(ValueError, match='no test_dataloader with a pipeline'):
        FilePipeline(Config(dict(test_dataloader=None)))
