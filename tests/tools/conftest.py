# Copyright (c) mmpsvit contributors.
"""Fixtures of the tests of tools."""

import importlib
import os
import stat
from types import ModuleType

import pytest


@pytest.fixture
def import_tool(root, monkeypatch):
    """Import a script below tools/, which finds its neighbours."""

    def load(name: str) -> ModuleType:
        path = root / 'tools' / name
        monkeypatch.syspath_prepend(str(path.parent))
        return importlib.import_module(path.stem)

    return load


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
