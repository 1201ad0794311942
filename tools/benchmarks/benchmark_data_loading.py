# Copyright (c) mmpsvit contributors.
"""Time the input pipeline of a config on generated JPEGs, per worker and transform.

    python tools/benchmarks/benchmark_data_loading.py --workers 0 1 2 --out loading
    python tools/benchmarks/benchmark_data_loading.py --images-per-second 1000

The JPEGs are crops of the photographs that scikit-image ships, of ImageNet's usual
500 x 375 pixels, in a temporary folder with one folder per class as ImageNet has them.
One data loader for each decode backend and number of workers delivers them through the
config's training or test pipeline; a round reads all images once with each of them.
Workers stay alive between rounds, and 0 workers means the main process.

With --images-per-second, the rate at which one GPU trains or tests (benchmark_speed.py
measures it), the report says how many workers keep it busy.
"""

# isort: off
import mmpsvit  # noqa: F401  First: it says what to install if something is missing.
# isort: on

import argparse
import copy
import importlib.util
import math
import os
import random
import tempfile
import time
from collections import defaultdict
from functools import partial
from pathlib import Path

import torch
from _measuring import (
    DEFAULT_CONFIG,
    add_common_arguments,
    describe,
    heading,
    markdown_table,
    measure,
    positive,
    report,
)
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.registry import DATASETS, init_default_scope
from mmengine.runner import Runner
from mmengine.utils.dl_utils import set_multi_processing
from PIL import Image
from torch.utils.data import DataLoader

from mmpsvit.cli import read_config, run_main, set_dataloader_defaults

CPU = torch.device('cpu')
SIZE = (500, 375)
CLASSES = 10
PHOTOGRAPHS = ('astronaut', 'chelsea', 'coffee', 'rocket')
MODULES = {'cv2': 'cv2', 'pillow': 'PIL', 'turbojpeg': 'turbojpeg'}


def backends() -> list[str]:
    """The decode backends of mmcv that are installed."""
    found = [
        name for name, module in MODULES.items() if importlib.util.find_spec(module)
    ]
    if 'turbojpeg' in found:
        import turbojpeg

        try:
            turbojpeg.TurboJPEG()
        except RuntimeError:  # the package without the library that it wraps
            found.remove('turbojpeg')
    return found


def generate(folder: Path, count: int, quality: int) -> None:
    """Write JPEGs: random crops of photographs, in folders of classes."""
    from skimage import data

    rng = random.Random(0)
    arrays = [getattr(data, name)() for name in PHOTOGRAPHS]
    photographs = [Image.fromarray(a) for a in (*arrays, data.stereo_motorcycle()[0])]
    for index in range(count):
        photograph = photographs[index % len(photographs)]
        scale = min(p / s for p, s in zip(photograph.size, SIZE, strict=True))
        scale *= rng.uniform(0.6, 1)
        width, height = (int(side * scale) for side in SIZE)
        left = rng.randint(0, photograph.width - width)
        top = rng.randint(0, photograph.height - height)
        image = photograph.resize(
            SIZE, Image.Resampling.LANCZOS, (left, top, left + width, top + height)
        )
        if rng.random() < 0.5:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        target = folder / f'n{index % CLASSES:08d}'
        target.mkdir(parents=True, exist_ok=True)
        image.save(target / f'{index}.JPEG', quality=quality)


def dataset_of(
    parser: argparse.ArgumentParser, cfg: Config, split: str, folder: str, backend: str
) -> dict:
    """A dataset of the images in a folder with the pipeline of a config's dataset."""
    loader = cfg.get(f'{split}_dataloader') or {}
    pipeline = copy.deepcopy(loader.get('dataset', {}).get('pipeline', []))
    readers = [step for step in pipeline if step['type'] == 'LoadImageFromFile']
    if not readers:
        parser.error(f'argument config: its {split}_dataloader reads no image files')
    for reader in readers:
        reader['imdecode_backend'] = backend
    return dict(
        _scope_='mmpretrain',
        type='CustomDataset',
        data_prefix=folder,
        pipeline=pipeline,
    )


def build_loader(cfg: Config, split: str, dataset: dict, workers: int) -> DataLoader:
    """The data loader of a config with another dataset and number of workers."""
    cfg = copy.deepcopy(cfg)
    loader = cfg[f'{split}_dataloader']
    loader.dataset = dataset
    loader.num_workers = workers
    # Each image once: the config's sampler may be endless.
    loader.sampler = dict(type='DefaultSampler', shuffle=True)
    set_dataloader_defaults(cfg)
    return Runner.build_dataloader(loader, seed=0)


def read_all(loader: DataLoader) -> None:
    """Read all batches once."""
    for _ in loader:
        pass


def transform_times(dataset: dict, count: int) -> dict[str, float]:
    """Mean milliseconds per image of each transform, in this process."""
    built = DATASETS.build(dataset)
    seconds = defaultdict(float)
    for index in range(count):
        data = built.get_data_info(index)
        for transform in built.pipeline.transforms:
            start = time.perf_counter()
            data = transform(data)
            seconds[type(transform).__name__] += time.perf_counter() - start
    return {name: 1e3 * total / count for name, total in seconds.items()}


def rows_of(figures: dict, args: argparse.Namespace) -> list[dict]:
    """The rate of each loader, and the workers that one GPU needs."""
    rows = []
    for (backend, workers), timing in figures.items():
        rate = args.images / timing.median
        per_worker = rate / max(1, workers)
        low, high = timing.quartiles
        rows.append(
            {
                'backend': backend,
                'workers': workers,
                'images_per_second': rate,
                'images_per_second_quartiles': [args.images / high, args.images / low],
                'per_worker': per_worker,
                'workers_per_gpu': {
                    need: math.ceil(need / per_worker)
                    for need in args.images_per_second
                },
                'seconds': timing.seconds,
            }
        )
    return rows


def markdown_of(
    rows: list[dict], transforms: dict[str, dict], args: argparse.Namespace
) -> list[str]:
    """The rates, and the time of each transform."""
    header = ['backend', 'workers', 'images/s, quartiles', 'per worker']
    header += [
        f'workers per GPU of {need} images/s, for {args.gpus}'
        for need in args.images_per_second
    ]
    cells = []
    for row in rows:
        low, high = row['images_per_second_quartiles']
        cells.append(
            [
                row['backend'],
                row['workers'],
                f'{row["images_per_second"]:.0f}, {low:.0f} to {high:.0f}',
                f'{row["per_worker"]:.0f}',
                *(
                    f'{count}, {args.gpus * count}'
                    for count in row['workers_per_gpu'].values()
                ),
            ]
        )
    lines = [*markdown_table(header, cells), '']
    names = dict.fromkeys(name for times in transforms.values() for name in times)
    cells = [
        [name, *(f'{times[name]:.2f}' for times in transforms.values())]
        for name in names
    ]
    total = [f'{sum(times.values()):.2f}' for times in transforms.values()]
    header = ['ms per image', *transforms]
    return lines + markdown_table(header, [*cells, ['all', *total]])


def parse_args() -> tuple[argparse.Namespace, argparse.ArgumentParser]:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument(
        'config',
        nargs='?',
        default=DEFAULT_CONFIG,
        help='config with the pipeline (default: b14.py)',
    )
    parser.add_argument('--split', choices=('train', 'test'), default='train')
    parser.add_argument(
        '--backends', nargs='+', choices=list(MODULES), help='default: all installed'
    )
    parser.add_argument(
        '--workers',
        type=not_negative,
        nargs='+',
        help='numbers of workers (default: 0, 1 and the number of cores)',
    )
    parser.add_argument('--images', type=positive, default=512)
    parser.add_argument('--quality', type=positive, default=90, help='of the JPEGs')
    parser.add_argument('--batch-size', type=positive, help="default: the config's")
    parser.add_argument(
        '--images-per-second',
        type=positive,
        nargs='+',
        default=[],
        help='what one GPU reads',
    )
    parser.add_argument('--gpus', type=positive, default=8)
    add_common_arguments(parser, '5')
    args = parser.parse_args()
    args.runs = args.runs or 5
    args.workers = list(dict.fromkeys(args.workers or (0, 1, os.cpu_count())))
    installed = backends()
    args.backends = list(dict.fromkeys(args.backends or installed))
    for backend in args.backends:
        if backend not in installed:
            parser.error(f'argument --backends: {backend} is not installed')
    if importlib.util.find_spec('skimage') is None:
        parser.error('the images are made with scikit-image: pip install scikit-image')
    if args.threads:
        torch.set_num_threads(args.threads)
    return args, parser


def not_negative(text: str) -> int:
    """Type of an argument: a whole number of at least 0."""
    return 0 if text == '0' else positive(text)


def main() -> None:
    """Measure, print the tables, and write what ``--out`` asks for."""
    args, parser = parse_args()
    # Otherwise MMEngine's remarks stand before the table.
    MMLogger.get_instance('benchmark_data_loading', log_level='WARNING')
    cfg = read_config(parser, args.config)
    with tempfile.TemporaryDirectory() as folder:
        datasets = {
            backend: dataset_of(parser, cfg, args.split, folder, backend)
            for backend in args.backends
        }
        loader = cfg[f'{args.split}_dataloader']
        args.batch_size = args.batch_size or loader.batch_size
        loader.batch_size = args.batch_size
        if args.images < args.batch_size * max(args.workers):
            parser.error(
                f'argument --images: {max(args.workers)} workers with batches of '
                f'{args.batch_size} need {args.batch_size * max(args.workers)} images '
                f'at least, got {args.images}'
            )
        init_default_scope('mmpretrain')
        set_multi_processing(**cfg.get('env_cfg', {}).get('mp_cfg', {}))
        generate(Path(folder), args.images, args.quality)
        size = sum(path.stat().st_size for path in Path(folder).rglob('*.JPEG'))
        transforms = {
            backend: transform_times(dataset, args.images)
            for backend, dataset in datasets.items()
        }
        loaders = {
            (backend, workers): build_loader(cfg, args.split, dataset, workers)
            for backend, dataset in datasets.items()
            for workers in args.workers
        }
        steps = {key: partial(read_all, loader) for key, loader in loaders.items()}
        figures = measure(steps, args.runs, args.warmup, CPU)
        # Before their folder is gone, the workers are.
        del steps, loaders
    rows, about = rows_of(figures, args), describe()
    title = (
        f'Input pipeline for {args.split}ing, {args.config}: {args.images} JPEGs of '
        f'{SIZE[0]} x {SIZE[1]} px, quality {args.quality}, on average '
        f'{size / args.images / 1000:.0f} kB, '
        f'batch {args.batch_size}, medians of {args.runs} interleaved rounds, '
        f'{os.cpu_count()} cores.'
    )
    lines = [*heading(title, about), *markdown_of(rows, transforms, args)]
    report(lines, about, args, results=rows, transforms=transforms)


if __name__ == '__main__':
    run_main(main)
