# Copyright (c) mmpsvit contributors.
"""The plan of the miniature reproduction: which runs there are, and their configs."""

import copy
import functools
import importlib
import math
import re
import sys
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, init_default_scope
from mmpretrain.structures import DataSample

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / 'tools'))
plan = importlib.import_module('miniature.plan')

STEPS = 1000
load_config = functools.cache(plan.load_config)


def test_order_of_the_runs():
    """A part of the runs is useful already: seed 0 of a, b, c, e and h is first."""
    runs = plan.plan_runs(plan.LETTERS, None, plan.Budget())
    names = [run.name for run in runs]
    assert len(names) == len(set(names)) == 21 + 4 + 4 + 12
    main = ['psvit', 'vit', 'vit_same_stem', 'iters1']
    first = [*main, 'iters2', 'iters6', 'shared']
    assert names[:7] == [f'{name}_seed0' for name in first]
    assert names[7:11] == [f'{name}_lr1e-3_seed0' for name in main]
    assert names[11:25] == [f'{name}_seed{seed}' for seed in (1, 2) for name in first]
    assert names[25:29] == ['n3_seed0', 'n5_seed0', 'n6_seed0', 'n8_seed0']
    assert {run.point.canvas for run in runs[:29]} == {64}
    assert {run.point.canvas for run in runs[29:]} == {96, 128, 160}


def test_seeds_that_are_asked_for():
    runs = plan.plan_runs(['h', 'd'], 2, plan.Budget())
    names = [run.name for run in runs]
    assert len(names) == 2 * 4 + 2 * 5
    assert names[3:5] == ['iters1_lr1e-3_seed0', 'psvit_lr1e-3_seed1']


def test_clutter_has_the_same_density_on_each_canvas():
    density = [plan.num_clutter(canvas) / canvas**2 for canvas in plan.CANVASES]
    assert density == pytest.approx([density[0]] * 4, rel=1e-2)


def test_config_alone_has_what_the_runs_have(monkeypatch):
    for knob in plan.knobs(plan.Point('psvit'), 1, Path()):
        monkeypatch.delenv(knob, raising=False)
    cfg = Config.fromfile(ROOT / plan.CONFIGS / 'psvit.py')
    assert (cfg.lr, cfg.canvas) == (plan.LR, plan.CANVASES[0])
    assert cfg.max_iters == plan.Budget().steps
    demonstration = Config.fromfile(ROOT / 'configs/cluttered_digits/psvit.py')
    assert demonstration.lr == plan.LR


@pytest.mark.parametrize('name', plan.MAIN)
def test_learning_rate_alone_is_changed(name):
    point = plan.Point(name, lr=plan.HIGH_LR)
    base = load_config(plan.Point(name), STEPS)
    cfg = copy.deepcopy(load_config(point, STEPS))
    assert base.optim_wrapper.optimizer.lr == plan.LR == 5e-4
    assert cfg.optim_wrapper.optimizer.lr == 1e-3
    cfg.lr = cfg.optim_wrapper.optimizer.lr = plan.LR
    assert cfg.to_dict() == base.to_dict()
    assert plan.recipe_of(point, STEPS) != plan.recipe_of(plan.Point(name), STEPS)


@pytest.mark.parametrize(
    ('name', 'canvas'),
    [
        *((name, plan.CANVASES[0]) for name in plan.NETWORKS),
        *((name, c) for name in plan.MAIN for c in plan.CANVASES[1:]),
    ],
)
def test_networks_differ_in_what_is_compared_alone(name, canvas):
    """The same depth, data and schedule, and but for experiment d the same tokens."""
    cfg = load_config(plan.Point(name, canvas), STEPS)
    base = load_config(plan.Point('psvit', canvas), STEPS)
    for key in ('train_dataloader', 'val_dataloader', 'param_scheduler', 'train_cfg'):
        assert cfg[key] == base[key]
    assert cfg.optim_wrapper.optimizer == base.optim_wrapper.optimizer
    assert (
        cfg.train_dataloader.dataset.data_root == f'{Path("data").resolve()}/{canvas}'
    )

    init_default_scope('mmpretrain')
    backbone = MODELS.build(cfg.model).backbone
    if name == 'vit':
        depth, tokens = len(backbone.layers), backbone.pos_embed.shape[1] - 1
    else:
        sampler = backbone.sampler
        depth = sampler.num_iters + len(backbone.layers)
        tokens = math.prod(sampler.num_points)
    assert depth == 8
    assert tokens == (int(name[1:]) ** 2 if re.fullmatch(r'n\d', name) else 16)
    if name == 'vit_same_stem':
        # The patches cover the whole canvas.
        assert sampler.point_stride * 4 == canvas


@pytest.mark.parametrize('name', plan.NETWORKS)
def test_networks_can_be_trained(name):
    """One step; embeddings that are learned have no weight decay in any network."""
    cfg = load_config(plan.Point(name), STEPS)
    init_default_scope('mmpretrain')
    model = MODELS.build({'data_preprocessor': cfg.data_preprocessor, **cfg.model})
    optimizer = build_optim_wrapper(model, copy.deepcopy(cfg.optim_wrapper))
    decay = {
        parameter: group['weight_decay']
        for group in optimizer.param_groups
        for parameter in group['params']
    }
    decayed = {name for name, each in model.named_parameters() if decay[each]}
    assert 'head.layers.head.weight' in decayed
    assert not any(re.search('embed$|cls_token|norm|bias', name) for name in decayed)

    before = model.head.layers.head.weight.clone()
    images = torch.randint(256, (2, 3, 64, 64), dtype=torch.uint8)
    samples = [DataSample().set_gt_label(label) for label in (3, 7)]
    losses = model.train_step({'inputs': images, 'data_samples': samples}, optimizer)
    assert math.isfinite(losses['loss'].item())
    assert not torch.equal(model.head.layers.head.weight, before)
