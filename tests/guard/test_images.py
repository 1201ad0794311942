# Copyright (c) mmpsvit contributors.
"""Image files of every odd kind: a documented treatment, or an error with the name."""

import io
from pathlib import Path

import cv2
import numpy as np
import pytest
from mmcv.transforms import LoadImageFromFile as MMCVLoader
from mmengine.config import Config
from mmengine.dataset import BaseDataset, Compose
from mmengine.registry import DefaultScope
from PIL import Image
from torch.utils.data import DataLoader

from mmpsvit.guard import DataError, LoadImageFromFile


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


@pytest.mark.parametrize(
    'options',
    [
        dict(to_float32=True),
        dict(color_type='grayscale'),
        dict(color_type='unchanged'),
        dict(color_type='unchanged', imdecode_backend='pillow', to_float32=True),
    ],
    ids=str,
)
def test_options_are_those_of_mmcv(options, tmp_path):
    path = tmp_path / 'rgba.png'
    path.write_bytes(GOOD['rgba.png'][0])
    ours, right = load(path, **options), MMCVLoader(**options)(dict(img_path=str(path)))
    assert ours['img'].dtype == right['img'].dtype
    np.testing.assert_array_equal(ours.pop('img'), right.pop('img'))
    assert ours == right


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
def test_errors_name_the_file(name, backend, tmp_path):
    path = tmp_path / name
    path.write_bytes(BAD[name])
    # Even the option for skipping such files skips none.
    for ignore_empty in (False, True):
        with pytest.raises(DataError) as caught:
            load(path, imdecode_backend=backend, ignore_empty=ignore_empty)
        text = str(caught.value)
        assert text.startswith(f'image {path} cannot be read (')
        assert '\n' not in text


def test_missing_file(tmp_path):
    with pytest.raises(DataError, match=r'image .*none\.jpg cannot be read \(FileNotF'):
        load(tmp_path / 'none.jpg', ignore_empty=True)
    # The first line of a list that an editor of Windows has saved.
    with pytest.raises(DataError, match='begins with a byte-order mark'):
        load(Path('\ufeffa.jpg'))


class Files(BaseDataset):
    def load_data_list(self) -> list[dict]:
        return [dict(img_path=self.ann_file)]


@pytest.mark.parametrize('num_workers', [0, 1])
def test_error_of_a_data_worker_is_one_line(num_workers, tmp_path):
    path = tmp_path / 'DataError: odd  name.jpg'
    path.write_bytes(b'')
    dataset = Files(ann_file=str(path), pipeline=[LoadImageFromFile(ignore_empty=True)])
    with pytest.raises(DataError) as caught:
        next(iter(DataLoader(dataset, num_workers=num_workers)))
    text = str(caught.value)
    assert text.startswith(f'image {path} cannot be read (') and '\n' not in text
