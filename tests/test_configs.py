# Copyright (c) mmpsvit contributors.
"""Every config loads, builds and takes a training step; schedules and decay."""

import math
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.model import BaseModel
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, init_default_scope
from mmengine.runner import Runner
from mmpretrain.structures import DataSample

CONFIGS = Path(__file__).parent.parent / 'configs'
NAMES = sorted(
    str(path.relative_to(CONFIGS))
    for path in CONFIGS.rglob('*.py')
    # Detectors and segmentors have tests of their own.
    if not {'_base_', 'mmdet', 'mmseg'} & set(path.parts)
    and not path.stem.startswith('retinanet')
)
PARAMETERS = {
    'ti14': 4_777_902,
    'b10': 21_344_302,
    'b12': 21_344_302,
    'b14': 21_344_302,
    'b16': 21_344_302,
    'b18': 21_344_302,
    'ti14_shared': 3_666_026,
    'b10_shared': 16_908_714,
    'b12_shared': 16_908_714,
    'b14_shared': 16_908_714,
    'b18_shared': 16_908_714,
}


def load(name: str) -> Config:
    cfg = Config.fromfile(CONFIGS / name)
    init_default_scope(cfg.default_scope)
    return cfg


def build(cfg: Config) -> BaseModel:
    return MODELS.build({'data_preprocessor': cfg.data_preprocessor, **cfg.model})


@pytest.mark.parametrize('name', NAMES)
def test_config_takes_a_training_step(name):
    cfg = load(name)
    model = build(cfg)
    model.init_weights()
    optim_wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
    before = {key: value.clone() for key, value in model.named_parameters()}
    num_classes = cfg.model.head.num_classes
    torch.manual_seed(0)
    size = cfg.get('canvas', 224)
    data = dict(
        inputs=[torch.randint(0, 255, (3, size, size), dtype=torch.uint8)] * 2,
        data_samples=[DataSample().set_gt_label(i % num_classes) for i in range(2)],
    )
    losses = model.train().train_step(data, optim_wrapper)
    assert losses['loss'].isfinite()
    assert losses['loss'].item() == pytest.approx(math.log(num_classes), rel=0.2)
    for key, value in model.named_parameters():
        assert not torch.equal(value, before[key]), key


@pytest.mark.parametrize('name', PARAMETERS)
def test_number_of_parameters(name):
    model = build(load(f'psvit/{name}.py'))
    assert sum(p.numel() for p in model.parameters()) == PARAMETERS[name]
    points = 14 if name.startswith('ti') else int(name[1:3])
    assert model.backbone.sampler.num_points == (points, points)


@pytest.mark.parametrize(
    ('name', 'drop', 'mixup', 'erases', 'decay'),
    [('b14', 0.1, 0.2, False, 0.05), ('ti14', 0.0, 0.8, True, 0.03)],
)
def test_recipe(name, drop, mixup, erases, decay):
    """The values in which the official code's two recipes differ, and the shared."""
    cfg = load(f'psvit/{name}.py')
    model = build(cfg)
    layer = model.backbone.layers[-1]
    assert layer.attn.proj_drop.p == drop
    assert layer.attn.out_drop.drop_prob == pytest.approx(0.1)
    augments = model.data_preprocessor.batch_augments
    assert [a.alpha for a in augments.augments[:2]] == [mixup, 1.0]
    assert augments.probs[:2] == [0.5, 0.5]
    pipeline = cfg.train_dataloader.dataset.pipeline
    assert any(t.type == 'RandomErasing' for t in pipeline) == erases
    assert cfg.optim_wrapper.optimizer.weight_decay == decay
    assert cfg.optim_wrapper.optimizer.betas == (0.9, 0.999)
    assert 'clip_grad' not in cfg.optim_wrapper
    assert cfg.train_cfg.max_epochs == 300
    assert cfg.train_dataloader.batch_size * 8 == cfg.auto_scale_lr.base_batch_size
    (ema,) = cfg.custom_hooks
    assert (ema.type, ema.momentum, ema.update_buffers) == ('EMAHook', 4e-5, True)
    resize, crop = cfg.test_dataloader.dataset.pipeline[1:3]
    assert (resize.scale, resize.interpolation) == (256, 'bicubic')
    assert crop.crop_size == 224


@pytest.mark.parametrize('num_points', [10, 12, 14, 16, 18, 20])
def test_ablation_of_the_points(num_points):
    model = build(load(f'psvit/ablations/n{num_points}.py'))
    assert model.backbone.sampler.num_points == (num_points, num_points)
    assert sum(p.numel() for p in model.parameters()) == PARAMETERS['b14']


@pytest.mark.parametrize('num_iters', [1, 2, 4, 6, 8, 10])
def test_ablation_of_the_iterations(num_iters):
    backbone = build(load(f'psvit/ablations/iters{num_iters}.py')).backbone
    assert backbone.sampler.num_iters == num_iters
    assert num_iters + len(backbone.layers) == 14


class Scalar(BaseModel):
    """A model of one number, for the sake of its learning rate."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))

    def forward(self, inputs, data_samples=None, mode='tensor'):
        return dict(loss=self.weight)


@pytest.mark.parametrize(
    ('name', 'lr', 'warmup'), [('b14', 5e-4, 3), ('ti14', 1e-3, 5)]
)
def test_learning_rate_of_every_epoch(name, lr, warmup, tmp_path):
    """One cosine over 300 epochs, whose first epochs the warm-up replaces."""
    steps = 1250  # per epoch; half of ImageNet's
    cfg = load(f'psvit/{name}.py')
    runner = Runner(
        model=Scalar(),
        work_dir=str(tmp_path),
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
        experiment_name=name,
        log_level='ERROR',
    )
    # What Runner.train does before the first iteration.
    runner._train_loop = runner.build_train_loop(runner._train_loop)
    runner.optim_wrapper = runner.build_optim_wrapper(runner.optim_wrapper)
    schedulers = runner.build_param_scheduler(runner.param_schedulers)
    group = runner.optim_wrapper.optimizer.param_groups[0]

    for epoch in range(300):
        cosine = 1e-5 + (lr - 1e-5) * (1 + math.cos(math.pi * epoch / 300)) / 2
        if epoch < warmup:
            linear = 1e-6 + (lr - 1e-6) * epoch / warmup
            assert group['lr'] == pytest.approx(linear, rel=1e-3), epoch
        else:
            assert group['lr'] == pytest.approx(cosine, rel=1e-6), epoch
        for _ in range(steps):
            for scheduler in schedulers:
                scheduler.step()


@pytest.mark.parametrize('name', ['b14', 'ti14'])
def test_weight_decay_groups(name):
    """No decay on 1-D parameters, biases and the class token; on all others."""
    cfg = load(f'psvit/{name}.py')
    model = build(cfg)
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
