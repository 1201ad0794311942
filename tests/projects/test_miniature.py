# Copyright (c) mmpsvit contributors.
"""projects/miniature: its networks, trainings in memory, the runner and the pages."""

import dataclasses
import importlib
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from unittest import mock

import numpy as np
import psutil
import pytest
import torch
from mmengine.registry import MODELS, init_default_scope
from mmengine.runner import Runner
from stack import NEW_TORCH

pytest.importorskip('sklearn')

ROOT = Path(__file__).parents[2]
PROJECT = ROOT / 'projects' / 'miniature'
with mock.patch.object(sys, 'path', [str(PROJECT), *sys.path]):
    plan, points, trainer, report, run = map(
        importlib.import_module, ('plan', 'points', 'trainer', 'report', 'run')
    )

SIZES = dict(num_train=40, num_val=20)
STEPS = 4


@pytest.mark.parametrize('canvas', [None, 160])
@pytest.mark.parametrize('name', plan.MAIN)
def test_networks_differ_in_what_is_compared_alone(name, canvas):
    """The same depth, number of tokens and schedule on every canvas."""
    training = plan.Training(name, canvas)
    cfg, base = training.config(), plan.Training('psvit').config()
    for key in ('train_dataloader', 'val_dataloader', 'param_scheduler', 'train_cfg'):
        assert cfg[key] == base[key]
    assert training.data['num_clutter'] == (50 if canvas else 8)
    init_default_scope('mmpretrain')
    model = MODELS.build(cfg.model).eval()
    tokens = []
    model.backbone.layers[0].register_forward_hook(
        lambda _, args, outputs: tokens.append(outputs.shape[1])
    )
    size = training.data['size']
    with torch.no_grad():
        assert model(torch.rand(1, 3, size, size)).shape == (1, 10)
    assert tokens == [17]  # 4 x 4 and the class token
    depth = len(model.backbone.layers)
    if name in ('psvit', 'iters1'):
        depth += model.backbone.sampler.num_iters
    assert depth == 8


def test_schedules_and_networks_of_the_plan():
    cfg = plan.Training('demo_centered_slow', lr=1e-3, length=5).config()
    assert cfg.train_cfg.max_iters == 4000
    assert cfg.param_scheduler[0].end == 250
    assert cfg.optim_wrapper.optimizer.lr == 1e-3
    assert cfg.optim_wrapper.paramwise_cfg.custom_keys.offset.lr_mult == 0.1
    assert cfg.model.backbone.sampler.center_offsets
    cfg = plan.Training('demo_vit_tokens', 128).config()
    assert (cfg.model.backbone.img_size, cfg.model.backbone.patch_size) == (128, 16)
    assert cfg.model.head.in_channels == 104


def small_images(training: 'plan.Training') -> dict:
    return trainer.make_images(trainer.Settings(**{**training.data, **SIZES}))


@pytest.fixture(scope='module')
def images():
    return small_images(plan.Training('demo_psvit'))


@pytest.mark.skipif(
    not NEW_TORCH, reason='the original MMEngine draws a number before the weights'
)
@pytest.mark.parametrize('network', ['demo_slow', 'demo_elastic', 'vit_same_stem'])
def test_steps_are_those_of_the_runner(network, run_here, tmp_path):
    """Weights, optimizer, schedule, clipping, order of images, numbers of points."""
    training = plan.Training(network)
    cfg, data = training.config(), {**training.data, **SIZES}
    script = 'tools/dataset_converters/make_cluttered_digits.py'
    options = [f'--{key.replace("_", "-")}={value}' for key, value in data.items()]
    run_here(script, 'data', *options)
    cfg.train_cfg.update(max_iters=STEPS, val_interval=STEPS)
    cfg.param_scheduler[0].end = 2
    for split in ('train', 'val', 'test'):
        loader = cfg[f'{split}_dataloader']
        loader.update(batch_size=8, num_workers=0, persistent_workers=False)
        loader.dataset.data_root = str(tmp_path / 'data')
    cfg.update(
        work_dir=str(tmp_path / 'run'), randomness=dict(seed=3), log_level='WARNING'
    )
    if network == 'demo_elastic':
        cfg.default_hooks.elastic = dict(type='mmpsvit.ElasticPointsHook')
    ours = trainer.Trainer(cfg, 3, small_images(training))
    (curve,) = trainer.train_together([ours], 2)
    runner = Runner.from_cfg(cfg)
    runner.train()
    weights = runner.model.state_dict()
    for name, value in ours.model.state_dict().items():
        torch.testing.assert_close(value, weights[name], atol=2e-5, rtol=0)
    assert [point['step'] for point in curve] == [2, 4]
    scalars = runner.message_hub.get_scalar('val/accuracy/top1').current()
    assert curve[-1]['accuracy'] == pytest.approx(scalars)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs CUDA')
@pytest.mark.parametrize('network', ['demo_slow', 'demo_elastic'])
def test_graphs_take_the_steps_of_the_cpu(network, images, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, 'allow_tf32', False)
    cfg = plan.Training(network).config()
    cfg.train_cfg.max_iters = 24
    cfg.param_scheduler[0].end = 2
    cfg.train_dataloader.batch_size = 8
    weights = []
    for device in ('cpu', 'cuda'):
        there = {split: each.to(torch.device(device)) for split, each in images.items()}
        ours = trainer.Trainer(cfg, 3, there)
        trainer.train_together([ours], 1)
        # Not the statistics: those of the first BatchNorm add up rounding.
        weights.append(dict(ours.model.cpu().named_parameters()))
    assert any(not isinstance(graph, int) for graph in ours.graphs.values())
    for name, value in weights[0].items():
        torch.testing.assert_close(weights[1][name], value, atol=2e-3, rtol=0.02)


def test_fixed_parameters_do_not_move(images):
    cfg = plan.Training('demo_shift').config()
    cfg.train_cfg.max_iters = 2
    cfg.train_dataloader.batch_size = 8
    ours = trainer.Trainer(cfg, 0, images)
    (curve,) = trainer.train_together([ours], 1)
    for layer in ours.model.backbone.sampler.offset_layers:
        assert not layer.weight.any() and layer.bias.any()
    assert curve[-1]['drift'][-1] == pytest.approx(1, abs=0.01)


def test_share_of_points_inside_the_box():
    box = [10, 20, 30, 40]
    start = [[10, 20], [29.9, 39.9], [30, 25], [15, 40]]  # the first two are inside
    moved = [[20, 30], [-50, 30], [12, 19.9], [25, 25]]  # the first and the last
    other = [[[1, 1]] * 4, [[0, 0]] * 3 + [[5, 0]]]
    shares = points.inside_shares(
        np.array([[start, moved], other], float), np.array([box, [0, 0, 2, 2]])
    )
    # Two of four and four of four; two of four and three of four
    assert shares == pytest.approx([6 / 8, 5 / 8])


def test_grid_that_moves_with_the_mean_is_the_reference():
    """Two images whose points move alike, and a third of the way each by itself."""
    start = np.array([[0.0, 0.0], [10.0, 10.0]])
    moved = np.stack([start, start])
    moved += [5, 0]
    moved[1, 1] += [0, 30]
    trajectories = np.stack([np.stack([start, points]) for points in moved])
    boxes = np.array([[4, 0, 6, 1], [0, 0, 1, 1]])
    found = points.where_points_are(trajectories, boxes)
    assert found['inside'] == [0.25, 0.25]
    # The common shift is (5, 7.5): no point of the grid is in a box any more.
    assert found['shifted'] == [0.25, 0.0]
    # The first point always moves by (5, 0), the second on average by (5, 15).
    assert found['static'] == [0.25, 0.25]
    assert found['drift'][0] is None and 0 < found['drift'][1] < 1


def planned() -> list['plan.Run']:
    """All runs; what depends on results has those that there are."""
    results = plan.read_results(PROJECT / 'results')
    experiments = plan.EXPERIMENTS.values()
    return [*dict.fromkeys(each for runs in experiments for each in runs(results))]


def test_every_network_of_the_plan_is_built():
    """On all of its canvases."""
    init_default_scope('mmpretrain')
    trainings = {plan.Training(name) for name in plan.NETWORKS}
    trainings |= {
        plan.Training(e.training.network, e.training.canvas) for e in planned()
    }
    for training in trainings:
        model = MODELS.build(training.config().model).eval()
        size = training.data['size']
        with torch.no_grad():
            assert model(torch.rand(1, 3, size, size)).shape == (1, 10)


SHOWN = {
    'README.md': {*'abcdegh', 'inside', 'runs'},
    'looking.md': {
        *('controls', 'where', 'time', 'rates', 'long', 'canvas', 'looking runs'),
    },
    'elastic.md': {'elastic', 'elastic, longer'},
}


def test_pages_show_the_results():
    results = plan.read_results(PROJECT / 'results')
    for page, blocks in report.PAGES.items():
        text = page.read_text()
        shown = {name for name in blocks if f'<!-- {name} -->' in text}
        assert shown >= SHOWN[page.name]
        made = {name: block(results) for name, block in blocks.items()}
        assert report.fill_in(text, made) == text
    known = {dataclasses.replace(each.training, lr=0) for each in planned()}
    assert known >= {dataclasses.replace(each, lr=0) for each in results}
    for name in report.LETTERS:
        for each in plan.EXPERIMENTS[name]({}):
            assert each.seed in results[each.training]


def test_what_is_written_by_hand_stays():
    page = 'Before.\n<!-- a -->\nold\n<!-- end of a -->\nAfter.\n'
    new = report.fill_in(page, {'a': 'new', 'b': 'not here'})
    assert new == page.replace('old', 'new')


def test_groups_share_a_data_set():
    of = plan.Run
    small, demo = (plan.Training(name) for name in ('psvit', 'demo_psvit'))
    large, long = plan.Training('psvit', 96), plan.Training('psvit', length=5)
    runs = [of(small, 0), of(demo, 0), of(long, 0), of(large, 0), of(small, 1)]
    assert run.groups_of(runs, 2) == [
        [of(small, 0), of(long, 0)], [of(demo, 0)], [of(large, 0)], [of(small, 1)]
    ]  # fmt: skip


def test_difference_pairs_the_seeds():
    ours, theirs = {0: 90.0, 1: 94.0, 7: 10.0}, {0: 89.0, 1: 91.0, 2: 50.0}
    assert report.format_difference(ours, theirs) == '+2.0 ± 1.0'


def test_long_trainings_are_at_the_best_rate():
    def result(accuracy: float) -> dict:
        return {'curve': [{'step': 1, 'accuracy': accuracy}]}

    results = {
        plan.Training('demo_vit', lr=lr): {plan.RATES_SEED: result(1e4 * lr)}
        for lr in plan.RATES
    }
    best = plan.at_best_rate('demo_vit', results, length=5)
    assert best == plan.Training('demo_vit', lr=max(plan.RATES), length=5)
    results[best] = {0: result(77.0)}
    assert '| ViT | 2.5 | 5.0 | 10.0 | 20.0 |' in report.rates(results)
    # The seed that rates are chosen by does not count.
    assert '| ViT | 2e-3 |  |  | 77.0 | 1 |  | 77.0 |  |' in report.long(results)
    assert '| ViT | 1e-3 |' not in report.long(results)
    with pytest.raises(SystemExit, match=r'--only rates \(demo_psvit has none\)'):
        plan.EXPERIMENTS['long'](results)


# The runner with a small plan, also in the processes that it starts.
SMALL = f"""
import sys
sys.path.insert(0, {str(PROJECT)!r})
import plan, run
for data in plan.DATA.values():
    data.update({SIZES})
plan.EXPERIMENTS.update(
    a=lambda _: plan.runs(plan.trainings(['psvit', 'shared'], length=0.004), [0, 1]),
    elastic=lambda _: plan.runs(plan.trainings(['demo_elastic'], length=0.002), [0]),
)
if __name__ == '__main__':
    run.main()
"""


def test_interrupted_runs_are_continued(tmp_path):
    (tmp_path / 'small.py').write_text(SMALL)
    out, weights = tmp_path / 'out', tmp_path / 'weights'
    command = [sys.executable, tmp_path / 'small.py', '--only', 'a', 'elastic']
    command += ['--device', 'cpu', '--out', out]
    process = subprocess.Popen(
        [*command, '--jobs', '2'],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        # A test run in the background of a shell has it ignored, and so would this.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    lines = iter(process.stdout.readline, '')
    first = next(line for line in lines if line.startswith('a: '))
    assert re.fullmatch(r'a: \w+, seed \d: [\d.]+ %\n', first)
    children = psutil.Process(process.pid).children(recursive=True)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    rest = process.communicate()[0]
    assert process.returncode == 1
    assert rest.endswith('\nstopped; the same command goes on\n')
    assert 'Traceback' not in rest
    _, alive = psutil.wait_procs(children, timeout=60)
    assert all(each.status() == psutil.STATUS_ZOMBIE for each in alive)
    before = (out / 'cpu.jsonl').read_text()

    command += ['--jobs', '1', '--group', '2', '--save', weights]
    again = subprocess.check_output(command, text=True)
    text = (out / 'cpu.jsonl').read_text()
    assert text.startswith(before)
    lines = [*map(json.loads, text.splitlines())]
    found = {(line['network'], line['seed']): line for line in lines}
    assert len(found) == len(lines) == 5
    assert len(before.splitlines()) + again.count('seed') == len(lines)
    assert len([*weights.glob('*.pth')]) == again.count('seed')
    # Published, and the same wherever the run was.
    assert str(tmp_path) not in text
    assert found['psvit', 0]['parameters'] == 366_768
    assert found['shared', 1]['parameters'] == 241_900
    assert len(found['psvit', 1]['curve'][-1]['inside']) == 4
    assert [*found['demo_elastic', 0]['at_points']] == ['4', '5', '6', '7', '8']
    assert 'seed' not in subprocess.check_output(command, text=True)


def test_tables_of_other_results(tmp_path):
    results = (PROJECT / 'results' / 'miniature.jsonl').read_text()
    (tmp_path / 'cpu.jsonl').write_text(results)
    subprocess.run([sys.executable, PROJECT / 'report.py', tmp_path], check=True)
    tables = (tmp_path / 'tables.md').read_text()
    page = (PROJECT / 'README.md').read_text()
    configs = os.path.relpath(PROJECT / 'configs', tmp_path)
    for name in report.LETTERS:
        block = page.split(f'<!-- {name} -->')[1].split('<!--')[0]
        assert block.replace('](configs/', f']({configs}/') in tables
    assert (tmp_path / 'curves.png').read_bytes().startswith(b'\x89PNG')


def test_picture_of_the_points(images):
    cfg = plan.Training('demo_psvit').config()
    cfg.train_cfg.max_iters = 1
    ours = trainer.Trainer(cfg, 0, images)
    figure = ours.draw_points()
    assert len(figure.axes) == 6 * 4
    label = int(images['val'].labels[0])
    assert figure.axes[0].get_title().startswith(f'{label}, predicted: ')


def test_killed_process_ends_the_run(tmp_path):
    (tmp_path / 'small.py').write_text(SMALL)
    command = [sys.executable, tmp_path / 'small.py', '--only', 'a', '--device', 'cpu']
    process = subprocess.Popen(
        [*command, '--jobs', '2', '--out', tmp_path / 'out'],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    next(line for line in iter(process.stdout.readline, '') if line.startswith('a: '))
    for child in psutil.Process(process.pid).children():
        if 'spawn_main' in ' '.join(child.cmdline()):
            child.kill()
    rest = process.communicate(timeout=60)[0]
    assert process.returncode == 1 and 'the same command goes on' in rest
    assert 'Traceback' not in rest
