# Copyright (c) mmpsvit contributors.
"""The benchmark of several processes: settings, steps, files; no speeds."""

import json
from argparse import Namespace

import pytest
import torch
from mmengine.config import Config
from torch import distributed as dist

TOOL = 'tools/benchmarks/benchmark_distributed.py'
SMALL = 'configs/cluttered_digits/psvit.py'


def test_figures(run_tool, root, tmp_path):
    output = run_tool(
        TOOL, root / SMALL, '--batch-size', 4, '--size', 48, '--runs', 2,
        '--warmup', 1, '--threads', 2, '--out', 'found/distributed',
        CUDA_VISIBLE_DEVICES='',
    )  # fmt: skip
    results = json.loads((tmp_path / 'found' / 'distributed.json').read_text())
    rows = results['results']
    keys = ('processes', 'images_per_process', 'threads_per_process')
    assert [tuple(row[key] for key in keys) for row in rows] == [
        (1, 4, 2), (2, 2, 1), (2, 2, 1),
    ]  # fmt: skip
    for row in rows:
        assert len(row['seconds']) == 2 and min(row['seconds']) > 0
        ratio = row['milliseconds'] / rows[0]['milliseconds']
        assert row['overhead'] == pytest.approx(ratio - 1)
    assert results['threads'] == 2
    table = (tmp_path / 'found' / 'distributed.md').read_text()
    # Once, and no progress of two processes.
    assert output.count(table) == 1 and output.count('ms, quartiles') == 1
    assert '%|' not in output
    assert f'{results["parameters"]:,} gradients are exchanged' in table


@pytest.fixture
def alone(tmp_path):
    """A group of this process only."""
    store = f'file://{tmp_path}/store'
    dist.init_process_group('gloo', init_method=store, rank=0, world_size=1)
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
    dist.destroy_process_group()


def test_steps(alone, import_benchmark, root, monkeypatch):
    """Which step has how many threads and images, and which exchanges gradients."""
    benchmark = import_benchmark('benchmark_distributed')
    # What rank 0 of two processes does
    args = Namespace(batch_size=4, processes=2, size=48, threads=2, amp=False)
    calls = []
    exchanged = []

    class Wrapped(benchmark.DistributedDataParallel):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            self.register_comm_hook(None, self.exchange)

        @staticmethod
        def exchange(state, bucket):
            exchanged.append(bucket.buffer().numel())
            future = torch.futures.Future()
            future.set_result(bucket.buffer())
            return future

    monkeypatch.setattr(benchmark, 'DistributedDataParallel', Wrapped)
    plain = benchmark.training_step

    def recorded(forward, parameters, images, amp):
        step = plain(forward, parameters, images, amp)

        def run():
            calls.append((len(images), torch.get_num_threads()))
            step()

        return run

    monkeypatch.setattr(benchmark, 'training_step', recorded)
    steps, parameters = benchmark.steps_of(Config.fromfile(root / SMALL), args)
    assert list(steps) == [benchmark.ALONE, benchmark.ALL, benchmark.SILENT]
    sizes = []
    for step in steps.values():
        step()
        sizes.append(sum(exchanged))
        exchanged.clear()
    assert calls == [(4, 2), (2, 1), (2, 1)]
    assert sizes == [0, parameters, 0]


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['no.py'], 'argument config: no.py does not exist'),
        (['--batch-size', '7'], 'multiple of --processes = 2, got 7'),
        (['--threads', '3'], 'argument --threads: must be a multiple'),
        (['--processes', '0'], 'argument --processes: must be at least 1, got 0'),
    ],
)
def test_mistakes(arguments, message, benchmark_error, root, monkeypatch):
    monkeypatch.chdir(root)
    assert message in benchmark_error('benchmark_distributed', *arguments)
