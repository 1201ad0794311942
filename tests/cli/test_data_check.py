# Copyright (c) mmpsvit contributors.
"""What is wrong with a data set is told before training, and files stop it by name."""

import logging
import os
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import psutil
import pytest
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.runner import Runner
from PIL import Image
from torch.utils.data import DataLoader

from mmpsvit.cli.data_check import DataError, check_data_of
from mmpsvit.guard.images import CheckedPipeline

CLASSES = ['circle', 'square', 'star']


@pytest.fixture
def folder(image_folder) -> Path:
    """Two images of each class in each split."""
    return image_folder('images', CLASSES, per_class=2)


@pytest.fixture
def build():
    """Build the loaders of data sets of a classifier, as a checked runner does."""

    def make(
        *datasets: dict, num_classes: int = 3, model: dict | None = None, **loader
    ) -> list[DataLoader]:
        runner = SimpleNamespace(build_dataloader=Runner.build_dataloader)
        cfg = Config(dict(model=model or dict(head=dict(num_classes=num_classes))))
        check_data_of(runner, cfg)
        loader = dict(
            batch_size=2, sampler=dict(type='DefaultSampler', shuffle=False), **loader
        )
        return [
            runner.build_dataloader(dict(loader, dataset=dataset))
            for dataset in datasets
        ]

    return make


def custom(folder: Path, **options) -> dict:
    pipeline = [dict(type='LoadImageFromFile'), dict(type='PackInputs')]
    return dict(
        _scope_='mmpretrain',
        type='CustomDataset',
        data_root=str(folder),
        pipeline=pipeline,
        **options,
    )


def error_of(build, *args, **kwargs) -> str:
    with pytest.raises(DataError) as caught:
        build(*args, **kwargs)
    text = str(caught.value)
    assert '\n' not in text
    return text


def test_good_data_pass(build, folder):
    (folder / 'labels.txt').write_text('circle/0.png 0\nstar/1.png 2\n')
    lines = custom(folder, data_prefix='train', ann_file='labels.txt', classes=CLASSES)
    folders = [custom(folder, data_prefix=name) for name in ('train', 'val')]
    repeated = dict(_scope_='mmpretrain', type='RepeatDataset', times=2)
    joined = dict(_scope_='mmpretrain', type='ConcatDataset')
    for loader, count in zip(
        build(
            *folders,
            lines,
            dict(repeated, dataset=lines),
            dict(joined, datasets=[lines, lines, folders[0]]),
        ),
        (6, 6, 2, 4, 10),
        strict=True,
    ):
        assert len(loader.dataset) == count
        assert sum(len(batch['inputs']) for batch in loader) == count


def test_wrong_numbers_of_classes(build, folder):
    train = custom(folder, data_prefix='train')
    message = 'has 3 classes, model.head.num_classes is 5'
    assert message in error_of(build, train, num_classes=5)
    named = dict(train, classes=['a', 'b'])
    text = error_of(build, named, num_classes=2)
    assert "number of subfolders (3) doesn't match" in text
    assert str(folder) in text


@pytest.mark.parametrize(
    ('model', 'name'),
    [
        (dict(bbox_head=dict(num_classes=20)), 'bbox_head'),
        (
            dict(roi_head=dict(bbox_head=[dict(num_classes=20), dict(num_classes=3)])),
            'roi_head.bbox_head',
        ),
        (
            dict(
                roi_head=dict(
                    bbox_head=dict(num_classes=3), mask_head=dict(num_classes=20)
                )
            ),
            'roi_head.mask_head',
        ),
        (dict(decode_head=dict(num_classes=20)), 'decode_head'),
    ],
)
def test_wrong_numbers_in_detectors_and_segmentors(model, name, build, folder):
    train = custom(folder, data_prefix='train')
    text = error_of(build, train, model=model)
    assert f'has 3 classes, model.{name}.num_classes is 20' in text


@pytest.mark.parametrize(
    'model',
    [
        dict(decode_head=dict(num_classes=3), auxiliary_head=[dict(num_classes=2)]),
        dict(decode_head=dict(num_classes=2, out_channels=1)),
        dict(bbox_head=dict(num_classes=256), language_model=dict(type='BertModel')),
        dict(
            roi_head=dict(
                bbox_head=dict(num_classes=3),
                mask_head=dict(num_classes=1, class_agnostic=True),
            )
        ),
        dict(roi_head=[dict(bbox_head=dict(num_classes=20))]),
        dict(head=None),
    ],
)
def test_other_numbers_that_are_right(model, build, folder):
    build(custom(folder, data_prefix='train'), model=model)


def test_things_of_panoptic_data(build, folder):
    things = dict(classes=CLASSES, thing_classes=CLASSES[:2], stuff_classes=CLASSES[2:])
    train = custom(folder, data_prefix='train', metainfo=things)
    build(train, model=dict(roi_head=dict(bbox_head=dict(num_classes=2))))
    with pytest.raises(DataError, match=r'has 2 classes, model\.roi_head'):
        build(train, model=dict(roi_head=dict(bbox_head=dict(num_classes=3))))


def test_class_folders(build, folder, caplog):
    train, val = (custom(folder, data_prefix=name) for name in ('train', 'val'))
    (folder / 'val' / 'star').rename(folder / 'val' / 'moon')
    text = error_of(build, train, val)
    assert text.endswith('moon, star in one of the two only')
    assert f"{val['data_root']!r}, data_prefix='val') has other class folders" in text

    # What has not the extension of an image stays outside, but not in silence.
    shutil.copy(folder / 'train' / 'star' / '0.png', folder / 'train' / 'loose.png')
    (folder / 'train' / 'star' / 'notes.md').write_text('no image')
    (folder / 'train' / 'star' / '1.png').rename(folder / 'train' / 'star' / '1.webp')
    logger = MMLogger.get_current_instance()
    logger.addHandler(caplog.handler)
    (loader,) = build(train)
    logger.removeHandler(caplog.handler)
    assert len(loader.dataset) == 5
    (record,) = [r for r in caplog.records if 'leaves out' in r.message]
    assert record.levelno == logging.WARNING
    names = re.search('an image: (.*) [(]', record.message)[1].split(', ')
    assert sorted(names) == ['loose.png', 'star/1.webp', 'star/notes.md']

    (folder / 'train' / 'star' / '0.png').unlink()
    text = error_of(build, train)
    assert 'has class folders without images: star (extensions: .bmp .jpeg' in text
    for number in range(7):
        (folder / 'train' / f'{number}').mkdir()
    text = error_of(build, train, num_classes=10)
    assert 'without images: 0, 1, 2, 3, 4, ... (8 in all) (ext' in text


@pytest.mark.parametrize(
    ('lines', 'message'),
    [
        ('circle/0.png 0\nstar/0.png 3\n', 'has label 3 for FOLDER/train/star/0.png, '),
        ('circle/0.png -1\n', 'has label -1 for FOLDER/train/circle/0.png, model.head'),
        ('a.png 0\nb.png\n', "labels.txt, line 2: expected <image> <label>, got 'b.p"),
        ('a.png 0\n\nb.png 1\n', "line 2: expected <image> <label>, got '')"),
        ('a.png 0\nb.png 1.5\n', "line 2: expected <image> <label>, got 'b.png 1.5'"),
        ('', 'labels.txt is empty'),
        (None, 'FileNotFoundError: [Errno 2] No such file or directory: '),
        (b'\xff\xfe\x00', 'labels.txt is no text file'),
    ],
)
def test_annotations(lines, message, build, folder):
    file = folder / 'labels.txt'
    if isinstance(lines, bytes):
        file.write_bytes(lines)
    elif lines is not None:
        file.write_text(lines)
    dataset = custom(folder, data_prefix='train', ann_file='labels.txt')
    text = error_of(build, dataset)
    assert message.replace('FOLDER', str(folder)) in text
    assert 'labels.txt' in text


def test_labels_below_other_data_sets(build, folder):
    """Also of several labels per image, in OpenMMLab's own annotation format."""
    (folder / 'labels.json').write_text(
        '{"metainfo": {"classes": ["a", "b", "c"]}, "data_list": '
        '[{"img_path": "0.png", "gt_label": [0, 2]}, '
        '{"img_path": "1.png", "gt_label": [1, 4]}]}'
    )
    dataset = custom(folder, ann_file='labels.json')
    dataset['type'] = 'MultiLabelDataset'
    repeated = dict(_scope_='mmpretrain', type='RepeatDataset', times=2)
    text = error_of(build, dict(repeated, dataset=dataset))
    assert 'has label 4 for ' in text
    assert text.endswith('model.head.num_classes is 3: labels must be 0 to 2')


def test_every_pipeline_is_checked(build, folder):
    train = custom(folder, data_prefix='train')
    (folder / 'train' / 'circle' / '0.png').write_bytes(b'')
    repeated = dict(_scope_='mmpretrain', type='RepeatDataset', times=2, dataset=train)
    joined = dict(_scope_='mmpretrain', type='ConcatDataset', datasets=[train, train])
    (loader,) = build(train)
    assert isinstance(loader.dataset.pipeline, CheckedPipeline)
    loaders = [loader, *build(repeated, joined), *build(train, num_batch_per_epoch=1)]
    for loader in loaders:
        with pytest.raises(DataError, match=r'circle/0\.png is empty'):
            next(iter(loader))
    # An image of the list that is not there.
    (folder / 'labels.txt').write_text('none.png 0\n')
    (loader,) = build(custom(folder, data_prefix='train', ann_file='labels.txt'))
    with pytest.raises(DataError, match=r'image .*none\.png cannot be read'):
        next(iter(loader))


def options_of(folder: Path, **more) -> list[str]:
    """Overrides of a small classifier, for one step on all images."""
    options = {
        'model.head.num_classes': 3,
        'data_preprocessor.num_classes': 3,
        'train_dataloader.batch_size': 3,
        'train_cfg.max_iters': 1,
        'train_cfg.val_interval': 1,
        'default_hooks.logger.interval': 1,
        **more,
    }
    for loader in ('train', 'val', 'test'):
        options[f'{loader}_dataloader.dataset.data_root'] = folder
        options[f'{loader}_dataloader.num_workers'] = 2
    return ['--cfg-options', *(f'{key}={value}' for key, value in options.items())]


def left_processes(folder: Path) -> list[psutil.Process]:
    """The processes that still run in a folder."""
    everybody = psutil.process_iter(['cwd'])
    return [process for process in everybody if process.info['cwd'] == str(folder)]


@pytest.mark.parametrize('processes', [1, 2])
def test_bad_file_stops_training(
    processes, folder, run_tool, root, tmp_path, free_port
):
    """One line with the file's name, no process left; no rank waits for the other."""
    path = folder / 'train' / 'star' / '1.jpg'
    pixels = np.random.default_rng(0).integers(0, 255, (60, 72, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    path.write_bytes(path.read_bytes()[:-500])
    (folder / 'train' / 'star' / '1.png').unlink()
    config = root / 'configs' / 'cluttered_digits' / 'psvit.py'
    more = {'train_cfg.max_iters': 1000, 'train_cfg.val_interval': 1000}
    options = options_of(folder, **more)
    # torchrun, too, ends with code 1 and reports which rank failed.
    script = 'tools/train.py'
    arguments = [config, *options]
    if processes == 2:
        script = 'tools/dist_train.sh'
        arguments = [config, 2, *options]
    output = run_tool(
        script, *arguments, code=1, PORT=free_port, CUDA_VISIBLE_DEVICES=''
    )
    message = f'train.py: error: image {path} is truncated: the JPEG has no end marker'
    lines = output.strip().split('\n')
    assert message in lines
    if processes == 1:
        assert lines[-1] == message
        assert 'Traceback' not in output
    assert left_processes(tmp_path) == []


def test_odd_files_train(folder, run_tool, root):
    """Files of unusual kinds, read by data workers, resized and cropped to one size."""
    image = Image.open(folder / 'train' / 'star' / '0.png')
    image.convert('L').save(folder / 'train' / 'star' / '0.png')
    image.convert('RGBA').save(folder / 'train' / 'star' / '1.png')
    image.convert('CMYK').save(folder / 'train' / 'star' / '2.jpg')
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(folder / 'train' / 'circle' / '0.jpg', exif=exif)
    grey = np.asarray(image.convert('L'))
    Image.fromarray(grey * np.uint16(257)).save(folder / 'train' / 'circle' / '0.png')
    image.crop((0, 0, 1, 1)).save(folder / 'train' / 'circle' / '1.png')
    Image.new('RGB', (10000, 10)).save(folder / 'train' / 'circle' / '2.png')
    shutil.rmtree(folder / 'val')
    shutil.copytree(folder / 'train', folder / 'val')
    config = folder / 'odd.py'
    config.write_text(
        f'_base_ = {str(root / "configs" / "cluttered_digits" / "psvit.py")!r}\n'
        'load, pack = _base_.pipeline\n'
        "_scope = dict(_scope_='mmpretrain')\n"
        "crop = dict(_scope, type='RandomResizedCrop', scale=64, backend='pillow')\n"
        "resize = dict(_scope, type='ResizeEdge', scale=64, backend='pillow')\n"
        "centre = dict(_scope, type='CenterCrop', crop_size=64)\n"
        'train_dataloader = dict(dataset=dict(pipeline=[load, crop, pack]))\n'
        'val_dataloader = dict(dataset=dict(pipeline=[load, resize, centre, pack]))\n'
    )
    count = sum(len(files) for _, _, files in os.walk(folder / 'train'))
    options = options_of(folder, **{'train_dataloader.batch_size': count})
    output = run_tool('tools/train.py', config, *options, CUDA_VISIBLE_DEVICES='')
    assert 'Iter(train) [1/1]' in output
    assert 'accuracy/top1' in output
