# Copyright (c) mmpsvit contributors.
"""The benchmark of the input pipeline: images, rates, workers needed; no speeds."""

import argparse
import json
import math

import pytest
from mmengine.config import Config
from mmengine.registry import init_default_scope
from PIL import Image

TOOL = 'tools/benchmarks/benchmark_data_loading.py'


@pytest.fixture
def benchmark_data_loading(import_benchmark):
    return import_benchmark('benchmark_data_loading')


def test_images(benchmark_data_loading, tmp_path):
    benchmark_data_loading.generate(tmp_path, count=21, quality=90)
    paths = sorted(tmp_path.glob('*/*.JPEG'))
    assert len(paths) == 21
    assert len({path.parent for path in paths}) == 10
    contents = set()
    for path in paths:
        with Image.open(path) as image:
            assert (image.format, image.size, image.mode) == ('JPEG', (500, 375), 'RGB')
            contents.add(image.tobytes())
    assert len(contents) == 21
    # Photographs do not compress like flat colours.
    assert min(path.stat().st_size for path in paths) > 10_000


def test_training_pipeline(run_tool, tmp_path):
    output = run_tool(
        TOOL, '--images', 8, '--batch-size', 2, '--workers', 0, 2, '--runs', 2,
        '--warmup', 1, '--images-per-second', 500, '--gpus', 3, '--out', 'loading',
    )  # fmt: skip
    results = json.loads((tmp_path / 'loading.json').read_text())
    rows = {(row['backend'], row['workers']): row for row in results['results']}
    assert {('cv2', 0), ('cv2', 2), ('pillow', 0), ('pillow', 2)} <= set(rows)
    for (_, workers), row in rows.items():
        first, second = row['seconds']
        rate = 8 / ((first + second) / 2)
        assert row['images_per_second'] == pytest.approx(rate)
        assert row['per_worker'] == pytest.approx(rate / max(1, workers))
        needed = math.ceil(500 / row['per_worker'])
        assert row['workers_per_gpu'] == {'500': needed}
        assert f'| {needed}, {3 * needed} |' in output
    names = [
        'LoadImageFromFile', 'RandomChoice', 'RandomFlip', 'RandAugment', 'PackInputs'
    ]  # fmt: skip
    assert list(results['transforms']['cv2']) == names
    assert all(time > 0 for time in results['transforms']['cv2'].values())
    assert (tmp_path / 'loading.md').read_text() in output


def test_endless_sampler_and_test_split(benchmark_data_loading, root, tmp_path):
    """A round ends where the config's own sampler does not."""
    parser = argparse.ArgumentParser()
    init_default_scope('mmpretrain')
    benchmark_data_loading.generate(tmp_path, count=5, quality=90)
    digits = root / 'configs' / 'cluttered_digits' / 'psvit.py'
    b14 = root / 'configs' / 'psvit' / 'b14.py'
    for path, split in ((digits, 'train'), (b14, 'test')):
        cfg = Config.fromfile(path)
        loader = cfg[f'{split}_dataloader']
        loader.batch_size = 2
        dataset = benchmark_data_loading.dataset_of(
            parser, cfg, split, str(tmp_path), 'pillow'
        )
        assert dataset['pipeline'][0]['imdecode_backend'] == 'pillow'
        names = [step['type'] for step in dataset['pipeline']]
        assert names == [step['type'] for step in loader.dataset.pipeline]
        built = benchmark_data_loading.build_loader(cfg, split, dataset, workers=0)
        assert sum(len(batch['inputs']) for batch in built) == 5


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['no.py'], 'argument config: no.py does not exist'),
        (['configs/psvit/transfer/b14_cifar10.py'], 'reads no image files'),
        (['--workers', '-1'], 'argument --workers: must be at least 1, got -1'),
        (['--images', '64', '--workers', '2'], 'need 128 images at least, got 64'),
        (['--backends', 'x'], "argument --backends: invalid choice: 'x'"),
    ],
)
def test_mistakes(arguments, message, benchmark_error, root, monkeypatch):
    monkeypatch.chdir(root)
    assert message in benchmark_error('benchmark_data_loading', *arguments)
