# Copyright (c) mmpsvit contributors.
"""projects/miniature: trainings in memory are those of tools/train.py; its tables."""

import dataclasses
import importlib
import subprocess
import sys
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from mmengine.runner import Runner

pytest.importorskip('sklearn')

ROOT = Path(__file__).parents[2]
PROJECT = ROOT / 'projects' / 'miniature'
with mock.patch.object(sys, 'path', [str(PROJECT), *sys.path]):
    trainer, looking, report = map(
        importlib.import_module, ('trainer', 'looking', 'looking_report')
    )

SIZES = dict(num_train=40, num_val=20)


@pytest.fixture(scope='module')
def images():
    return trainer.make_images(dataclasses.replace(looking.settings_of(96), **SIZES))


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """The same images on disk."""
    folder = tmp_path_factory.mktemp('data') / 'digits'
    script = ROOT / 'tools/dataset_converters/make_cluttered_digits.py'
    sizes = [f'--{key.replace("_", "-")}={value}' for key, value in SIZES.items()]
    subprocess.run([sys.executable, script, folder, *sizes], check=True)
    return folder


@pytest.mark.parametrize('network', ['slow', 'elastic', 'vit_stem'])
def test_steps_are_those_of_the_runner(network, images, folder, tmp_path):
    """Weights, optimizer, schedule, clipping, order of images, numbers of points."""
    cfg = looking.Training(network).config()
    cfg.train_cfg.update(max_iters=4, val_interval=4)
    cfg.param_scheduler[0].end = 2
    for split in ('train', 'val', 'test'):
        loader = cfg[f'{split}_dataloader']
        loader.update(batch_size=8, num_workers=0, persistent_workers=False)
        loader.dataset.data_root = str(folder)
    cfg.update(work_dir=str(tmp_path), randomness=dict(seed=3), log_level='WARNING')
    if network == 'elastic':
        cfg.default_hooks.elastic = dict(type='mmpsvit.ElasticPointsHook')
    ours = trainer.Trainer(cfg, 3, images)
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
@pytest.mark.parametrize('network', ['slow', 'elastic'])
def test_graphs_take_the_steps_of_the_cpu(network, images):
    cfg = looking.Training(network).config()
    cfg.train_cfg.max_iters = 24
    cfg.param_scheduler[0].end = 2
    cfg.train_dataloader.batch_size = 8
    weights = []
    for device in ('cpu', 'cuda'):
        there = {split: each.to(torch.device(device)) for split, each in images.items()}
        ours = trainer.Trainer(cfg, 3, there)
        trainer.train_together([ours], 1)
        weights.append(ours.model.cpu().state_dict())
    assert any(not isinstance(graph, int) for graph in ours.graphs.values())
    for name, value in weights[0].items():
        torch.testing.assert_close(weights[1][name], value, atol=2e-3, rtol=0.02)


def test_fixed_parameters_do_not_move(images):
    cfg = looking.Training('shift').config()
    cfg.train_cfg.max_iters = 2
    cfg.train_dataloader.batch_size = 8
    ours = trainer.Trainer(cfg, 0, images)
    (curve,) = trainer.train_together([ours], 1)
    for layer in ours.model.backbone.sampler.offset_layers:
        assert not layer.weight.any() and layer.bias.any()
    assert curve[-1]['drift'][-1] == pytest.approx(1, abs=0.01)


def test_grid_that_moves_with_the_mean_is_the_reference():
    """Two images whose points move alike, and a third of the way each by itself."""
    start = np.array([[0.0, 0.0], [10.0, 10.0]])
    moved = np.stack([start, start])
    moved += [5, 0]
    moved[1, 1] += [0, 30]
    trajectories = np.stack([np.stack([start, points]) for points in moved])
    boxes = np.array([[4, 0, 6, 1], [0, 0, 1, 1]])
    found = trainer.where_points_are(trajectories, boxes)
    assert found['inside'] == [0.25, 0.25]
    # The common shift is (5, 7.5): no point of the grid is in a box any more.
    assert found['shifted'] == [0.25, 0.0]
    # The first point always moves by (5, 0), the second on average by (5, 15).
    assert found['static'] == [0.25, 0.25]
    assert found['drift'][0] is None and 0 < found['drift'][1] < 1


def test_tables_are_those_of_the_results():
    results = report.by_training(report.read_results())
    page = (PROJECT / 'looking.md').read_text()
    for make in (report.controls, report.where, report.over_time):
        assert make(results) in page
    assert report.elastic(results) in (ROOT / 'docs/elastic.md').read_text()


def test_difference_pairs_the_seeds():
    ours, theirs = {0: 90.0, 1: 94.0, 7: 10.0}, {0: 89.0, 1: 91.0, 2: 50.0}
    assert report.format_difference(ours, theirs) == '+2.0 ± 1.0'


def test_best_rate_needs_all_rates():
    def result(lr: float, accuracy: float) -> dict:
        run = looking.Run(looking.Training('vit', lr=lr), looking.RATES_SEED)
        return {**run.key(), 'curve': [{'accuracy': accuracy}]}

    results = [result(lr, 10 * lr) for lr in looking.RATES]
    assert looking.best_rate('vit', results) == max(looking.RATES)
    everything = [
        {**each, 'network': network}
        for network in (*looking.LONG, *looking.COST)
        for each in results
    ]
    long = looking.Run(looking.Training('vit', lr=2e-3, length=5), 0)
    everything.append({**long.key(), 'curve': [{'accuracy': 77.0}]})
    trained = report.by_training(everything)
    assert '| ViT | 0.0 | 0.0 | 0.0 | 0.0 |' in report.rates(trained)
    # Seeds of which the rate was chosen do not count.
    assert '| ViT | 2e-3 |  | 0 | 77.0 | 1 |' in report.at_best_rates(trained)
    with pytest.raises(SystemExit, match=r'first looking\.py --only'):
        looking.best_rate('vit', results[1:])
