# Copyright (c) mmpsvit contributors.
"""The miniature reproduction: its plan, its measure, and the tool on tiny data.

One real training of a few steps, interrupted and continued: half a minute on one core.
"""

import contextlib
import importlib
import io
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from mmengine.registry import MODELS, init_default_scope
from mmengine.runner import Runner

from mmpsvit.cli import set_dataloader_defaults

pytest.importorskip('sklearn')

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / 'tools'))
reproduce_mini = importlib.import_module('reproduce_mini')
measure = importlib.import_module('miniature.measure')
plan = importlib.import_module('miniature.plan')
plots = importlib.import_module('miniature.plots')
pool = importlib.import_module('miniature.pool')
results = importlib.import_module('miniature.results')

STEPS = 20
TINY = ('--seeds', 1, '--steps', STEPS, '--num-train', 64, '--num-val', 40)
BUDGET = plan.Budget(steps=STEPS, num_train=64, num_val=40)


class Tool:
    """The tool in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.out, self.work = folder / 'out', folder / 'work'
        self.data = folder / 'data'

    def command(self, *args) -> list[str]:
        folders = ('--out', self.out, '--work-dir', self.work, '--data', self.data)
        tool = ROOT / 'tools' / 'reproduce_mini.py'
        return [str(arg) for arg in (tool, *folders, *args)]

    def run(self, *args) -> str:
        """Run the tool in this process; return what it prints."""
        printed = io.StringIO()
        handler = signal.getsignal(signal.SIGTERM)
        try:
            with (
                mock.patch.object(sys, 'argv', self.command(*args)),
                contextlib.redirect_stdout(printed),
            ):
                reproduce_mini.main()
        finally:
            signal.signal(signal.SIGTERM, handler)
        return printed.getvalue()

    def results(self) -> dict[str, dict]:
        paths = sorted((self.out / 'results').glob('*.json'))
        return {path.stem: json.loads(path.read_text()) for path in paths}


@pytest.fixture(scope='module')
def tool(tmp_path_factory) -> Tool:
    return Tool(tmp_path_factory.mktemp('miniature'))


@pytest.fixture(scope='module')
def interrupted(tool) -> str:
    """What the tool wrote until it was interrupted in the midst of a training."""
    process = subprocess.Popen(
        [sys.executable, *tool.command('--only', 'a', *TINY, '--jobs', 1)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        # A test run in the background of a shell has it ignored, and so would this.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    while not (tool.work / 'psvit_seed0/last_checkpoint').exists():
        assert process.poll() is None, process.stdout.read()
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    output = process.communicate(timeout=60)[0]
    assert process.returncode == 130, output
    assert 'Traceback' not in output
    return output


@pytest.fixture(scope='module')
def finished(tool, interrupted) -> str:
    """What the tool wrote when it was called again, with a result from elsewhere."""
    run = plan.Run(plan.Point('vit'), 0, BUDGET)
    result = {
        'run': run.name,
        'settings': run.settings(),
        'code': [results.git_state()],
        'accuracy': {'half': 40.0, 'end': 60.0},
        'curve': [[STEPS // 2, 40.0], [STEPS, 60.0]],
        'seconds_per_step': 0.1,
        'parameters': 1000,
        'inside': None,
        **measure.describe_machine(),
    }
    results.write_json(results.result_path(tool.out, run), result)
    return tool.run('--only', 'a', *TINY, '--jobs', 2)


@pytest.fixture
def no_cost(monkeypatch):
    """Do not count the operations of all networks for the page once more."""
    monkeypatch.setattr('miniature.report.analyse', lambda cfg, shape: (1, 1))


def test_interruption_leaves_no_process(tool, interrupted):
    assert 'stopped; the same command continues' in interrupted
    assert tool.results() == {}
    commands = subprocess.run(['ps', '-eo', 'args'], capture_output=True, text=True)
    assert 'train.py' not in ''.join(
        line for line in commands.stdout.split('\n') if str(tool.work) in line
    )


def test_interrupted_run_is_continued(tool, finished):
    log = (tool.work / 'psvit_seed0/output.log').read_text()
    resumed = re.findall(r'resumed epoch: 0, iter: (\d+)', log)
    assert len(resumed) == 1
    assert 0 < int(resumed[0]) < STEPS
    assert re.search(r'\[2 of 2\] psvit_seed0: [\d.]+ %, at half [\d.]+ %', finished)
    assert 'vit_seed0' in tool.results()
    assert not (tool.work / 'vit_seed0').exists()


def test_result_file(tool, finished):
    psvit = tool.results()['psvit_seed0']
    assert [step for step, _ in psvit['curve']] == list(range(2, STEPS + 1, 2))
    assert psvit['accuracy'] == {
        'half': dict(psvit['curve'])[STEPS // 2],
        'end': dict(psvit['curve'])[STEPS],
    }
    # 40 images: whole numbers of correct ones
    assert psvit['accuracy']['end'] % 2.5 == pytest.approx(0, abs=1e-4)
    assert len(psvit['inside']) == 4
    assert psvit['settings']['steps'] == STEPS
    assert psvit['settings']['lr'] == plan.LR
    assert psvit['settings']['num_clutter'] == plan.CLUTTER
    assert {'commit', 'dirty'} == set(psvit['code'][0])
    assert {'torch', 'mmengine', 'mmpsvit'} <= set(psvit['versions'])
    assert psvit['machine']['cores'] == os.cpu_count()
    # They are published, and the same wherever the run was.
    texts = [path.read_text() for path in (tool.out / 'results').iterdir()]
    for folder in (ROOT, tool.out.parent, sys.prefix):
        assert not any(str(folder) in text for text in texts)


def test_logged_accuracy_is_the_measured_one(tool, finished):
    """The last validation while training, and the measure of the last checkpoint."""
    log = (tool.work / 'psvit_seed0/output.log').read_text()
    logged = re.findall(r'accuracy/top1: ([\d.]+)', log)[-1]
    measured = tool.results()['psvit_seed0']['accuracy']['end']
    assert measured == pytest.approx(float(logged), abs=1e-3)


@pytest.mark.parametrize('name', ['vit', 'vit_same_stem'])
def test_measure_of_a_network_without_points(tool, interrupted, name):
    cfg = plan.load_config(plan.Point(name), STEPS, tool.data)
    init_default_scope(cfg.default_scope)
    model = MODELS.build({'data_preprocessor': cfg.data_preprocessor, **cfg.model})
    set_dataloader_defaults(cfg)
    loader = Runner.build_dataloader(cfg.test_dataloader)
    measured = measure.measure(model.eval(), loader)
    assert measured['inside'] is None
    assert measured['accuracy'] % 2.5 == pytest.approx(0, abs=1e-4)


def test_page(tool, finished):
    page = (tool.out / 'README.md').read_text()
    psvit, vit = tool.results().values()
    for name, result in (('PS-ViT, N = 4, n = 4', psvit), ('ViT', vit)):
        half, end = result['accuracy']['half'], result['accuracy']['end']
        row = rf'\[{re.escape(name)}\]\(\S+\) \| {half:.1f} \| {end:.1f} \| 1 of 3 \|'
        assert re.search(row, page)
    grid, *_, last = psvit['inside']
    assert re.search(
        rf'\| 64 \| {100 * grid:.2f} \| .* \| {100 * last:.2f} \| 1 \|', page
    )
    # What has not been run is not hidden.
    assert re.search(r'n8.py\) \| missing \| missing \| 0 of 1 \|', page)
    assert f'{psvit["parameters"]:,}' in page
    assert f'--steps {STEPS} --num-train 64 --num-val 40' in page
    for picture in ('points', 'curves', 'accuracy'):
        assert f']({picture}.png)' in page
        assert (tool.out / f'{picture}.png').read_bytes().startswith(b'\x89PNG')
    assert not list(tool.out.rglob('.*'))


def test_finished_runs_are_left_alone(tool, finished, no_cost):
    def times() -> dict:
        paths = (*(tool.out / 'results').iterdir(), *tool.work.rglob('*'))
        return {path: path.stat().st_mtime_ns for path in paths}

    before = times()
    interpretation = tool.out / 'interpretation.md'
    interpretation.write_text('The points find the digit.\n')
    output = tool.run('--only', 'a', *TINY)
    interpretation.unlink()
    assert output.strip().split('\n')[-1] == f'page: {tool.out / "README.md"}'
    assert '%' not in output
    assert times() == before
    page = (tool.out / 'README.md').read_text()
    assert '## What this says\n\nThe points find the digit.\n' in page


def test_results_suffice_without_work_dirs_and_data(tool, finished, no_cost, tmp_path):
    """As in a fresh clone, and with results of experiment h."""
    moved = Tool(tmp_path)
    shutil.copytree(tool.out, moved.out)
    picture = (moved.out / 'points.png').read_bytes()
    psvit, vit = tool.results().values()
    for number, point in enumerate(plan.EXPERIMENTS['h'].points[:3]):
        run = plan.Run(point, 0, BUDGET)
        result = psvit if point.network == 'psvit' else vit
        accuracy = {'half': 60 + number, 'end': 70 + number}
        result = {**result, 'settings': run.settings(), 'accuracy': accuracy}
        results.write_json(results.result_path(moved.out, run), result)

    output = moved.run('--only', 'a', *TINY)
    assert output == f'page: {moved.out / "README.md"}\n'
    assert [path.name for path in tmp_path.iterdir()] == ['out']
    assert (moved.out / 'points.png').read_bytes() == picture
    page = (moved.out / 'README.md').read_text()
    assert '](points.png)' in page
    table = page.split('## h. ')[1].split('\n## ')[0]
    rows = [row.strip('| \n').split(' | ')[1:] for row in table.split('\n| [')[1:]]
    half, end = (f'{psvit["accuracy"][when]:.1f}' for when in ('half', 'end'))
    inside = f'{100 * psvit["inside"][-1]:.2f}'
    assert rows[0] == ['5e-4', half, end, inside, '1 of 3']
    assert rows[1] == ['1e-3', '60.0', '70.0', inside, '1']
    assert rows[3] == ['1e-3', '61.0', '71.0', 'none', '1']
    assert rows[4] == ['5e-4', *['missing'] * 3, '0 of 3']
    assert rows[5] == ['1e-3', '62.0', '72.0', 'none', '1']
    assert rows[7] == ['1e-3', *['missing'] * 3, '0 of 1']

    (moved.out / 'points.png').unlink()
    moved.run('--collect-only', *TINY)
    page = (moved.out / 'README.md').read_text()
    assert 'picture of the points is missing: it needs' in page


def test_results_of_other_settings_are_refused(tool, finished):
    with pytest.raises(SystemExit) as error:
        tool.run('--only', 'a', *TINY, '--steps', 30)
    assert 'psvit_seed0.json has other settings' in str(error.value)
    assert f'steps was {STEPS}, now 30' in str(error.value)


def test_work_dir_of_other_settings_is_refused(tool, finished):
    run = plan.Run(plan.Point('psvit'), 0, plan.Budget(steps=50))
    with pytest.raises(pool.JobError, match=f'steps was {STEPS}, now 50'):
        results.WorkDir(tool.work, run).check()


@pytest.mark.parametrize(
    ('args', 'message'),
    [
        ('--only a,z', '--only: must be of a, b, c, d, e, f, g, h, long, got'),
        ('--steps 25', '--steps: must be a multiple of 10, at least 20, got 25'),
        ('--steps 10', '--steps: must be a multiple of 10, at least 20, got 10'),
        ('--seeds 0', '--seeds: must be at least 1, got 0'),
        ('--num-val 0', '--num-val: must be at least 1, got 0'),
    ],
)
def test_mistakes(args, message, monkeypatch, capsys):
    monkeypatch.setattr(sys, 'argv', ['reproduce_mini.py', *args.split()])
    with pytest.raises(SystemExit, match='2'):
        reproduce_mini.parse_args()
    assert f'error: argument {message}' in capsys.readouterr().err


def test_long_runs_need_the_controls(tmp_path):
    with pytest.raises(SystemExit, match='long runs need results of the controls'):
        Tool(tmp_path).run('--only', 'a,c,long', *TINY)
    assert list(tmp_path.iterdir()) == []


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


def test_better_control(tmp_path):
    def write(name: str, seed: int, end: float, length: int = 1) -> None:
        run = plan.Run(plan.Point(name, length=length), seed, BUDGET)
        value = {'settings': run.settings(), 'accuracy': {'half': 0, 'end': end}}
        results.write_json(results.result_path(tmp_path, run), value)

    assert results.better_control(tmp_path, BUDGET) is None
    write('iters1', 0, 60)
    assert results.better_control(tmp_path, BUDGET) is None
    write('vit_same_stem', 0, 70)
    assert results.better_control(tmp_path, BUDGET) == 'vit_same_stem'
    write('iters1', 1, 90)
    assert results.better_control(tmp_path, BUDGET) == 'iters1'
    # The long run of the other one has been done: it is kept.
    write('vit_same_stem', 0, 95, length=plan.LONG)
    assert results.better_control(tmp_path, BUDGET) == 'vit_same_stem'


def test_one_seed_has_no_deviation():
    assert math.isnan(plots.spread(np.array([50.0])))
    assert plots.spread(np.array([50.0, 54.0])) == pytest.approx(math.sqrt(8))
