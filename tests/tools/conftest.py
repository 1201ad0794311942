# Copyright (c) mmpsvit contributors.
"""Fixtures of the tests of tools."""

import importlib
from collections import OrderedDict
from types import ModuleType

import pytest
from mmengine.logging import MMLogger


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
