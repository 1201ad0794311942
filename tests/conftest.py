# Copyright (c) mmpsvit contributors.
"""Fixtures of all tests."""

import re
import shutil
import socket
import textwrap
from functools import cache, partial
from pathlib import Path

import mmengine.config.utils
import numpy as np
import pytest
import torch
from PIL import Image
from scripts import ROOT, forget, run_in_process, run_script


@pytest.fixture(scope='session')
def root() -> Path:
    """The root of the repository."""
    return ROOT


@pytest.fixture(scope='session')
def figures(root) -> dict[str, torch.Tensor]:
    """What the authors' classes compute, in float64."""
    with np.load(root / 'tests' / 'data' / 'psvit_tiny_float64.npz') as file:
        return {key: torch.from_numpy(file[key]) for key in file}


@pytest.fixture(scope='session', autouse=True)
def _read_metafiles_once():
    """MMEngine reads all of MMPretrain's for each config that one of ours inherits."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mmengine.config.utils, 'load', cache(mmengine.config.utils.load))
        yield


@pytest.fixture(autouse=True)
def _forget(monkeypatch):
    """No test finds the default scope, loggers or loaders of another one."""
    forget(monkeypatch)


@pytest.fixture(
    params=[
        'cpu',
        pytest.param(
            'cuda',
            marks=[
                pytest.mark.cuda,
                pytest.mark.skipif(not torch.cuda.is_available(), reason='needs CUDA'),
            ],
        ),
    ]
)
def device(request) -> str:
    """Every device there is."""
    return request.param


@pytest.fixture
def run_tool(tmp_path):
    """Run a script of the repository as a process, in an empty folder."""
    return partial(run_script, cwd=tmp_path)


@pytest.fixture
def run_here(tmp_path):
    """Run a Python script of the repository in this process, in an empty folder."""
    return partial(run_in_process, cwd=tmp_path)


@pytest.fixture
def free_port() -> str:
    """A port that nobody listens on."""
    with socket.socket() as server:
        server.bind(('127.0.0.1', 0))
        return str(server.getsockname()[1])


@pytest.fixture
def block(root):
    """The only block of Python on a page that has a text in it."""

    def find(page: str, text: str) -> str:
        blocks = re.findall(
            r'^ *```python[^\n]*\n(.*?)```', (root / page).read_text(), re.M | re.S
        )
        (code,) = (textwrap.dedent(block) for block in blocks if text in block)
        return code

    return find


def write_images(folder: Path, classes: list[str], per_class: int) -> Path:
    """Write an ImageNet-style folder tree of small random PNGs."""
    rng = np.random.default_rng(0)
    for split in ('train', 'val'):
        for index, name in enumerate(classes):
            target = folder / split / name
            target.mkdir(parents=True)
            for number in range(per_class):
                pixels = rng.integers(0, 255, (60, 72, 3), dtype=np.uint8)
                pixels[..., index % 3] //= 4
                Image.fromarray(pixels).save(target / f'{number}.png')
    return folder


@pytest.fixture
def image_folder(tmp_path):
    """Write a folder tree of images."""

    def write(folder: str, classes: list[str], per_class: int) -> Path:
        return write_images(tmp_path / folder, classes, per_class)

    return write


def small_classifier(folder: Path) -> tuple[Path, list[str], Path]:
    """Config, overrides and new images of a small classifier."""
    images = write_images(folder / 'images', ['circle', 'square', 'star'], per_class=4)
    options = [
        '--cfg-options',
        'model.head.num_classes=3',
        'data_preprocessor.num_classes=3',
        'train_dataloader.batch_size=6',
        'train_cfg.max_iters=4',
        'train_cfg.val_interval=2',
        'default_hooks.checkpoint.interval=2',
        'default_hooks.logger.interval=1',
    ]
    for loader in ('train', 'val', 'test'):
        options += [
            f'{loader}_dataloader.dataset.data_root={images}',
            f'{loader}_dataloader.num_workers=0',
        ]
    return ROOT / 'configs' / 'cluttered_digits' / 'psvit.py', options, images


@pytest.fixture
def small(tmp_path):
    """Config, overrides and images of a small classifier."""
    return small_classifier(tmp_path)


@pytest.fixture(scope='session')
def training(tmp_path_factory) -> Path:
    """The work dir of a training of the small classifier that all tests share."""
    folder = tmp_path_factory.mktemp('training')
    config, options, _ = small_classifier(folder)
    run_script('tools/train.py', config, '--work-dir', 'work', *options, cwd=folder)
    return folder / 'work'


@pytest.fixture
def trained(training, tmp_path) -> Path:
    """A checkpoint after four steps, in a copy of its work dir."""
    work_dir = shutil.copytree(training, tmp_path / 'work')
    checkpoint = work_dir / 'iter_4.pth'
    # As if the training had been there.
    (work_dir / 'last_checkpoint').write_text(str(checkpoint))
    return checkpoint
