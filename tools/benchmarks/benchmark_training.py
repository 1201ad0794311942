# Copyright (c) mmpsvit contributors.
"""Time the real training loop of a config, against the bare step of the same batch.

    python tools/benchmarks/benchmark_training.py configs/psvit/b14.py --out loop
    python tools/benchmarks/benchmark_training.py --data jpeg --workers 0 1 2
    torchrun --standalone --nproc_per_node=2 tools/benchmarks/benchmark_training.py \
        configs/psvit/ti14.py --batch-size 4

The loop is MMEngine's Runner on the config, with its hooks, optimizer and
preprocessor, but without validation and checkpoints. Its images lie packed in memory,
or are generated JPEGs (crops of the photographs of scikit-image, of ImageNet's usual
500 x 375 px) that go through the config's training pipeline in data workers; 0 workers
means the main process. `--data jpeg` also reads the loader alone and times each
transform.

The bare step is that of benchmark_speed.py on images that are on the device already:
forward, loss, backward, AdamW. What the loop takes beyond it is the host's time and, on
a GPU, partly hidden; with `--batch-size 1` a GPU waits for the host, and the loop's
time is the host's. Under torchrun each process trains on batches of its own, and the
loop exchanges gradients, unlike the bare step.
"""

# isort: off
import mmpsvit  # noqa: F401  First: it says what to install if something is missing.
# isort: on

import argparse
import copy
import os
import random
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from functools import partial
from itertools import product
from pathlib import Path

import common
import mmpretrain
import torch
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.dist import get_rank, get_world_size, init_dist, is_distributed
from mmengine.hooks import Hook
from mmengine.registry import DATASETS, init_default_scope
from mmengine.runner import Runner
from mmpretrain.structures import DataSample
from PIL import Image
from torch.utils.data import Dataset

from mmpsvit.cli import (
    add_cfg_options,
    read_config,
    run_main,
    set_dataloader_defaults,
    use_mixed_precision,
)

JPEG_SIZE = (500, 375)
PHOTOGRAPHS = ('astronaut', 'chelsea', 'coffee', 'rocket')
CLASSES = 10


@DATASETS.register_module()
class ImagesInMemory(Dataset):
    """Packed images, as a pipeline would deliver them.

    Args:
        length (int): Number of images.
        size (tuple[int, int]): Their size (H, W).
        num_classes (int): Number of classes.
    """

    def __init__(self, length: int, size: tuple[int, int], num_classes: int) -> None:
        self.length = length
        self.num_classes = num_classes
        self.images = torch.randint(256, (8, 3, *size), dtype=torch.uint8)

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict:
        sample = DataSample().set_gt_label(index % self.num_classes)
        return dict(inputs=self.images[index % 8], data_samples=sample)


class LoopTimer(Hook):
    """Times whole iterations.

    Args:
        warmup (int): Iterations that are not timed.
        runs (int): Iterations that are.
        device (torch.device): Where the loop runs.
    """

    priority = 'LOWEST'

    def __init__(self, warmup: int, runs: int, device: torch.device) -> None:
        self.warmup, self.last, self.device = warmup, warmup + runs, device
        self.done = 0
        self.figures = {}

    def after_train_iter(self, runner: Runner, *_, **__) -> None:
        """Read the clock after an iteration."""
        self.done += 1
        runs = self.last - self.warmup
        if self.done == self.warmup:
            self.start = common.clock(self.device)
        elif self.done == self.last:
            seconds = common.clock(self.device) - self.start
            waits = runner.message_hub.get_scalar('train/data_time')
            self.figures['milliseconds'] = 1e3 * seconds / runs
            self.figures['waiting_for_data_ms'] = 1e3 * float(waits.mean(runs))


def generate(folder: Path, count: int) -> None:
    """Write JPEGs: random crops of photographs, in folders of classes."""
    from skimage import data

    rng = random.Random(0)
    photographs = [Image.fromarray(getattr(data, name)()) for name in PHOTOGRAPHS]
    for index in range(count):
        photograph = photographs[index % len(photographs)]
        scale = min(p / s for p, s in zip(photograph.size, JPEG_SIZE, strict=True))
        scale *= rng.uniform(0.6, 1)
        width, height = (int(side * scale) for side in JPEG_SIZE)
        left = rng.randint(0, photograph.width - width)
        top = rng.randint(0, photograph.height - height)
        box = (left, top, left + width, top + height)
        target = folder / f'n{index % CLASSES:08d}'
        target.mkdir(parents=True, exist_ok=True)
        image = photograph.resize(JPEG_SIZE, Image.Resampling.LANCZOS, box)
        image.save(target / f'{index}.JPEG', quality=90)


def set_data(cfg: Config, args: argparse.Namespace, data: str, batch_size: int) -> None:
    """Let a config train on images in memory, or on the JPEGs in ``args.folder``."""
    loader = cfg.train_dataloader
    length = (args.warmup + args.runs) * batch_size * get_world_size()
    if data == 'memory':
        size, classes = common.input_size(cfg), cfg.model.head.num_classes
        dataset = dict(type='ImagesInMemory', size=size, num_classes=classes)
        loader.dataset = dict(dataset, length=length)
    else:
        pipeline = loader.dataset.pipeline
        images = dict(_scope_='mmpretrain', type='CustomDataset', pipeline=pipeline)
        images['data_prefix'] = args.folder
        times = -(-length // args.images)
        loader.dataset = dict(type='RepeatDataset', dataset=images, times=times)
    loader.batch_size = batch_size
    set_dataloader_defaults(cfg, persistent_workers=False)


def build_runner(
    cfg: Config, args: argparse.Namespace, workers: int, folder: str
) -> tuple[Runner, LoopTimer]:
    """The runner of a config for as many iterations as are measured."""
    cfg.train_dataloader.num_workers = workers
    cfg.val_cfg = cfg.val_dataloader = cfg.val_evaluator = None
    cfg.test_cfg = cfg.test_dataloader = cfg.test_evaluator = None
    if cfg.train_cfg.get('max_iters'):
        cfg.train_cfg.max_iters = args.warmup + args.runs
    else:
        cfg.train_cfg.max_epochs = 1
    cfg.default_hooks.checkpoint = None
    cfg.work_dir, cfg.log_level = folder, 'WARNING'
    # Two runners of one second would share their scalars.
    cfg.experiment_name = f'{time.time_ns()}'
    runner = Runner.from_cfg(cfg)
    timer = LoopTimer(args.warmup, args.runs, args.device)
    runner.register_hook(timer)
    return runner, timer


def bare_figures(cfg: Config, args: argparse.Namespace, batch_size: int) -> dict:
    """The figures of forward, loss, backward and AdamW alone."""
    model = mmpretrain.get_model(cfg).to(args.device)
    model.train()
    images = torch.rand(batch_size, 3, *common.input_size(cfg), device=args.device)
    dtype = f'amp-{cfg.optim_wrapper.dtype}' if args.amp else 'float32'
    forward = partial(model, mode='tensor')
    step = common.training_step(forward, model.parameters(), images, dtype)
    return dict(milliseconds=common.measure({'': step}, args)['']['milliseconds'])


def loader_rate(cfg: Config, args: argparse.Namespace, workers: int) -> float:
    """Images per second of the data loader alone."""

    def batches() -> Iterator:
        yield from Runner.build_dataloader(
            {**cfg.train_dataloader, 'num_workers': workers}, seed=0
        )

    loader = batches()
    for _ in range(args.warmup):
        next(loader)
    start = time.perf_counter()
    count = sum(len(next(loader)['inputs']) for _ in range(args.runs))
    return count / (time.perf_counter() - start)


def transform_times(cfg: Config, args: argparse.Namespace) -> dict[str, float]:
    """Mean milliseconds per JPEG of each transform, in this process."""
    built = DATASETS.build(cfg.train_dataloader.dataset.dataset)
    seconds = defaultdict(float)
    for index in range(args.images):
        data = built.get_data_info(index)
        for transform in built.pipeline.transforms:
            start = time.perf_counter()
            data = transform(data)
            seconds[type(transform).__name__] += time.perf_counter() - start
    seconds['all'] = sum(seconds.values())
    return {name: 1e3 * total / args.images for name, total in seconds.items()}


def measure_all(cfg: Config, args: argparse.Namespace) -> tuple[list[dict], list[dict]]:
    """The figures of all loops and bare steps, and of the transforms."""
    rows, transforms = [], {}
    for batch_size in args.batch_size:
        images = batch_size * get_world_size()
        bare = bare_figures(cfg, args, batch_size)
        rows.append(dict(data='bare step', batch_size=batch_size, **bare))
        for data, workers in product(args.data, args.workers):
            chosen = copy.deepcopy(cfg)
            set_data(chosen, args, data, batch_size)
            row = dict(data=data, batch_size=batch_size, workers=workers)
            with tempfile.TemporaryDirectory() as folder:
                runner, timer = build_runner(chosen, args, workers, folder)
                runner.train()
            row.update(timer.figures)
            row['to_bare_step'] = bare['milliseconds'] / row['milliseconds']
            row['beyond_it_ms'] = row['milliseconds'] - bare['milliseconds']
            if data == 'jpeg':
                row['loader_alone'] = loader_rate(chosen, args, workers)
                row['loader_per_worker'] = row['loader_alone'] / max(1, workers)
                transforms = transforms or transform_times(chosen, args)
            rows.append(row)
        for row in rows:
            row.setdefault('images_per_second', 1e3 * images / row['milliseconds'])
    times = [
        dict(transform=name, ms_per_image=time) for name, time in transforms.items()
    ]
    return rows, times


def parse_args() -> tuple[argparse.Namespace, Config]:
    """Parse the command line, and read the config."""
    parser = common.make_parser(__doc__, runs=20)
    add = parser.add_argument
    add('config', nargs='?', default=os.path.relpath(common.OURS['b14']))
    add('--data', nargs='+', choices=('memory', 'jpeg'), default=['memory'])
    add('--workers', type=int, nargs='+', help="default: the config's")
    add('--batch-size', type=common.positive, nargs='+', help="default: the config's")
    add('--images', type=common.positive, default=256, help='number of JPEGs')
    add('--amp', action='store_true', help='as of tools/train.py (CUDA only)')
    add_cfg_options(parser)
    args = parser.parse_args()
    cfg = read_config(parser, args.config, args.cfg_options)
    if 'num_classes' not in cfg.get('model', {}).get('head', {}):
        parser.error(f'argument config: {args.config} trains no classifier')
    if args.amp and args.device.type != 'cuda':
        parser.error('argument --amp: mixed precision needs a CUDA device')
    devices = {args.device.type, get_device()}
    if len(devices) > 1 and 'cuda' in devices:
        parser.error(
            f'argument --device: MMEngine trains on {get_device()}; an empty '
            'CUDA_VISIBLE_DEVICES hides GPUs'
        )
    if min(args.workers or [0]) < 0:
        parser.error(f'argument --workers: must be at least 0, got {min(args.workers)}')
    loader = cfg.train_dataloader
    args.batch_size = args.batch_size or [loader.batch_size]
    args.workers = args.workers or [loader.get('num_workers', 0)]
    if args.amp:
        use_mixed_precision(cfg)
    return args, cfg


def main() -> None:
    """Measure, print the tables, and write what ``--out`` asks for."""
    args, cfg = parse_args()
    common.start(args)
    init_default_scope('mmpretrain')
    if 'LOCAL_RANK' in os.environ:
        from mmpsvit.cli.launch import prepare_distributed

        cfg.launcher = 'pytorch'
        prepare_distributed(cfg)
        if not is_distributed():  # on GPUs, the first Runner would begin with it
            init_dist(cfg.launcher, **cfg.get('env_cfg', {}).get('dist_cfg', {}))
            args.device = torch.device('cuda', torch.cuda.current_device())
    with tempfile.TemporaryDirectory() as args.folder:
        if 'jpeg' in args.data:
            generate(Path(args.folder), args.images)
        tables = measure_all(cfg, args)
    title = (
        f'Training of {args.config}, {"autocast" if args.amp else "float32"}, '
        f'{get_world_size()} processes, {os.cpu_count()} cores, {args.runs} iterations.'
    )
    if get_rank() == 0:
        common.report(title, args, *tables)


if __name__ == '__main__':
    run_main(main)
