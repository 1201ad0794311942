# Copyright (c) mmpsvit contributors.
"""Every config builds and takes a training step; recipes, schedules, and children."""

import argparse
import functools
import inspect
import math
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from mmengine.config import Config, DictAction
from mmengine.model import BaseModel
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, PARAM_SCHEDULERS, Registry, init_default_scope
from mmengine.runner import Runner
from mmpretrain.structures import DataSample

import mmpsvit.registry  # Lets MMEngine find `mmpsvit::`.
from mmpsvit import PSViT

ROOT = Path(__file__).parent.parent
CONFIGS = ROOT / 'configs'
ALL_NAMES = sorted(
    str(path.relative_to(CONFIGS))
    for path in CONFIGS.rglob('*.py')
    if '_base_' not in path.parts
)
# Detectors and segmentors have tests of their own.
NAMES = [n for n in ALL_NAMES if not re.search('mm(det|seg)/|retinanet', n)]
# Names that act through what is made of them: pipelines are there to be taken from, as
# `_base_.train_pipeline`; the others are MMPretrain's.
PARTS = ('pipeline', 'train_pipeline', 'test_pipeline')
PARTS += ('dataset_type', 'bgr_mean', 'bgr_std', 'vis_backends')


def load(name: str) -> Config:
    cfg = Config.fromfile(CONFIGS / name)
    init_default_scope(cfg.default_scope)
    return cfg


def build(cfg: Config) -> BaseModel:
    return MODELS.build({'data_preprocessor': cfg.data_preprocessor, **cfg.model})


@functools.cache
def recipe(name: str) -> tuple[Config, BaseModel]:
    """A config of ImageNet and its model, for tests that change neither."""
    cfg = load(f'psvit/{name}.py')
    return cfg, build(cfg)


# What has taken a training step.
STEPPED = set()


@pytest.mark.parametrize('name', NAMES)
def test_config_takes_a_training_step(name):
    """On small images: no weight depends on their size or the number of points."""
    cfg = load(name)
    # A name at the top that no runner reads misleads: to set it changes nothing.
    assert set(cfg) <= {*inspect.signature(Runner).parameters, *PARTS}
    backbone, neck = cfg.model.backbone, cfg.model.get('neck', {})
    for part in (backbone.get('sampler', {}), neck):
        if 'num_points' in part:
            part.num_points = 4
    # Of two images, both may skip a layer by chance, which then has no gradient.
    for part in (backbone, neck):
        if 'drop_path_rate' in part:
            part.drop_path_rate = 0.0
    keys = ('default_scope', 'model', 'data_preprocessor', 'optim_wrapper')
    content = repr([cfg[key] for key in keys])
    if content in STEPPED:
        return
    model = build(cfg)
    model.init_weights()
    optim_wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
    before = {key: value.clone() for key, value in model.named_parameters()}
    num_classes = cfg.model.head.num_classes
    torch.manual_seed(0)
    data = dict(
        inputs=[torch.randint(0, 255, (3, 64, 64), dtype=torch.uint8)] * 2,
        data_samples=[DataSample().set_gt_label(i % num_classes) for i in range(2)],
    )
    losses = model.train().train_step(data, optim_wrapper)
    assert losses['loss'].isfinite()
    assert losses['loss'].item() == pytest.approx(math.log(num_classes), rel=0.2)
    centered = cfg.model.get('backbone', {}).get('sampler', {}).get('center_offsets')
    for key, value in model.named_parameters():
        # Offsets without their mean do not depend on a bias.
        if not (centered and 'offset_layers' in key and key.endswith('bias')):
            assert not torch.equal(value, before[key]), key
    STEPPED.add(content)


@pytest.mark.parametrize(
    ('name', 'drop', 'mixup', 'erases', 'decay'),
    [('b14', 0.1, 0.2, False, 0.05), ('ti14', 0.0, 0.8, True, 0.03)],
)
def test_recipe(name, drop, mixup, erases, decay):
    """The values in which the official code's two recipes differ, and the shared."""
    cfg, model = recipe(name)
    layer = model.backbone.layers[-1]
    assert layer.attn.proj_drop.p == drop
    assert layer.attn.out_drop.drop_prob == pytest.approx(0.1)
    augments = model.data_preprocessor.batch_augments
    assert [a.alpha for a in augments.augments[:2]] == [mixup, 1.0]
    assert augments.probs[:2] == [0.5, 0.5]
    pipeline = cfg.train_dataloader.dataset.pipeline
    assert any(t.type == 'RandomErasing' for t in pipeline) == erases
    crops, augment = pipeline[1], next(t for t in pipeline if t.type == 'RandAugment')
    assert [crop[0].crop_ratio_range for crop in crops.transforms] == [(0.08, 1.0)] * 2
    assert (augment.num_policies, augment.magnitude_level) == (2, 9)
    assert augment.magnitude_std == 0.5
    assert model.head.loss_module.label_smooth_val == 0.1
    assert cfg.optim_wrapper.optimizer.weight_decay == decay
    assert cfg.optim_wrapper.optimizer.betas == (0.9, 0.999)
    assert 'clip_grad' not in cfg.optim_wrapper
    assert cfg.train_dataloader.batch_size * 8 == cfg.auto_scale_lr.base_batch_size
    (ema,) = cfg.custom_hooks
    assert (ema.type, ema.ema_type) == ('EMAHook', 'mmpsvit.ForeachEMA')
    assert (ema.momentum, ema.update_buffers) == (4e-5, True)
    resize, crop = cfg.test_dataloader.dataset.pipeline[1:3]
    assert (resize.scale, resize.interpolation) == (256, 'bicubic')
    assert crop.crop_size == 224


def test_recipe_of_fine_tuning():
    """DeiT's practice, as its author gives it."""
    cfg = load('psvit/transfer/b14_cifar10.py')
    optimizer = cfg.optim_wrapper.optimizer
    assert (optimizer.type, optimizer.lr, optimizer.weight_decay) == ('SGD', 0.01, 1e-4)
    assert (optimizer.momentum, optimizer.nesterov) == (0.9, True)
    assert cfg.train_dataloader.batch_size * 8 == cfg.auto_scale_lr.base_batch_size
    assert cfg.auto_scale_lr.base_batch_size == 768
    assert cfg.model.backbone.drop_path_rate == 0
    assert 'custom_hooks' not in cfg
    types = [step.type for step in cfg.train_dataloader.dataset.pipeline]
    assert types == ['RandomChoice', 'RandomFlip', 'RandAugment', 'PackInputs']


class Scalar(BaseModel):
    """A model of one number, for the sake of its learning rate."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))

    def forward(self, inputs, data_samples=None, mode='tensor'):
        return dict(loss=self.weight)


def check_learning_rates(
    cfg: Config, lr: float, warmup: int, start: float, epochs: int, work_dir: Path
) -> None:
    """One cosine over all epochs, down to 1e-5, whose first the warm-up replaces."""
    steps = 125  # per epoch
    runner = Runner(
        model=Scalar(),
        work_dir=str(work_dir),
        train_dataloader=dict(
            batch_size=1,
            num_workers=0,
            dataset=list(range(steps)),
            sampler=dict(type='DefaultSampler', shuffle=False),
        ),
        train_cfg=cfg.train_cfg,
        optim_wrapper=dict(optimizer=cfg.optim_wrapper.optimizer),
        param_scheduler=cfg.param_scheduler,
        default_scope='mmpretrain',
        experiment_name=work_dir.name,
        log_level='ERROR',
    )
    # What Runner.train does before the first iteration.
    runner._train_loop = runner.build_train_loop(runner._train_loop)
    runner.optim_wrapper = runner.build_optim_wrapper(runner.optim_wrapper)
    schedulers = runner.build_param_scheduler(runner.param_schedulers)
    group = runner.optim_wrapper.optimizer.param_groups[0]

    assert runner.max_epochs == epochs
    for epoch in range(epochs):
        cosine = 1e-5 + (lr - 1e-5) * (1 + math.cos(math.pi * epoch / epochs)) / 2
        if epoch < warmup:
            # MMEngine's warm-up ends one step early, and the two multiply.
            linear = start + (lr - start) * epoch * steps / (warmup * steps - 1)
            assert group['lr'] == pytest.approx(linear * cosine / lr, rel=1e-6), epoch
        else:
            assert group['lr'] == pytest.approx(cosine, rel=1e-6), epoch
        for _ in range(steps):
            for scheduler in schedulers:
                scheduler.step()


@pytest.mark.parametrize(
    ('name', 'lr', 'warmup', 'epochs'),
    [
        ('b14', 5e-4, 3, 300),
        ('ti14', 1e-3, 5, 300),
        ('transfer/b14_cifar10', 0.01, 3, 1000),
    ],
)
def test_learning_rate_of_every_epoch(name, lr, warmup, epochs, tmp_path):
    cfg = load(f'psvit/{name}.py')
    check_learning_rates(cfg, lr, warmup, 1e-6, epochs, tmp_path)


@pytest.mark.parametrize('name', ['b14', 'ti14'])
def test_weight_decay_groups(name):
    """No decay on 1-D parameters, biases and the class token; on all others."""
    cfg, model = recipe(name)
    optimizer = build_optim_wrapper(model, cfg.optim_wrapper).optimizer
    decay = {
        id(parameter): group['weight_decay']
        for group in optimizer.param_groups
        for parameter in group['params']
    }
    assert len(decay) == len(list(model.parameters()))
    for key, parameter in model.named_parameters():
        spared = (
            parameter.ndim == 1 or key.endswith('.bias') or key.endswith('cls_token')
        )
        expected = 0 if spared else cfg.optim_wrapper.optimizer.weight_decay
        assert decay[id(parameter)] == expected, key


@pytest.mark.parametrize('name', [n for n in ALL_NAMES if re.match('mm(det|seg)/', n)])
def test_layer_wise_learning_rates_only_fall(name):
    """A base's schedule may end at a rate that suits its own SGD, and no low layer."""
    cfg = load(name)
    lr = cfg.optim_wrapper.optimizer.lr
    lowest = lr * cfg.optim_wrapper.paramwise_cfg.layer_decay_rate**15
    for settings in cfg.param_scheduler:
        if settings.type in ('ConstantLR', 'LinearLR'):  # a warm-up
            continue
        groups = [dict(params=[torch.zeros(())], lr=rate) for rate in (lr, lowest)]
        optimizer = torch.optim.SGD(groups)
        shortened = dict(settings, begin=0, end=20, optimizer=optimizer)
        scheduler = PARAM_SCHEDULERS.build(shortened)
        for _ in range(20):
            before = [group['lr'] for group in optimizer.param_groups]
            scheduler.step()
            for group, rate in zip(optimizer.param_groups, before, strict=True):
                assert group['lr'] <= rate


class Detector(torch.nn.Module):
    """What of Deformable DETR has a learning rate of its own."""

    def __init__(self):
        super().__init__()
        self.backbone = PSViT('tiny')
        self.sampling_offsets = torch.nn.Linear(2, 2)
        self.reference_points_fc = torch.nn.Linear(2, 2)
        self.bbox_head = torch.nn.Linear(2, 2)


def test_deformable_detr_moves_its_own_points_slowly():
    cfg = load('mmdet/deformable-detr_psvit-b14_16xb2-50e_coco.py')
    init_default_scope('mmpretrain')  # needs no compiled operators
    model = Detector()
    optimizer = build_optim_wrapper(model, cfg.optim_wrapper).optimizer
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    settings = {
        names[id(parameter)]: (group['lr'], group['weight_decay'])
        for group in optimizer.param_groups
        for parameter in group['params']
    }
    for name, lr in (
        ('sampling_offsets', 2e-5),
        ('reference_points_fc', 2e-5),
        ('bbox_head', 2e-4),
    ):
        assert settings[f'{name}.weight'] == pytest.approx((lr, 0.05))
        assert settings[f'{name}.bias'] == pytest.approx((lr, 0.0))


def children(tmp_path: Path) -> list[Config]:
    """What docs/configs.md shows: a child of b14, and options on the command line."""
    page = (ROOT / 'docs' / 'configs.md').read_text()
    section = page.split('## Change something')[1].split('\n## ')[0]
    (text,) = re.findall(r'```python\n(_base_.*?)```', section, re.DOTALL)
    (tmp_path / 'child.py').write_text(text)
    (command,) = re.findall(r'```shell\n(.*?)```', section, re.DOTALL)
    parser = argparse.ArgumentParser()
    parser.add_argument('config')
    parser.add_argument('--cfg-options', nargs='+', action=DictAction)
    args = parser.parse_args(shlex.split(command.replace('\\\n', ' '))[2:])
    cfg = Config.fromfile(CONFIGS / 'psvit' / 'b14.py')
    cfg.merge_from_dict(args.cfg_options)
    return [Config.fromfile(tmp_path / 'child.py'), cfg]


@pytest.mark.parametrize('index', [0, 1], ids=['child', 'command line'])
def test_documented_changes(index, tmp_path):
    cfg = children(tmp_path)[index]
    init_default_scope(cfg.default_scope)
    model = build(cfg)
    assert model.backbone.sampler.num_points == (16, 16)
    assert model.backbone.sampler.num_iters == 6
    assert len(model.backbone.layers) == 14 - 6
    assert cfg.train_dataloader.batch_size == 32
    assert cfg.optim_wrapper.optimizer.weight_decay == 0.02
    for loader in (cfg.train_dataloader, cfg.val_dataloader, cfg.test_dataloader):
        assert loader.dataset.data_root == '/data/in1k'
    assert cfg.load_from == 'weights.pth'
    check_learning_rates(cfg, 1e-4, 5, 2e-7, 100, tmp_path)


def typed_parts(part: object) -> Iterator[dict]:
    """The dicts of a config that name a type."""
    if isinstance(part, dict) and 'type' in part:
        yield part
    if isinstance(part, dict | list | tuple):
        for child in part.values() if isinstance(part, dict) else part:
            yield from typed_parts(child)


@pytest.mark.parametrize('name', ALL_NAMES)
def test_inheritance_by_package(name, tmp_path):
    """MMEngine marks inherited types without a scope as ours, but not all are."""
    child = tmp_path / 'child.py'
    child.write_text(f"_base_ = 'mmpsvit::{name}'\n")
    cfg = Config.fromfile(child)
    marked = [p for p in typed_parts(cfg.to_dict()) if p.get('_scope_') == 'mmpsvit']
    # MMEngine warns where we have no registry of that kind.
    ours = [r for r in vars(mmpsvit.registry).values() if isinstance(r, Registry)]
    for part in marked:
        assert any(registry.get(part['type']) for registry in ours), part
    # It builds the data set, of which a child may name the type without a scope.
    assert cfg.train_cfg.get('_scope_') != 'mmpsvit'
    images = [dict(inputs=torch.zeros(1))] * 512
    alone = dict(num_workers=0, persistent_workers=False, batch_sampler=None)
    for part in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
        loader = {**cfg[part], **alone, 'dataset': images}
        next(iter(Runner.build_dataloader(loader)))
