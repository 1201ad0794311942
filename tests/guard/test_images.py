# Copyright (c) mmpsvit contributors.
"""Image files of every odd kind: a documented treatment, or an error."""

import io
from pathlib import Path

import cv2
import numpy as np
import pytest
from mmcv.transforms import LoadImageFromFile
from mmengine.config import Config
from mmengine.dataset import Compose
from mmengine.registry import DefaultScope
from PIL import Image


def smooth(width: int = 40, height: int = 30) -> np.ndarray:
    """An RGB image that JPEG changes little."""
    x, y = np.meshgrid(np.linspace(0, 200, width), np.linspace(0, 200, height))
    return np.stack([x, y, 255 - x], axis=-1).astype(np.uint8)


IMAGE = Image.fromarray(smooth())


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def load(path: Path, **options) -> dict:
    return LoadImageFromFile(**options)(dict(img_path=str(path)))


def turned() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: a quarter turn
    return exif


GREY = np.asarray(IMAGE.convert('L'))
CLEAR = IMAGE.convert('RGBA')
CLEAR.putalpha(0)
GOOD = {
    'grey.png': (encoded(IMAGE.convert('L'), 'PNG'), GREY, 0),
    'grey.jpg': (encoded(IMAGE.convert('L'), 'JPEG', quality=100), GREY, 3),
    'grey_16_bit.png': (
        encoded(Image.fromarray(GREY * np.uint16(257)), 'PNG'),
        GREY,
        0,
    ),
    'rgb_16_bit.png': (
        cv2.imencode('.png', smooth()[..., ::-1] * np.uint16(257))[1].tobytes(),
        smooth(),
        0,
    ),
    'rgba.png': (encoded(CLEAR, 'PNG'), smooth(), 0),
    'cmyk.jpg': (encoded(IMAGE.convert('CMYK'), 'JPEG', quality=100), smooth(), 6),
    'png_inside.jpg': (encoded(IMAGE, 'PNG'), smooth(), 0),
    'trailing_bytes.jpg': (
        encoded(IMAGE, 'JPEG', quality=100, subsampling=0) + bytes(999),
        smooth(),
        6,
    ),
    '1x1.png': (encoded(IMAGE.crop((0, 0, 1, 1)), 'PNG'), smooth()[:1, :1], 0),
    '10000x10.png': (
        encoded(Image.fromarray(smooth(10000, 10)), 'PNG'),
        smooth(10000, 10),
        0,
    ),
    'turned.jpg': (
        encoded(IMAGE, 'JPEG', quality=100, subsampling=0, exif=turned()),
        np.rot90(smooth(), -1),
        6,
    ),
    'turned.png': (
        encoded(IMAGE, 'PNG', exif=turned()),
        np.rot90(smooth(), -1),
        0,
    ),
}


@pytest.mark.parametrize('name', GOOD)
def test_treatment_of_odd_files(name, tmp_path):
    content, expected, tolerance = GOOD[name]
    (tmp_path / name).write_bytes(content)
    results = load(tmp_path / name)
    if expected.ndim == 2:
        expected = np.repeat(expected[..., None], 3, axis=-1)
    assert results['img'].dtype == np.uint8
    assert results['img'].shape == expected.shape
    assert results['img_shape'] == results['ori_shape'] == expected.shape[:2]
    difference = np.abs(results['img'][..., ::-1].astype(int) - expected)
    assert difference.max() <= tolerance


@pytest.mark.parametrize('name', GOOD)
def test_imagenet_pipelines_take_odd_files(name, tmp_path, root):
    path = root / 'configs' / '_base_' / 'datasets' / 'imagenet_bs64_psvit_224.py'
    cfg = Config.fromfile(path)
    (tmp_path / name).write_bytes(GOOD[name][0])
    np.random.seed(0)
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        for split in ('train', 'val'):
            dataset = cfg[f'{split}_dataloader'].dataset
            pipeline = Compose(dataset.pipeline)
            for _ in range(1 if name == '10000x10.png' else 3):
                sample = dict(img_path=str(tmp_path / name), gt_label=0)
                assert pipeline(sample)['inputs'].shape == (3, 224, 224)


JPEG = encoded(IMAGE, 'JPEG')
BAD = {
    'empty.jpg': b'',
    'text.png': b'this is no image',
    'half.jpg': JPEG[: len(JPEG) * 2 // 3],
    'header.jpg': JPEG[:100],
    'start.jpg': JPEG[:3],
    'half.png': encoded(IMAGE, 'PNG')[:100],
    'half.bmp': encoded(IMAGE, 'BMP')[:100],
    'half.ppm': encoded(IMAGE, 'PPM')[:100],
    'half.tif': encoded(IMAGE, 'TIFF')[:100],
}


@pytest.mark.parametrize('backend', ['cv2', 'pillow'])
@pytest.mark.parametrize('name', BAD)
def test_damaged_files_are_errors(name, backend, tmp_path):
    path = tmp_path / name
    path.write_bytes(BAD[name])
    with pytest.raises((AssertionError, OSError, cv2.error)):
        load(path, imdecode_backend=backend)
