# Copyright (c) mmpsvit contributors.
"""tools/dataset_converters/make_cluttered_digits.py --coco."""

import json

import numpy as np
import pytest
from cluttered_digits import (
    decode,
    make,
    read_coco,
    read_image,
    read_tree,
    refused,
)
from PIL import Image

pytest.importorskip('sklearn')


@pytest.fixture(scope='module')
def coco_dataset(tmp_path_factory):
    """A finished data set in COCO's format that the tests leave as it is."""
    return make(tmp_path_factory.mktemp('digits') / 'coco', '--coco')


def test_coco_layout(coco_dataset):
    settings = json.loads((coco_dataset / 'settings.json').read_text())
    assert settings['coco'] is True
    assert settings['max_digits'] == 3
    names = {'settings.json'}
    for split, count in (('train', 30), ('val', 20)):
        record, by_image = read_coco(coco_dataset, split)
        assert record['settings'] == settings
        assert isinstance(record['info'], dict)
        assert record['licenses'] == []
        assert [(c['id'], c['name']) for c in record['categories']] == [
            (label + 1, str(label)) for label in range(10)
        ]
        files = [f'{index:06d}.png' for index in range(count)]
        assert record['images'] == [
            {'id': index, 'file_name': file, 'width': 64, 'height': 64}
            for index, file in enumerate(files)
        ]
        ids = [annotation['id'] for annotation in record['annotations']]
        assert ids == list(range(1, len(ids) + 1))
        assert {len(annotations) for annotations in by_image.values()} == {1, 2, 3}
        names |= {f'annotations/{split}.json', *(f'{split}/{file}' for file in files)}
        for file in files:
            image = Image.open(coco_dataset / split / file)
            assert (image.mode, image.size) == ('RGB', (64, 64))
    assert set(read_tree(coco_dataset)) == names


def test_coco_boxes_and_masks_are_tight(tmp_path):
    out = make(tmp_path / 'out', '--coco', '--noise', '0', '--num-clutter', '0')
    for split in ('train', 'val'):
        record, by_image = read_coco(out, split)
        for entry in record['images']:
            image = read_image(out, split, entry)
            # Without clutter and noise, most pixels are the background.
            background = np.median(image, axis=(0, 1))
            difference = np.abs(image - background).max(axis=2)
            owner = np.zeros((64, 64), int)
            for annotation in by_image[entry['id']]:
                x, y, w, h = annotation['bbox']
                assert 0 <= x < x + w <= 64
                assert 0 <= y < y + h <= 64
                assert annotation['iscrowd'] == 0
                assert annotation['category_id'] in range(1, 11)
                inside = difference[y : y + h, x : x + w] > 0
                for axis in (0, 1):
                    assert inside.any(axis=axis)[[0, -1]].all()
                owner[y : y + h, x : x + w] += 1

                mask = decode(annotation['segmentation'])
                assert annotation['area'] == mask.sum() > 50
                rows, columns = np.nonzero(mask)
                assert [columns.min(), rows.min()] == [x, y]
                assert [columns.max() + 1, rows.max() + 1] == [x + w, y + h]
                assert (difference[mask] > 0).all()
                # What is left out of the mask is too faint to be seen.
                rest = difference[y : y + h, x : x + w][~mask[y : y + h, x : x + w]]
                assert rest.max(initial=0) < difference[mask].max() / 4
            assert owner.max() == 1  # no overlap
            assert not difference[owner == 0].any()


def test_coco_labels_are_those_drawn(import_tool, coco_dataset):
    """Drawn again: the same pixels, and of each digit the same class and box."""
    tool = import_tool('dataset_converters/make_cluttered_digits.py')
    settings = json.loads((coco_dataset / 'settings.json').read_text())
    settings, sources = tool.CocoSettings(**settings), tool.load_sources('val')
    record, by_image = read_coco(coco_dataset, 'val')
    for entry in record['images']:
        rng = np.random.default_rng([0, 1, entry['id']])
        labels = tool.choose_labels(entry['id'], settings, rng)
        image, digits = tool.draw_scene(labels, sources, settings, rng)
        assert (image == read_image(coco_dataset, 'val', entry)).all()
        annotations = by_image[entry['id']]
        assert len(annotations) == len(digits)
        for annotation, digit in zip(annotations, digits, strict=True):
            assert annotation['category_id'] - 1 == sources.labels[digit.source]
            x1, y1, x2, y2 = digit.box
            assert annotation['bbox'] == [x1, y1, x2 - x1, y2 - y1]


def test_coco_clutter_is_not_annotated(tmp_path):
    plain = make(tmp_path / 'plain', '--coco', '--noise', '0', '--num-clutter', '0')
    full = make(tmp_path / 'full', '--coco', '--noise', '0', '--num-clutter', '30')
    record, by_image = read_coco(plain)
    assert read_coco(full)[1] == by_image
    changed_images = 0
    for entry in record['images']:
        changed = read_image(plain, 'train', entry) != read_image(full, 'train', entry)
        changed = changed.any(axis=2)
        changed_images += changed.any()
        for annotation in by_image[entry['id']]:
            x, y, w, h = annotation['bbox']
            around = changed[max(y - 2, 0) : y + h + 2, max(x - 2, 0) : x + w + 2]
            assert not around.any()
    assert changed_images == len(record['images'])


@pytest.mark.parametrize(
    ('args', 'message'),
    [
        ((), 'coco was True, now unset'),
        (('--coco', '--max-digits', '2'), 'max_digits was 3, now 2'),
    ],
)
def test_other_settings_than_coco_ones_are_refused(coco_dataset, args, message):
    before = read_tree(coco_dataset)
    assert message in refused(coco_dataset, *args)
    assert read_tree(coco_dataset) == before


@pytest.mark.parametrize('limit', [1, 50])
def test_number_of_digits(tmp_path, limit):
    """With more than there is room for, some are left out, but never all."""
    out = make(tmp_path / 'out', '--coco', '--max-digits', str(limit))
    _, by_image = read_coco(out)
    counts = [len(annotations) for annotations in by_image.values()]
    assert min(counts) >= 1
    assert max(counts) == 1 if limit == 1 else 3 <= max(counts) < 16


@pytest.mark.parametrize('split', ['train', 'val'])
def test_mmdet_loads_the_split(coco_dataset, split):
    datasets = pytest.importorskip('mmdet.datasets')
    loaded = datasets.CocoDataset(
        data_root=str(coco_dataset),
        ann_file=f'annotations/{split}.json',
        data_prefix=dict(img=f'{split}/'),
        metainfo=dict(classes=tuple('0123456789')),
        filter_cfg=dict(filter_empty_gt=True, min_size=32),
        pipeline=[
            dict(type='mmdet.LoadImageFromFile'),
            dict(type='mmdet.LoadAnnotations', with_bbox=True, with_mask=True),
        ],
    )
    record, by_image = read_coco(coco_dataset, split)
    assert len(loaded) == len(record['images'])
    for entry, item in zip(record['images'], loaded, strict=True):
        annotations = by_image[entry['id']]
        # MMDetection reads images as BGR.
        image = read_image(coco_dataset, split, entry)
        assert (item['img'][..., ::-1] == image).all()
        labels = [annotation['category_id'] - 1 for annotation in annotations]
        assert item['gt_bboxes_labels'].tolist() == labels
        assert not item['gt_ignore_flags'].any()
        for annotation, box, mask in zip(
            annotations, item['gt_bboxes'].numpy(), item['gt_masks'].masks, strict=True
        ):
            x, y, w, h = annotation['bbox']
            assert box.tolist() == [x, y, x + w, y + h]
            assert (mask == decode(annotation['segmentation'])).all()
