# Copyright (c) mmpsvit contributors.
"""Runs scripts of the repository: as processes, and in the process of the tests."""

import contextlib
import importlib.util
import io
import os
import runpy
import subprocess
import sys
from collections import OrderedDict
from pathlib import Path
from types import ModuleType

import pytest
from mmengine.logging import MessageHub, MMLogger
from mmengine.registry import DefaultScope
from mmengine.runner import CheckpointLoader
from mmengine.visualization import Visualizer

ROOT = Path(__file__).parent.parent


def forget(patch: pytest.MonkeyPatch) -> None:
    """Forget the default scope, loaders, and what a run may share with the next one.

    MMEngine finds loggers and the like by a name that is the same for a second.
    """
    drawers = (Visualizer, *Visualizer.__subclasses__())
    for manager in (DefaultScope, MMLogger, MessageHub, *drawers):
        patch.setattr(manager, '_instance_dict', OrderedDict())
    patch.setattr(CheckpointLoader, '_schemes', CheckpointLoader._schemes.copy())


class Malicious:
    """Makes a folder when it is unpickled in full."""

    def __init__(self, folder: Path) -> None:
        self.folder = str(folder)

    def __reduce__(self) -> tuple:
        return os.mkdir, (self.folder,)


def load_script(script: str | Path) -> ModuleType:
    """A Python script as a module."""
    spec = importlib.util.spec_from_file_location(Path(script).stem, ROOT / script)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run_script(
    script: str | Path, *args, cwd: Path, code: int | None = 0, **env
) -> str:
    """Run a Python script or a shell script; what it printed."""
    path = ROOT / script
    command = [sys.executable, str(path)] if path.suffix == '.py' else [str(path)]
    done = subprocess.run(
        [*command, *map(str, args)],
        cwd=cwd,
        env={**os.environ, 'PYTHON': sys.executable, **env},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=900,
    )
    assert code is None or done.returncode == code, done.stdout[-5000:]
    return done.stdout


def run_in_process(script: str, *args, cwd: Path | None = None, code: int = 0) -> str:
    """Run a Python script in this process, which has imported what it needs."""
    path, output, ended = ROOT / script, io.StringIO(), 0
    with (
        pytest.MonkeyPatch.context() as patch,
        contextlib.redirect_stdout(output),
        contextlib.redirect_stderr(output),
    ):
        forget(patch)
        patch.setattr(sys, 'argv', [str(path), *map(str, args)])
        patch.syspath_prepend(str(path.parent))
        if cwd is not None:
            patch.chdir(cwd)
        try:
            if path.parent.name == 'benchmarks':
                # Not twice: one of them registers a data set.
                importlib.import_module(path.stem).main()
            else:
                runpy.run_path(str(path), run_name='__main__')
        except SystemExit as stopped:
            # As Python does it: a text is the message of code 1.
            ended = stopped.code or 0
            if isinstance(ended, str):
                print(ended)
                ended = 1
    assert ended == code, output.getvalue()[-5000:]
    return output.getvalue()


def error_of(script: str, *args) -> str:
    """What a tool says to wrong arguments: one line, below its usage."""
    output = run_in_process(script, *args, code=2)
    usage, line = output.rsplit(f'{Path(script).name}: error: ', 1)
    assert 'usage: ' in usage  # after what a library prints when it is imported
    assert line.endswith('\n') and line.count('\n') == 1
    return line
