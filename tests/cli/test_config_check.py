# Copyright (c) mmpsvit contributors.
"""Configs whose parts do not fit, and remarks on those that train badly."""

import re

import pytest
from mmengine.config import Config
from mmpretrain.evaluation import Accuracy

from mmpsvit.cli.config_check import ConfigError, check_config, training_remarks

FPN = dict(type='FPN', in_channels=[384] * 4)
HEAD = dict(type='mmpsvit.PSViTClsHead')
PREPROCESSOR = dict(
    mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], bgr_to_rgb=True
)


def config(model: dict, **backbone) -> Config:
    backbone = dict(type='mmpsvit.PSViT', **backbone)
    return Config(dict(model=dict(type='RetinaNet', backbone=backbone, **model)))


@pytest.mark.parametrize(
    ('model', 'backbone'),
    [
        (dict(neck=FPN), dict(out_type='featmap')),
        (dict(neck=[FPN, dict(type='DyHead')]), dict(out_type='featmap')),
        (
            dict(neck=dict(type='ChannelMapper', in_channels=[192] * 2)),
            dict(arch='tiny', out_type='featmap', out_strides=(8, 16)),
        ),
        (dict(decode_head={}), dict(out_type='featmap')),
        (dict(head=HEAD), {}),
        (dict(head=HEAD), dict(out_type='raw')),
        (
            dict(head=HEAD, neck=dict(type='GlobalAveragePooling')),
            dict(out_type='featmap'),
        ),
    ],
)
def test_fits(model, backbone):
    check_config(config(model, **backbone))


@pytest.mark.parametrize(
    ('model', 'backbone', 'message'),
    [
        (dict(neck=FPN), {}, "must be 'featmap' for model.neck FPN, got 'cls_token'"),
        (dict(neck=[FPN]), dict(out_type='raw'), "model.neck FPN, got 'raw'"),
        (dict(rpn_head={}), {}, "must be 'featmap' for model RetinaNet, got"),
        (
            dict(neck=FPN),
            dict(out_type='featmap', out_strides=(8, 16)),
            r'in_channels of model.neck FPN must be \[384\] \* 2, one for each of '
            r'model.backbone.out_strides \(8, 16\), got \[384, 384, 384, 384\]',
        ),
        (dict(neck=FPN), dict(out_type='featmap', arch='tiny'), r'be \[192\] \* 4'),
        (
            dict(neck=FPN),
            dict(out_type='featmap', arch='huge'),
            r"model.backbone: arch must be one of .* got 'huge'",
        ),
        (
            dict(head=HEAD, neck=dict(type='mmpretrain.GlobalAveragePooling')),
            {},
            "must be 'featmap' for model.neck mmpretrain.GlobalAveragePooling",
        ),
        (
            dict(head=HEAD),
            dict(out_type='featmap'),
            r"one of \['cls_token', 'avg_featmap', 'raw'\] for model.head "
            "mmpsvit.PSViTClsHead without a neck, got 'featmap'",
        ),
    ],
)
def test_does_not_fit(model, backbone, message):
    cfg = config(model, **backbone)
    with pytest.raises(ConfigError, match=message):
        check_config(cfg)
    # Below test-time augmentation too.
    with pytest.raises(ConfigError, match=message):
        check_config(Config(dict(model=dict(type='TTA', module=cfg.model))))


def test_other_backbones_are_left_alone():
    cfg = config(dict(neck=FPN))
    cfg.model.backbone.type = 'ResNet'
    check_config(cfg)
    assert not list(training_remarks(cfg))


def test_remark_on_the_start():
    cfg = config(dict(neck=FPN, data_preprocessor=PREPROCESSOR))
    cfg.train_dataloader = dict(dataset=dict(pipeline=[dict(type='LoadImageFromFile')]))
    (remark,) = training_remarks(cfg)
    assert 'starts from scratch' in remark and 'psvit_to_mmpretrain.py' in remark
    for key, value in dict(load_from='a.pth', resume=True).items():
        assert not list(training_remarks(Config(dict(cfg, **{key: value}))))
    cfg.model.backbone.init_cfg = dict(type='Pretrained', checkpoint='a.pth')
    assert not list(training_remarks(cfg))
    # That a classifier starts from scratch is how it is trained.
    cfg = config(dict(head=HEAD, data_preprocessor=PREPROCESSOR))
    cfg.train_dataloader = dict(dataset=dict(pipeline=[dict(type='LoadImageFromFile')]))
    assert not list(training_remarks(cfg))


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        (dict(std=[1.0, 1.0, 1.0]), r'std is \[1.0, 1.0, 1.0\], not \[58.395'),
        (dict(mean=None), r'mean is None, not \[123.675'),
        (dict(bgr_to_rgb=False), 'rgb is False, not True'),
    ],
)
def test_remark_on_the_images(changes, message):
    cfg = config(dict(head=HEAD))
    loading = dict(type='mmpretrain.LoadImageFromFile')
    dataset = dict(type='RepeatDataset', dataset=dict(pipeline=[loading]))
    cfg.train_dataloader = dict(dataset=dataset)
    cfg.data_preprocessor = dict(PREPROCESSOR, **changes)
    (remark,) = training_remarks(cfg)
    assert re.search(message, remark)


def test_images_of_the_models_own_preprocessor():
    """It goes before the config's, as in MMEngine's runner."""
    loading = dict(type='LoadImageFromFile')
    cfg = config(dict(head=HEAD, data_preprocessor=PREPROCESSOR))
    cfg.train_dataloader = dict(dataset=dict(pipeline=[loading]))
    cfg.data_preprocessor = dict(PREPROCESSOR, mean=None)
    assert not list(training_remarks(cfg))
    cfg.model.data_preprocessor.mean = None
    assert 'mean is None' in next(training_remarks(cfg))


def test_arrays_are_rgb_already(root):
    """The transfer config of CIFAR does not swap colours, and is right."""
    cfg = Config.fromfile(root / 'configs/psvit/transfer/b14_cifar10.py')
    assert not list(training_remarks(cfg))
    cfg.data_preprocessor.to_rgb = True
    (remark,) = training_remarks(cfg)
    assert 'rgb is True, not False' in remark


def test_shipped_configs(root):
    """All fit; detectors remark on the start alone."""
    for path in sorted((root / 'configs').rglob('*.py')):
        if '_base_' in path.parts:
            continue
        cfg = Config.fromfile(path)
        check_config(cfg)
        remarks = list(training_remarks(cfg))
        dense = cfg.default_scope in ('mmdet', 'mmseg')
        dense = dense and cfg.model.backbone.type == 'mmpsvit.PSViT'
        assert len(remarks) == int(dense), (path, remarks)


MIXUP = dict(augments=dict(type='Mixup', alpha=0.8))


@pytest.mark.parametrize(
    ('settings', 'message'),
    [
        (
            dict(train_cfg=MIXUP),
            'data_preprocessor.num_classes is 10, model.head.num_c',
        ),
        (
            dict(data_preprocessor=dict(num_classes=2, to_onehot=True)),
            'classes is 2, mo',
        ),
        (
            dict(val_evaluator=dict(type='Accuracy', topk=(1, 5))),
            'val_evaluator.topk is',
        ),
        (
            dict(val_evaluator=[dict(type='Accuracy', topk=4)]),
            'val_evaluator.topk is 4',
        ),
    ],
)
def test_numbers_of_classes(settings, message):
    backbone = dict(type='ResNet', depth=18)
    model = dict(type='ImageClassifier', backbone=backbone, head=dict(num_classes=3))
    good = dict(
        model=model,
        data_preprocessor=dict(num_classes=10),
        val_evaluator=[
            dict(type='Accuracy', topk=(1, 3)),
            dict(type='MultiLabelMetric', topk=None),
            dict(type='RetrievalRecall', topk=(1, 10)),
        ],
        test_evaluator=dict(type='Accuracy', topk=(1, 5)),
    )
    check_config(Config(good))
    with pytest.raises(ConfigError, match=r'test_evaluator\.topk is'):
        check_config(Config(good), 'test_evaluator')
    unset = dict(data_preprocessor=dict(num_classes=None, to_onehot=True))
    check_config(Config(dict(good, **unset, val_evaluator=Accuracy())))
    if 'train_cfg' in settings:
        settings = dict(model=dict(model, **settings))
    with pytest.raises(ConfigError, match=re.escape(message)):
        check_config(Config(dict(good, **settings)))
