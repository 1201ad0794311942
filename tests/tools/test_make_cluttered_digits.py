# Copyright (c) mmpsvit contributors.
"""tools/dataset_converters/make_cluttered_digits.py, class folders."""

import json

import numpy as np
import pytest
from cluttered_digits import (
    SMALL,
    TOOL,
    make,
    read_boxes,
    read_image,
    read_tree,
    refused,
    run,
)
from PIL import Image
from scripts import error_of

pytest.importorskip('sklearn')
SCENES = 'dataset_converters/digit_scenes.py'


@pytest.fixture(scope='module')
def dataset(tmp_path_factory):
    """A finished data set that the tests leave as it is."""
    return make(tmp_path_factory.mktemp('digits') / 'dataset')


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


def test_same_seed_gives_identical_files(dataset, run_tool, tmp_path):
    """In another process."""
    output = run_tool(TOOL, 'again', *SMALL)
    assert output == 'again is complete: 30 train, 20 val images\n'
    assert read_tree(tmp_path / 'again') == read_tree(dataset)


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
    """A split without boxes begins anew."""
    out = make(tmp_path / 'out')
    kept = out / 'val/7/000017.png'
    time = kept.stat().st_mtime_ns
    (out / 'train/boxes.json').unlink()
    (out / 'train/0/000000.png').unlink()
    (out / 'train/5/000015.png').write_bytes(b'half a file')
    assert read_tree(make(out)) == read_tree(dataset)
    assert kept.stat().st_mtime_ns == time


def test_run_killed_at_its_start_is_continued(dataset, tmp_path):
    left = tmp_path / '.settings.0123456789ab.tmp.json'
    left.write_text('{"si')
    make(tmp_path)
    left.unlink()
    assert read_tree(tmp_path) == read_tree(dataset)


def test_broken_boxes_are_written_again(dataset, tmp_path):
    out = make(tmp_path / 'out')
    (out / 'val/boxes.json').write_text('{"settings": ')
    assert read_tree(make(out)) == read_tree(dataset)


def test_finished_data_set_is_left_alone(dataset):
    def times():
        return {path: path.stat().st_mtime_ns for path in dataset.rglob('*')}

    before = times()
    output = run(dataset)
    assert output.count('\n') == 1 and 'made already' in output
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
    assert message in refused(dataset, *args)
    assert read_tree(dataset) == before


@pytest.mark.parametrize('name', ['photo.jpg', 'settings.json', '.hidden'])
def test_foreign_folder_is_refused(tmp_path, name):
    (tmp_path / name).write_text('{"size": 64}')
    assert 'not a data set of this tool' in refused(tmp_path)
    assert read_tree(tmp_path) == {name: b'{"size": 64}'}


def test_file_in_place_of_the_folder_is_refused(tmp_path):
    path = tmp_path / 'out'
    path.write_text('text')
    refused(path)
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
    line = error_of(TOOL, tmp_path / 'out', *SMALL, flag, value)
    assert f'argument {flag}: {message}' in line
    assert not (tmp_path / 'out').exists()


def test_smallest_size_has_room_for_every_digit(tmp_path):
    out = make(tmp_path / 'out', '--size', '24', '--digit-size', '16')
    assert len(read_boxes(out)['images']) == 30


def test_splits_share_no_source_digit(import_tool):
    from sklearn.datasets import load_digits

    digit_scenes = import_tool(SCENES)
    labels = load_digits().target
    splits = digit_scenes.split_indices(labels)
    assert not set(splits['train']) & set(splits['val'])
    assert sorted([*splits['train'], *splits['val']]) == list(range(len(labels)))
    for indices in splits.values():
        shares = np.bincount(labels[indices]) / np.bincount(labels)
        assert len(shares) == 10
        assert np.ptp(shares) < 0.01

    # Nor the same pixels under another index.
    train, val = digit_scenes.load_sources('train'), digit_scenes.load_sources('val')
    pixels = {image.tobytes() for image in train.images}
    assert not any(image.tobytes() in pixels for image in val.images)


def test_every_source_can_be_drawn(import_tool):
    digit_scenes = import_tool(SCENES)
    settings = digit_scenes.Settings(digit_size=digit_scenes.MIN_DIGIT_SIZE)
    rng = np.random.default_rng(0)
    for split in digit_scenes.SPLITS:
        for image in digit_scenes.load_sources(split).images:
            fragment = digit_scenes.cut_fragment(image, settings, rng)
            assert fragment.max() > 0.5
            assert max(fragment.shape) <= 0.8 * settings.digit_size / 2


def test_digit_is_brighter_than_the_background(dataset):
    for entry in read_boxes(dataset)['images']:
        image = read_image(dataset, 'train', entry)
        x1, y1, x2, y2 = entry['box']
        assert 0 <= x1 < x2 <= 64
        assert 0 <= y1 < y2 <= 64
        assert image[y1:y2, x1:x2].mean() > np.median(image, axis=(0, 1)).mean() + 10
