# Copyright (c) mmpsvit contributors.
"""Fixtures of the tests of tools."""

import importlib
import os
import stat
from types import ModuleType

import pytest


@pytest.fixture
def import_benchmark(root, monkeypatch):
    """Import a module of tools/benchmarks, where the benchmarks find each other."""
    monkeypatch.syspath_prepend(str(root / 'tools' / 'benchmarks'))

    def load(name: str) -> ModuleType:
        return importlib.import_module(name)

    return load


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
def fake_srun(tmp_path):
    """Put a stand-in for srun first in PATH; return the PATH."""

    def write(body: str) -> str:
        path = tmp_path / 'bin' / 'srun'
        path.parent.mkdir()
        path.write_text('#!/usr/bin/env bash\n' + body)
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
        return f'{path.parent}{os.pathsep}{os.environ["PATH"]}'

    return write
