# Copyright (c) mmpsvit contributors.
"""projects/miniature: its plan, its page, and a training that is interrupted."""

import contextlib
import importlib
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope

pytest.importorskip('sklearn')

PROJECT = Path(__file__).parents[2] / 'projects' / 'miniature'
with mock.patch.object(sys, 'path', [str(PROJECT), *sys.path]):
    plan, report, run, measure = map(
        importlib.import_module, ('plan', 'report', 'run', 'measure')
    )

BUDGET = plan.Budget(steps=6, num_train=64, num_val=40)


def test_page_shows_the_results_and_none_is_missing():
    runs = {
        each.name: each for each in plan.plan_runs(plan.TABLES, None, plan.Budget())
    }
    files = {path.stem: path for path in (PROJECT / 'results').glob('*_seed*.json')}
    assert runs.keys() == files.keys()
    for name, path in files.items():
        settings = json.loads(path.read_bytes())['settings']
        assert runs[name].settings().items() <= settings.items()
    results, page = report.read_results(PROJECT), (PROJECT / 'README.md').read_text()
    for table in plan.TABLES.values():
        text = report.format_table(table, results, PROJECT)
        assert f'-->\n{text}\n<!--' in page
        assert not re.search(rf'{report.MISSING} \|| of \d \|', text)


def test_runs_of_some_tables():
    """All with seed 0 first; each once, as often as the table that wants most of it."""
    names = [each.name for each in plan.plan_runs('ad', None, BUDGET)]
    assert names[:3] == ['psvit_seed0', 'vit_seed0', 'vit_5x_seed0']
    assert names[3:7] == ['n3_seed0', 'n5_seed0', 'n6_seed0', 'n8_seed0']
    assert sorted(names[7:]) == [
        f'{n}_seed{s}' for n in ('psvit', 'vit') for s in (1, 2)
    ]
    # A table without trainings of its own has none with more seeds either.
    assert plan.plan_runs(['inside'], 5, BUDGET) == []


def test_trainings_have_different_names():
    trainings = {t for table in plan.TABLES.values() for t in table.seeds}
    trainings |= {plan.Training('psvit', lr=2.5e-4), plan.Training('psvit', lr=2e-4)}
    assert len({training.name for training in trainings}) == len(trainings)


@pytest.mark.parametrize('canvas', [64, 160])
@pytest.mark.parametrize('name', plan.MAIN)
def test_networks_differ_in_what_is_compared_alone(name, canvas, monkeypatch):
    """The same depth, number of tokens, data and schedule on every canvas."""
    monkeypatch.setenv('MINIATURE_CANVAS', str(canvas))
    monkeypatch.syspath_prepend(str(PROJECT.parents[1]))  # for its patch embedding
    cfg, base = (
        Config.fromfile(PROJECT / 'configs' / f'{each}.py') for each in (name, 'psvit')
    )
    for key in ('train_dataloader', 'val_dataloader', 'param_scheduler', 'train_cfg'):
        assert cfg[key] == base[key]
    assert cfg.train_dataloader.dataset.data_root == f'data/miniature/{canvas}'
    init_default_scope('mmpretrain')
    model = MODELS.build(cfg.model).eval()
    tokens = []
    model.backbone.layers[0].register_forward_hook(
        lambda _, args, outputs: tokens.append(outputs.shape[1])
    )
    with torch.no_grad():
        assert model(torch.rand(1, 3, canvas, canvas)).shape == (1, 10)
    assert tokens == [17]  # 4 x 4 and the class token
    depth = len(model.backbone.layers)
    if name in ('psvit', 'iters1'):
        depth += model.backbone.sampler.num_iters
    assert depth == 8


def test_share_of_points_inside_the_box():
    box = [10, 20, 30, 40]
    start = [[10, 20], [29.9, 39.9], [30, 25], [15, 40]]  # the first two are inside
    moved = [[20, 30], [-50, 30], [12, 19.9], [25, 25]]  # the first and the last
    other = [[[1, 1]] * 4, [[0, 0]] * 3 + [[5, 0]]]
    shares = measure.inside_shares(
        np.array([[start, moved], other], float), np.array([box, [0, 0, 2, 2]])
    )
    # Two of four and four of four; two of four and three of four
    assert shares == pytest.approx([6 / 8, 5 / 8])


@pytest.fixture
def script(tmp_path):
    """Write a Python script."""

    def write(name: str, code: str) -> Path:
        path = tmp_path / f'{name}.py'
        path.write_text(code)
        return path

    return write


def test_failed_run_is_told_with_its_log(script, tmp_path, capsys):
    commands = run.Commands()
    bad = script('bad', 'print("why"); raise SystemExit(3)')

    def succeed() -> str:
        commands.run(tmp_path / 'good.log', script('good', 'print(1)'))
        return '92 %'

    calls = {'bad': partial(commands.run, tmp_path / 'bad.log', bad), 'good': succeed}
    assert run.do_all(calls, 1, commands, before=2) == 1
    bad, good = capsys.readouterr().out.strip().split('\n')
    log = tmp_path / 'bad.log'
    assert bad == f'[3 of 4] bad: error: bad.py ended with code 3, see {log}'
    assert good == '[4 of 4] good: 92 %'
    assert log.read_text() == 'why\n'


def test_interruption_stops_all_commands(script, tmp_path):
    """However many run side by side, and none that waits is begun."""
    commands = run.Commands()
    code = 'import os, time; print(os.getpid(), flush=True); time.sleep(600)'
    logs = [tmp_path / f'{number}.log' for number in range(2)]
    sleep = script('sleep', code)

    def interrupt() -> None:
        while not all(log.exists() and log.read_text() for log in logs):
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGINT)
        commands.run(tmp_path / 'third.log', sleep)

    calls = {log.name: partial(commands.run, log, sleep) for log in logs}
    calls |= {'interrupt': interrupt}
    calls |= {'waiting': partial(commands.run, tmp_path / 'waiting.log', sleep)}
    # In the background of a shell, the signal is ignored.
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            run.do_all(calls, 3, commands)
    finally:
        signal.signal(signal.SIGINT, handler)
    assert not (tmp_path / 'waiting.log').exists()
    for log in logs:
        with pytest.raises(ProcessLookupError):
            os.kill(int(log.read_text()), 0)


class Tool:
    """The command in a folder of its own; table e, of two networks."""

    def __init__(self, folder: Path) -> None:
        self.out, self.work = folder / 'out', folder / 'work'
        options = ['--only', 'e', '--seeds', '1']
        options += ['--steps', '6', '--num-train', '64', '--num-val', '40']
        options += [
            '--out',
            self.out,
            '--work-dir',
            self.work,
            '--data',
            folder / 'data',
        ]
        self.command = [str(each) for each in (PROJECT / 'run.py', *options)]

    def run(self, *args: str) -> str:
        """Run it in this process; return what it prints."""
        printed, handler = io.StringIO(), signal.getsignal(signal.SIGTERM)
        try:
            with (
                mock.patch.object(sys, 'argv', [*self.command, *args]),
                contextlib.redirect_stdout(printed),
            ):
                run.main()
        finally:
            signal.signal(signal.SIGTERM, handler)
        return printed.getvalue()

    def read(self, name: str) -> dict:
        return json.loads((self.out / 'results' / f'{name}.json').read_bytes())


@pytest.fixture(scope='module')
def interrupted(tmp_path_factory) -> tuple[Tool, str]:
    """The command, and what it wrote until it was interrupted in a training.

    The other network has a result already, from elsewhere.
    """
    tool = Tool(tmp_path_factory.mktemp('miniature'))
    shared = plan.Run(plan.Training('shared'), 0, BUDGET)
    result = json.loads((PROJECT / 'results/shared_seed0.json').read_bytes())
    result['settings'] = shared.settings()
    (tool.out / 'results').mkdir(parents=True)
    (tool.out / 'results/shared_seed0.json').write_text(json.dumps(result))
    process = subprocess.Popen(
        [sys.executable, *tool.command],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        # A test run in the background of a shell has it ignored, and so would this.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    while not list(tool.work.rglob('last_checkpoint')):
        assert process.poll() is None, process.stdout.read()
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    output = process.communicate()[0]
    assert process.returncode == 130, output
    return tool, output


@pytest.fixture(scope='module')
def finished(interrupted) -> tuple[Tool, str]:
    """The command, and what it wrote when it was called again."""
    tool, _ = interrupted
    return tool, tool.run()


def test_interrupted_run_is_continued(interrupted, finished):
    tool, output = interrupted
    assert 'stopped; the same command continues' in output
    assert 'Traceback' not in output
    tool, output = finished
    (log,) = tool.work.rglob('psvit_seed0/output.log')
    assert len(re.findall(r'resumed epoch: 0, iter: [1-6]\b', log.read_text())) == 1
    assert re.search(r'\[2 of 2\] psvit_seed0: [\d.]+ %, at half [\d.]+ %', output)
    assert not list(tool.work.rglob('shared*'))


def test_result_and_page(finished):
    tool, _ = finished
    result = tool.read('psvit_seed0')
    curve = dict(result['curve'])
    assert list(curve) == [1, 2, 3, 4, 5, 6]
    assert result['accuracy'] == {'half': curve[3], 'end': curve[6]}
    assert curve[6] % 2.5 == pytest.approx(0, abs=1e-4)  # of 40 images
    assert len(result['inside']) == 4
    assert result['parameters'] == 366_768
    # The last validation while training agrees with the measure afterwards.
    (log,) = tool.work.rglob('psvit_seed0/output.log')
    logged = re.findall(r'accuracy/top1: ([\d.]+)', log.read_text())[-1]
    assert curve[6] == pytest.approx(float(logged), abs=1e-3)
    # Published, and the same wherever the run was.
    assert str(tool.out.parent) not in json.dumps(result)

    page = (tool.out / 'README.md').read_text()
    half, end = result['accuracy'].values()
    assert f'| 366,768 | {half:.1f} | {end:.1f} | 1 of 3 |' in page
    assert f'n8.py) | {report.MISSING} | {report.MISSING} | 0 of 1 |' in page
    for picture in ('points', 'curves'):
        assert (tool.out / f'{picture}.png').read_bytes().startswith(b'\x89PNG')


def test_finished_runs_are_left_alone(finished):
    """And so is what a person wrote into the page."""
    tool, _ = finished

    def times() -> dict:
        paths = (*(tool.out / 'results').iterdir(), *tool.work.rglob('*'))
        return {path: path.stat().st_mtime_ns for path in paths}

    page = tool.out / 'README.md'
    text = page.read_text().replace('<!-- b -->', 'The points find it.\n\n<!-- b -->')
    page.write_text(text.replace('| 1 of 3 |', '| 7 of 3 |'))
    before = times()
    assert tool.run() == f'page: {page}\n'
    assert times() == before
    assert page.read_text() == text


def test_results_of_other_settings_stop_it(finished):
    tool, _ = finished
    with pytest.raises(SystemExit) as error:
        tool.run('--steps', '30')
    assert 'psvit_seed0.json: steps was 6, now 30' in str(error.value)
