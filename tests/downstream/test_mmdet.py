# Copyright (c) mmpsvit contributors.
"""Detectors of MMDetection on a PS-ViT backbone."""

import re
from pathlib import Path
from types import SimpleNamespace

import mmdet
import pytest
import torch
from mmdet.testing import demo_mm_inputs
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, init_default_scope

from mmpsvit.guard import DataHook

CONFIGS = Path(__file__).parents[2] / 'configs' / 'mmdet'
NAMES = sorted(path.stem for path in CONFIGS.glob('*.py'))


def load(name: str) -> Config:
    cfg = Config.fromfile(CONFIGS / f'{name}.py')
    init_default_scope(cfg.default_scope)
    return cfg


@pytest.mark.parametrize('name', NAMES)
def test_detector_takes_a_training_step(name):
    """Images of two odd sizes in a padded batch; whatever is trained has a gradient."""
    torch.manual_seed(0)
    cfg = load(name)
    model = MODELS.build(cfg.model).train()
    model.init_weights()
    shapes = [(3, 120, 181), (3, 97, 150)]
    data = demo_mm_inputs(2, shapes, num_classes=80, with_mask='mask' in name)
    losses = model(**model.data_preprocessor(data, True), mode='loss')
    loss, _ = model.parse_losses(losses)
    assert loss.isfinite()
    loss.backward()
    for key, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, key
            assert parameter.grad.isfinite().all(), key
    build_optim_wrapper(model, cfg.optim_wrapper).step()
    predictions = model.eval().test_step(data)
    assert all(p.pred_instances.bboxes.isfinite().all() for p in predictions)
    assert len(predictions) == 2


def test_boxes_without_classes():
    """MMDetection's RPN has one class, and takes the labels of 80 for it."""
    stock = Path(mmdet.__file__).parent / '.mim' / 'configs'
    cfg = Config.fromfile(stock / '_base_' / 'models' / 'rpn_r50_fpn.py')
    cfg.model.backbone.init_cfg = None
    init_default_scope('mmdet')
    loop = SimpleNamespace(dataloader=SimpleNamespace(dataset=[]))
    runner = SimpleNamespace(
        model=MODELS.build(cfg.model),
        train_dataloader=None,
        train_loop=loop,
        val_loop=None,
    )
    hook = DataHook()
    hook.before_train(runner)
    data = demo_mm_inputs(2, [(3, 64, 64)] * 2, num_classes=80)
    hook.before_train_iter(runner, 0, data)
    losses = runner.model(**runner.model.data_preprocessor(data, True), mode='loss')
    assert runner.model.parse_losses(losses)[0].isfinite()


@pytest.mark.parametrize('name', NAMES)
def test_only_backbone_and_channels_are_swapped(name):
    """What the shipped config changes in the model of MMDetection's config."""
    base = re.search(r"'mmdet::([^']*)'", (CONFIGS / f'{name}.py').read_text())
    if base is None:
        pytest.skip('inherits another of these configs')
    stock_configs = Path(mmdet.__file__).parent / '.mim' / 'configs'
    whole = Config.fromfile(stock_configs / base[1])
    cfg = load(name)
    # No name stays that nothing reads.
    assert set(cfg) == set(whole)
    stock, ours = whole.model, cfg.model
    changed = {key for key in ours if ours[key] != stock.get(key)} - {'_scope_'}
    allowed = {'backbone', 'neck'} | (
        {'data_preprocessor'} if 'fcos' in name else set()
    )
    assert changed == allowed
    changed = {key for key in ours.neck if ours.neck[key] != stock.neck.get(key)}
    assert changed - {'_scope_'} == {'in_channels'}
    assert ours.data_preprocessor.mean == [123.675, 116.28, 103.53]
    assert ours.data_preprocessor.bgr_to_rgb


def test_layer_decay_of_a_detector():
    cfg = load('retinanet_psvit-ti14_fpn_1x_coco')
    model = MODELS.build(cfg.model)
    optimizer = build_optim_wrapper(model, cfg.optim_wrapper).optimizer
    scales = {
        group['param_name']: group['lr_scale'] for group in optimizer.param_groups
    }
    assert set(scales) == {name for name, _ in model.named_parameters()}
    rate = cfg.optim_wrapper.paramwise_cfg.layer_decay_rate
    for name, depth in {
        'backbone.stem.conv1.weight': 0,
        'backbone.sampler.layers.3.ln1.weight': 4,
        'backbone.layers.0.ln1.weight': 5,
        'backbone.layers.7.ln1.weight': 12,
        'backbone.norm.weight': 13,
        'bbox_head.retina_cls.bias': 13,
    }.items():
        assert scales[name] == pytest.approx(rate ** (13 - depth)), name
    decays = {g['param_name']: g['weight_decay'] for g in optimizer.param_groups}
    assert decays['backbone.cls_token'] == decays['backbone.norm.weight'] == 0
    assert decays['bbox_head.retina_cls.weight'] == 0.05


@pytest.fixture(scope='module')
def classifier(tmp_path_factory):
    """The state dict of a classifier of Ti/14, and its checkpoint."""
    cfg = Config.fromfile(CONFIGS.parent / 'psvit' / 'ti14.py')
    init_default_scope(cfg.default_scope)
    torch.manual_seed(1)
    state = MODELS.build(
        dict(cfg.model, data_preprocessor=cfg.data_preprocessor)
    ).state_dict()
    path = tmp_path_factory.mktemp('classifier') / 'b14.pth'
    torch.save(dict(state_dict=state), path)
    return state, path


@pytest.mark.parametrize('way', ['child', 'command line'])
def test_documented_pretrained_weights(way, classifier, block, tmp_path, monkeypatch):
    """As docs/detection.md shows, a backbone starts from a classifier's weights."""
    state, path = classifier
    monkeypatch.chdir(path.parent)
    config = CONFIGS / 'retinanet_psvit-ti14_fpn_1x_coco.py'
    if way == 'child':
        text = block('docs/detection.md', 'Pretrained')
        child = tmp_path / 'child.py'
        child.write_text(f'_base_ = {str(config)!r}\n{text}')
        cfg = Config.fromfile(child)
    else:
        cfg = Config.fromfile(config)
        page = (CONFIGS.parents[1] / 'docs' / 'detection.md').read_text()
        options = re.findall(r'(model\.backbone\.init_cfg\.\w+)=(\S+)', page)
        cfg.merge_from_dict(dict(options))
    init_default_scope(cfg.default_scope)
    model = MODELS.build(cfg.model)
    model.init_weights()
    for key, value in model.backbone.state_dict().items():
        assert torch.equal(value, state[f'backbone.{key}']), key
