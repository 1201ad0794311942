# Copyright (c) mmpsvit contributors.
"""Tests of tools/dataset_converters/make_cluttered_digits.py.

The tool runs as a subprocess on small settings, in pytest's temporary folders::

    pytest tests/tools/test_make_cluttered_digits.py
"""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip('sklearn')

TOOL = Path(__file__).parents[2] / 'tools/dataset_converters/make_cluttered_digits.py'
SMALL = ('--size', '64', '--num-train', '30', '--num-val', '20')


def run(out, *args):
    return subprocess.run(
        [sys.executable, TOOL, out, *SMALL, *args], capture_output=True, text=True
    )


def make(out, *args):
    result = run(out, *args)
    assert result.returncode == 0, result.stderr
    assert result.stderr == ''  # no progress bar outside a terminal
    return out


def read_tree(out):
    files = sorted(path for path in out.rglob('*') if path.is_file())
    return {str(path.relative_to(out)): path.read_bytes() for path in files}


def read_boxes(out, split='train'):
    return json.loads((out / split / 'boxes.json').read_text())


def read_image(out, split, entry):
    name = entry.get('file') or entry['file_name']
    return np.asarray(Image.open(out / split / name)).astype(int)


def read_coco(out, split='train'):
    """The annotation file, and the annotations of each image."""
    record = json.loads((out / f'annotations/{split}.json').read_text())
    by_image = {image['id']: [] for image in record['images']}
    for annotation in record['annotations']:
        by_image[annotation['image_id']].append(annotation)
    return record, by_image


def decode(segmentation):
    """The mask of run lengths, column by column."""
    counts = segmentation['counts']
    values = np.arange(len(counts)) % 2 == 1
    return np.repeat(values, counts).reshape(segmentation['size'], order='F')


@pytest.fixture(scope='module')
def tool():
    spec = importlib.util.spec_from_file_location('make_cluttered_digits', TOOL)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope='module')
def dataset(tmp_path_factory):
    """A finished data set that the tests leave as it is."""
    return make(tmp_path_factory.mktemp('digits') / 'dataset')


@pytest.fixture(scope='module')
def coco_dataset(tmp_path_factory):
    """A finished data set in COCO's format that the tests leave as it is."""
    return make(tmp_path_factory.mktemp('digits') / 'coco', '--coco')


def test_layout(dataset):
    settings = json.loads((dataset / 'settings.json').read_text())
    assert settings['size'] == 64
    assert settings['seed'] == 0
    assert settings['version'] == 1
    # Data sets older than --coco have no setting of it.
    assert not {'coco', 'max_digits'} & set(settings)
    names = {'settings.json'}
    for split, count in (('train', 30), ('val', 20)):
        boxes = read_boxes(dataset, split)
        assert boxes['settings'] == settings
        files = [entry['file'] for entry in boxes['images']]
        assert files == [f'{i % 10}/{i:06d}.png' for i in range(count)]
        names |= {f'{split}/boxes.json', *(f'{split}/{file}' for file in files)}
        for entry in boxes['images']:
            assert entry['label'] == int(entry['file'].split('/')[0])
            image = Image.open(dataset / split / entry['file'])
            assert (image.mode, image.size) == ('RGB', (64, 64))
    assert set(read_tree(dataset)) == names


def test_classes_are_balanced(dataset):
    for split, count in (('train', 3), ('val', 2)):
        folders = [dataset / split / str(label) for label in range(10)]
        assert [len(list(folder.iterdir())) for folder in folders] == [count] * 10


def test_same_seed_gives_identical_files(dataset, tmp_path):
    assert read_tree(make(tmp_path / 'again')) == read_tree(dataset)


def test_other_seed_gives_other_images(dataset, tmp_path):
    old, new = read_tree(dataset), read_tree(make(tmp_path / 'new', '--seed', '1'))
    assert old.keys() == new.keys()
    assert all(old[name] != new[name] for name in old)


def test_image_does_not_depend_on_the_number_of_images(dataset, tmp_path):
    more = read_tree(make(tmp_path / 'more', '--num-train', '40', '--num-val', '5'))
    shared = [name for name in read_tree(dataset) if name in more]
    shared = [name for name in shared if name.endswith('.png')]
    assert len(shared) == 35
    assert all(more[name] == (dataset / name).read_bytes() for name in shared)


def test_interrupted_run_is_continued(dataset, tmp_path):
    out = make(tmp_path / 'out')
    kept = out / 'train/4/000014.png'
    time = kept.stat().st_mtime_ns
    for name in ('0/000000.png', '3/000013.png', 'boxes.json'):
        path = out / 'train' / name
        path.with_name(f'.{path.name}.tmp').write_bytes(b'half a file')
        path.unlink()
    (out / 'val/7/000017.png').unlink()
    assert read_tree(make(out)) == read_tree(dataset)
    assert kept.stat().st_mtime_ns == time


def test_run_killed_at_its_start_is_continued(dataset, tmp_path):
    (tmp_path / '.settings.json.tmp').write_text('{"si')
    assert read_tree(make(tmp_path)) == read_tree(dataset)


def test_broken_boxes_are_written_again(dataset, tmp_path):
    out = make(tmp_path / 'out')
    (out / 'val/boxes.json').write_text('{"settings": ')
    assert read_tree(make(out)) == read_tree(dataset)


def test_finished_data_set_is_left_alone(dataset):
    def times():
        return {path: path.stat().st_mtime_ns for path in dataset.rglob('*')}

    before = times()
    result = run(dataset)
    assert result.returncode == 0
    assert len(result.stdout.splitlines()) == 1
    assert 'complete already' in result.stdout
    assert times() == before


@pytest.mark.parametrize(
    ('args', 'message'),
    [
        (('--seed', '1'), 'seed was 0, now 1'),
        (('--noise', '0.5'), 'noise was 0.08, now 0.5'),
        (('--num-train', '31'), 'num_train was 30, now 31'),
        (('--coco',), 'coco was unset, now True'),
    ],
)
def test_other_settings_are_refused(dataset, args, message):
    before = read_tree(dataset)
    result = run(dataset, *args)
    assert result.returncode == 1
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert read_tree(dataset) == before


@pytest.mark.parametrize('name', ['photo.jpg', 'settings.json', '.hidden'])
def test_foreign_folder_is_refused(tmp_path, name):
    (tmp_path / name).write_text('{"size": 64}')
    result = run(tmp_path)
    assert result.returncode == 1
    assert 'not a data set of this tool' in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert read_tree(tmp_path) == {name: b'{"size": 64}'}


def test_file_in_place_of_the_folder_is_refused(tmp_path):
    path = tmp_path / 'out'
    path.write_text('text')
    result = run(path)
    assert result.returncode == 1
    assert len(result.stderr.splitlines()) == 1
    assert path.read_text() == 'text'


@pytest.mark.parametrize(
    ('flag', 'value', 'message'),
    [
        ('--size', '41', 'must be at least 42, got 41'),
        ('--digit-size', '15', 'must be at least 16, got 15'),
        ('--num-train', '0', 'must be at least 1, got 0'),
        ('--num-val', '-1', 'must be at least 1, got -1'),
        ('--num-clutter', '-1', 'must be at least 0, got -1'),
        ('--noise', '1.5', 'must be from 0 to 1, got 1.5'),
        ('--noise', 'nan', 'must be from 0 to 1, got nan'),
        ('--seed', '-1', 'must be at least 0, got -1'),
        ('--max-digits', '0', 'must be at least 1, got 0'),
        ('--max-digits', '2', 'needs --coco'),
        ('--size', 'big', "invalid int value: 'big'"),
    ],
)
def test_bad_argument_is_named(tmp_path, flag, value, message):
    result = run(tmp_path / 'out', flag, value)
    assert result.returncode == 2
    assert f'argument {flag}: {message}' in result.stderr
    assert not (tmp_path / 'out').exists()


def test_smallest_size_has_room_for_every_digit(tmp_path):
    out = make(tmp_path / 'out', '--size', '24', '--digit-size', '16')
    assert len(read_boxes(out)['images']) == 30


def test_splits_share_no_source_digit(tool):
    from sklearn.datasets import load_digits

    labels = load_digits().target
    splits = tool.split_indices(labels)
    assert not set(splits['train']) & set(splits['val'])
    assert sorted([*splits['train'], *splits['val']]) == list(range(len(labels)))
    for indices in splits.values():
        shares = np.bincount(labels[indices]) / np.bincount(labels)
        assert len(shares) == 10
        assert np.ptp(shares) < 0.01

    # Nor the same pixels under another index.
    train, val = tool.load_sources('train'), tool.load_sources('val')
    pixels = {image.tobytes() for image in train.images}
    assert not any(image.tobytes() in pixels for image in val.images)


def test_every_source_can_be_drawn(tool):
    settings = tool.Settings(digit_size=tool.MIN_DIGIT_SIZE)
    rng = np.random.default_rng(0)
    for split in tool.SPLITS:
        for image in tool.load_sources(split).images:
            fragment = tool.cut_fragment(image, settings, rng)
            assert fragment.max() > 0.5
            assert max(fragment.shape) <= 0.8 * settings.digit_size / 2


def test_boxes_are_tight(tmp_path):
    out = make(tmp_path / 'out', '--noise', '0', '--num-clutter', '0')
    for split in ('train', 'val'):
        for entry in read_boxes(out, split)['images']:
            image = read_image(out, split, entry)
            # Without clutter and noise, all but the digit is the background.
            x1, y1, *_ = entry['box']
            corner = image[0 if y1 else -1, 0 if x1 else -1]
            y, x = np.nonzero((image != corner).any(axis=2))
            assert [x.min(), y.min(), x.max() + 1, y.max() + 1] == entry['box']


def test_clutter_keeps_off_the_digit(tmp_path):
    plain = make(tmp_path / 'plain', '--noise', '0', '--num-clutter', '0')
    full = make(tmp_path / 'full', '--noise', '0', '--num-clutter', '30')
    for before, after in zip(
        read_boxes(plain)['images'], read_boxes(full)['images'], strict=True
    ):
        assert before == after
        x1, y1, x2, y2 = before['box']
        changed = (
            read_image(plain, 'train', before) != read_image(full, 'train', after)
        ).any(axis=2)
        assert changed.any()
        assert not changed[max(y1 - 2, 0) : y2 + 2, max(x1 - 2, 0) : x2 + 2].any()


def test_digit_is_brighter_than_the_background(dataset):
    for entry in read_boxes(dataset)['images']:
        image = read_image(dataset, 'train', entry)
        x1, y1, x2, y2 = entry['box']
        assert 0 <= x1 < x2 <= 64
        assert 0 <= y1 < y2 <= 64
        assert image[y1:y2, x1:x2].mean() > np.median(image, axis=(0, 1)).mean() + 10


def test_scene_of_several_digits(tool):
    settings, sources = tool.Settings(size=128), tool.load_sources('val')
    image, digits = tool.draw_scene(
        [3, 1, 4], sources, settings, np.random.default_rng(0)
    )
    assert image.shape == (128, 128, 3)
    assert image.dtype == np.uint8
    assert [digit.label for digit in digits] == [3, 1, 4]
    covered = np.zeros((128, 128), int)
    for digit in digits:
        x1, y1, x2, y2 = digit.box
        assert digit.mask.shape == (y2 - y1, x2 - x1)
        assert sources.labels[digit.source] == digit.label
        covered[y1:y2, x1:x2] += 1
    assert covered.max() == 1


@pytest.mark.parametrize('split', ['train', 'val'])
def test_mmpretrain_loads_the_split(dataset, split):
    datasets = pytest.importorskip('mmpretrain.datasets')
    loaded = datasets.CustomDataset(data_root=str(dataset), data_prefix=split)
    assert list(loaded.CLASSES) == [str(label) for label in range(10)]
    entries = sorted(read_boxes(dataset, split)['images'], key=lambda e: e['file'])
    assert [Path(loaded[i]['img_path']) for i in range(len(loaded))] == [
        dataset / split / entry['file'] for entry in entries
    ]
    assert [*loaded.get_gt_labels()] == [entry['label'] for entry in entries]


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


def test_coco_labels_are_those_drawn(tool, coco_dataset):
    """Drawn again: the same pixels, and of each digit the same class and box."""
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


def test_coco_is_reproducible(coco_dataset, tmp_path):
    before = read_tree(coco_dataset)
    assert read_tree(make(tmp_path / 'again', '--coco')) == before
    other = read_tree(make(tmp_path / 'other', '--coco', '--seed', '1'))
    assert other.keys() == before.keys()
    assert all(other[name] != before[name] for name in before)


def test_interrupted_coco_run_is_continued(coco_dataset, tmp_path):
    out = make(tmp_path / 'out', '--coco')
    kept = out / 'train/000014.png'
    time = kept.stat().st_mtime_ns
    for name in ('train/000003.png', 'annotations/train.json', 'val/000017.png'):
        path = out / name
        path.with_name(f'.{path.name}.tmp').write_bytes(b'half a file')
        path.unlink()
    (out / 'annotations/val.json').write_text('{"settings": ')
    assert read_tree(make(out, '--coco')) == read_tree(coco_dataset)
    assert kept.stat().st_mtime_ns == time
    assert 'complete already' in run(out, '--coco').stdout


@pytest.mark.parametrize(
    ('args', 'message'),
    [
        ((), 'coco was True, now unset'),
        (('--coco', '--max-digits', '2'), 'max_digits was 3, now 2'),
    ],
)
def test_other_settings_than_coco_ones_are_refused(coco_dataset, args, message):
    before = read_tree(coco_dataset)
    result = run(coco_dataset, *args)
    assert result.returncode == 1
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert read_tree(coco_dataset) == before


@pytest.mark.parametrize('limit', [1, 50])
def test_number_of_digits(tmp_path, limit):
    """With more than there is room for, some are left out, but never all."""
    out = make(tmp_path / 'out', '--coco', '--max-digits', str(limit))
    _, by_image = read_coco(out)
    counts = [len(annotations) for annotations in by_image.values()]
    assert min(counts) >= 1
    assert max(counts) == 1 if limit == 1 else 3 <= max(counts) < 16


def test_pycocotools_loads_the_annotations(coco_dataset):
    coco = pytest.importorskip('pycocotools.coco')
    loaded = coco.COCO(str(coco_dataset / 'annotations/val.json'))
    assert loaded.getCatIds(catNms=['0', '9']) == [1, 10]
    assert len(loaded.getImgIds()) == 20
    mask = pytest.importorskip('pycocotools.mask')
    for annotation in loaded.loadAnns(loaded.getAnnIds()):
        pixels = loaded.annToMask(annotation)
        assert (pixels == decode(annotation['segmentation'])).all()
        rle = loaded.annToRLE(annotation)
        assert mask.area(rle) == annotation['area']
        assert mask.toBbox(rle).tolist() == annotation['bbox']


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


def test_perfect_detections_score_one(coco_dataset):
    """By mmdet's metric, for boxes and masks."""
    metrics = pytest.importorskip('mmdet.evaluation')
    torch = pytest.importorskip('torch')
    path = coco_dataset / 'annotations/val.json'
    metric = metrics.CocoMetric(ann_file=str(path), metric=['bbox', 'segm'])
    metric.dataset_meta = dict(classes=tuple('0123456789'))
    record, by_image = read_coco(coco_dataset, 'val')
    for entry in record['images']:
        annotations = by_image[entry['id']]
        boxes = torch.tensor([a['bbox'] for a in annotations]).float()
        boxes[:, 2:] += boxes[:, :2]
        masks = np.stack([decode(a['segmentation']) for a in annotations])
        predictions = dict(
            bboxes=boxes,
            scores=torch.ones(len(boxes)),
            labels=torch.tensor([a['category_id'] - 1 for a in annotations]),
            masks=torch.from_numpy(masks),
        )
        sample = dict(
            img_id=entry['id'], ori_shape=(64, 64), pred_instances=predictions
        )
        metric.process({}, [sample])
    results = metric.evaluate(size=len(record['images']))
    assert results['coco/bbox_mAP'] == results['coco/segm_mAP'] == 1
