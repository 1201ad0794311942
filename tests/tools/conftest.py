# Copyright (c) mmpsvit contributors.
"""Fixtures of the tests of tools."""

import importlib
import os
import stat
from collections import OrderedDict
from types import ModuleType

import pytest
from mmengine.logging import MMLogger

CLASSES = ['circle', 'square', 'star']


@pytest.fixture
def import_benchmark(root, monkeypatch):
    """Import a module of tools/benchmarks, where the benchmarks find each other."""
    monkeypatch.syspath_prepend(str(root / 'tools' / 'benchmarks'))

    def load(name: str) -> ModuleType:
        return importlib.import_module(name)

    return load


@pytest.fixture
def benchmark_error(import_benchmark, monkeypatch, capsys):
    """Run a benchmark with wrong arguments in this process; what it says on stderr."""
    # The loggers that the benchmark creates are forgotten afterwards.
    monkeypatch.setattr(MMLogger, '_instance_dict', OrderedDict())

    def run(name: str, *args) -> str:
        module = import_benchmark(name)
        monkeypatch.setattr('sys.argv', [f'{name}.py', *map(str, args)])
        with pytest.raises(SystemExit) as stopped:
            module.main()
        assert stopped.value.code == 2
        usage, line = capsys.readouterr().err.rsplit(f'{name}.py: error: ', 1)
        assert usage.startswith('usage: ')
        assert line.endswith('\n') and line.count('\n') == 1
        return line

    return run


@pytest.fixture
def digits_tool(root, monkeypatch) -> ModuleType:
    """The module make_cluttered_digits.py, which finds its neighbour."""
    monkeypatch.syspath_prepend(str(root / 'tools' / 'dataset_converters'))
    return importlib.import_module('make_cluttered_digits')


@pytest.fixture
def digit_scenes(digits_tool) -> ModuleType:
    """The module digit_scenes.py."""
    return importlib.import_module('digit_scenes')


@pytest.fixture
def small(root, image_folder):
    """Config and overrides of a small classifier on a small folder of images."""
    folder = image_folder('images', CLASSES, per_class=4)
    config = root / 'configs' / 'cluttered_digits' / 'psvit.py'
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
            f'{loader}_dataloader.dataset.data_root={folder}',
            f'{loader}_dataloader.num_workers=0',
        ]
    return config, options, folder


@pytest.fixture
def trained(small, run_tool, tmp_path):
    """A checkpoint after four steps."""
    config, options, _ = small
    run_tool('tools/train.py', config, '--work-dir', 'work', *options)
    return tmp_path / 'work' / 'iter_4.pth'


@pytest.fixture
def fake_srun(tmp_path):
    """Put a stand-in for srun first in PATH; return the PATH."""

    def write(body: str) -> str:
        path = tmp_path / 'bin' / 'srun'
        path.parent.mkdir()
        path.write_text('#!/usr/bin/env bash\n' + body)
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
        return f'{path.parent}{os.pathsep}{os.environ["PATH"]}'

    return write
