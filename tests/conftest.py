# Copyright (c) mmpsvit contributors.
"""Fixtures and helpers of all tests."""

import os
import socket
import subprocess
import sys
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.registry import DefaultScope
from PIL import Image

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope='session')
def root() -> Path:
    """The root of the repository."""
    return ROOT


@pytest.fixture(autouse=True)
def _own_scope(monkeypatch):
    """No test finds the default scope that another one has set."""
    monkeypatch.setattr(DefaultScope, '_instance_dict', OrderedDict())


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
    """Run a Python script or a shell script of the repository in an empty folder."""

    def run(script: str, *args, code: int | None = 0, **env) -> str:
        path = ROOT / script
        command = [sys.executable, str(path)] if path.suffix == '.py' else [str(path)]
        done = subprocess.run(
            [*command, *map(str, args)],
            cwd=tmp_path,
            env={**os.environ, 'PYTHON': sys.executable, **env},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=900,
        )
        assert code is None or done.returncode == code, done.stdout[-5000:]
        return done.stdout

    return run


@pytest.fixture
def free_port() -> str:
    """A port that nobody listens on."""
    with socket.socket() as server:
        server.bind(('127.0.0.1', 0))
        return str(server.getsockname()[1])


@pytest.fixture
def image_folder(tmp_path):
    """Write an ImageNet-style folder tree of small random PNGs."""

    def write(
        folder: str,
        classes: list[str],
        per_class: int,
        size: tuple[int, int] = (72, 60),
    ) -> Path:
        rng = np.random.default_rng(0)
        for split in ('train', 'val'):
            for index, name in enumerate(classes):
                target = tmp_path / folder / split / name
                target.mkdir(parents=True)
                for number in range(per_class):
                    pixels = rng.integers(0, 255, (60, 72, 3), dtype=np.uint8)
                    pixels[..., index % 3] //= 4
                    Image.fromarray(pixels).save(target / f'{number}.png')
        return tmp_path / folder

    return write
