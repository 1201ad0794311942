# Copyright (c) mmpsvit contributors.
"""Points and titles of all kinds of models, and checkpoints that fit in part."""

import re

import pytest
import torch
from mmengine.dataset import pseudo_collate
from mmengine.registry import MODELS
from mmpretrain.datasets import CIFAR10
from mmpretrain.models import ImageClassifier
from mmpretrain.structures import DataSample, MultiTaskDataSample
from small_network import ARCH, small_config, small_model
from stack import needs_new_torch

from mmpsvit import PSViT
from mmpsvit.guard import CheckpointMisfitError
from mmpsvit.visualization import (
    build_model,
    build_trained,
    in_channels,
    sample_images,
)
from mmpsvit.visualization.prediction import to_image

SAMPLER = dict(type='mmpsvit.ProgressiveSampling', num_points=3, num_iters=2)
BACKBONE = dict(type='mmpsvit.PSViT', arch=ARCH, sampler=SAMPLER)
TASK = dict(type='LinearClsHead', num_classes=2, in_channels=24, topk=(1,))
MULTI_TASK = dict(type='MultiTaskHead', task_heads=dict(wear=TASK, age=TASK))
MULTI_LABEL = dict(type='MultiLabelLinearClsHead', num_classes=3, in_channels=24)


def item(channels: int = 3, label=None) -> dict:
    """An image as a data set packs it."""
    sample = DataSample()
    if label is not None:
        sample.set_gt_label(label)
    inputs = torch.randint(255, (channels, 40, 32), dtype=torch.uint8)
    return dict(inputs=inputs, data_samples=sample)


@pytest.mark.parametrize(
    ('changes', 'label', 'title'),
    [
        ({}, 1, r'b|a|2 \(\d+%\), truth: b'),
        ({}, -1, r'(a|b|2) \(\d+%\), truth: -1'),
        ({'model.head': MULTI_LABEL}, [0, 1], r'(a|b|2) \(\d+%\), truth: a \+ b'),
        ({'model.head': MULTI_LABEL}, [], r'(a|b|2) \(\d+%\), truth: none'),
        ({'model.head': MULTI_TASK}, None, r'age: [01] \(\d+%\); wear: [01] \(\d+%\)'),
        ({'model.head': None}, None, ''),
        (
            {
                'model.backbone': dict(
                    type='LoRAModel',
                    alpha=4,
                    rank=2,
                    targets=[dict(type='qkv')],
                    module=BACKBONE,
                )
            },
            None,
            r'(a|b|2) \(\d+%\)',
        ),
        (
            {
                'model': dict(
                    type='ImageToImageRetriever',
                    image_encoder=BACKBONE,
                    head=dict(type='ArcFaceClsHead', num_classes=3, in_channels=24),
                    # Not to be read for a picture.
                    prototype=dict(batch_size=1, dataset=dict(type='NoSuchDataset')),
                )
            },
            None,
            '',
        ),
    ],
    ids=[
        'class',
        'unlabelled',
        'labels',
        'no label',
        'tasks',
        'headless',
        'lora',
        'retrieval',
    ],
)
def test_models(changes, label, title):
    model = small_model(small_config(**changes)).train()
    packed = item(label=label)
    if 'MultiTask' in str(changes):
        packed['data_samples'] = MultiTaskDataSample()
    (sampled,) = sample_images(model, [packed], classes=['a', 'b'])
    assert re.fullmatch(title, sampled.title), sampled.title
    assert sampled.trajectory.shape == (2, 9, 2)
    assert sampled.image.shape == (40, 32, 3)
    assert model.training


@pytest.mark.parametrize('channels', [1, 2, 4, 5])
def test_other_numbers_of_channels(channels):
    cfg = small_config(
        **{
            'model.backbone.in_channels': channels,
            'data_preprocessor': dict(mean=[9.0], std=[9.0]),
        }
    )
    model = small_model(cfg)
    assert in_channels(model) == channels
    packed = item(channels)
    (sampled,) = sample_images(model, [packed])
    expected = packed['inputs'][:3] if channels > 3 else packed['inputs'][:1]
    assert (torch.from_numpy(sampled.image).permute(2, 0, 1) == expected).all()


def test_channels_of_a_network_with_maps_of_parameters():
    """Such as the positions of TNT's pixels, which come first."""
    assert in_channels(MODELS.build(dict(type='mmpretrain.TNT', arch='s'))) == 3


def test_views_for_test_time_augmentation():
    """The one that is not flipped is shown."""
    model, views = small_model(small_config()), [item(), item()]
    for view, flip in zip(views, (True, False), strict=True):
        view['data_samples'].set_metainfo(dict(flip=flip))
    packed = {key: [view[key] for view in views] for key in views[0]}
    (sampled,) = sample_images(model, [packed], channels=(0, 1, 2))
    shown = torch.from_numpy(sampled.image).permute(2, 0, 1)
    assert (shown == views[1]['inputs']).all()


def test_inputs_that_are_not_pixels():
    normalised = torch.linspace(-2, 2, 12).view(3, 2, 2)
    image = to_image(normalised, (0, 1, 2))
    assert image[0, 0, 0] == 0 and image[1, 1, 2] == 255
    assert (to_image(torch.full((3, 2, 2), 7.4), (0, 1, 2)) == 7).all()


@needs_new_torch  # which has this dtype
def test_inputs_of_16_bits():
    deep = torch.tensor([[[0, 257, 65535]]]).to(torch.uint16)
    assert to_image(deep, (0,))[0, :, 0].tolist() == [0, 1, 255]


@pytest.mark.skipif(
    not hasattr(torch.compiler, 'set_stance'), reason='before PyTorch 2.6'
)
def test_compiled_before_the_picture_is_asked_for():
    model = small_model(small_config())
    expected = sample_images(model, [item()])[0].trajectory
    model.backbone.compile(backend='eager')
    with torch.no_grad():
        model.test_step(pseudo_collate([item()]))
    assert sample_images(model, [item()])[0].trajectory.shape == expected.shape


def test_model_that_predicts_tensors():
    """As those of MMEngine's tutorials."""
    model = small_model(small_config())
    model.test_step = lambda data: model(**model.data_preprocessor(data))
    (sampled,) = sample_images(model, [item()])
    assert sampled.title == '' and sampled.trajectory.shape == (2, 9, 2)


def test_segmentor_that_predicts_in_windows():
    """The points are those of the whole image."""
    model = small_model(small_config(**{'model.head': None}))
    model.test_cfg = dict(mode='slide')
    model.test_step = lambda data: pytest.fail('it predicts')
    assert len(sample_images(model, [item()])) == 1


def test_an_error_of_the_network_is_not_hidden():
    model = small_model(small_config())
    packed = dict(item(), inputs=torch.zeros(5, 32, 32, dtype=torch.uint8))
    with pytest.raises(ValueError, match='x must have shape'):
        sample_images(model, [packed])


def test_model_that_cannot_be_built():
    cfg = small_config()
    cfg.model.backbone.num_ponts = 10
    with pytest.raises(ValueError, match=r"cannot be built \(TypeError: .*'num_ponts'"):
        build_model(cfg)
    cfg.pop('model')
    with pytest.raises(ValueError, match=r"no attribute 'model'"):
        build_model(cfg)


def test_surplus_of_a_checkpoint_is_left_out_and_named(capfd):
    cfg = small_config()
    state = small_model(cfg).state_dict()
    surplus = {'auxiliary.weight': torch.ones(2), 'steps': torch.tensor(1)}
    wrapped = {f'module.{key}': value for key, value in {**state, **surplus}.items()}
    checkpoint = dict(state_dict=wrapped, meta=None)
    model, classes = build_trained(cfg, checkpoint, 'x.pth')
    told = ''.join(capfd.readouterr())
    assert 'Left out of checkpoint x.pth' in told
    assert 'auxiliary.weight; steps' in told
    assert classes == [] and not model.training
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())


@pytest.mark.parametrize(
    ('dataset', 'meta', 'expected'),
    [
        (dict(type='CIFAR10'), {}, 'airplane'),
        (dict(type='mmpretrain.CIFAR10'), {}, 'airplane'),
        (dict(type=CIFAR10), {}, 'airplane'),
        (dict(type='RepeatDataset', dataset=dict(type='CIFAR10')), {}, 'airplane'),
        (dict(type='ConcatDataset', datasets=[dict(type='CIFAR10')]), {}, 'airplane'),
        (dict(type='CIFAR10', metainfo=dict(classes=[*'abcdefghij'])), {}, 'a'),
        (dict(type='CIFAR10'), dict(dataset_meta=dict(classes='xy')), 'x'),
        (dict(type='CIFAR10'), dict(CLASSES=['z']), 'z'),
        (dict(type='CIFAR100'), {}, None),  # of other classes
        (dict(type='CIFAR10', metainfo=dict(classes='a.txt')), {}, 'airplane'),
        ({}, {}, None),
    ],
)
def test_class_names(dataset, meta, expected):
    cfg = small_config(
        **{'model.head.num_classes': 10, 'test_dataloader.dataset': dataset}
    )
    checkpoint = dict(state_dict=small_model(cfg).state_dict(), meta=meta)
    _, classes = build_trained(cfg, checkpoint, 'x.pth')
    assert (classes or [None])[0] == expected


def test_missing_weights_are_refused():
    cfg = small_config()
    state = small_model(cfg).state_dict()
    del state['backbone.norm.weight']
    state['head.layers.head.bias'] = torch.ones(7)
    with pytest.raises(CheckpointMisfitError) as raised:
        build_trained(cfg, state, 'x.pth')
    told = str(raised.value)
    assert 'checkpoint x.pth does not fit the config' in told and '\n' not in told
    assert 'backbone.norm.weight is missing' in told and 'shape (7)' in told


def test_lazy_config_and_test_time_augmentation():
    """Types may be classes; a wrapper is taken off."""
    cfg = small_config(**{'model.type': ImageClassifier, 'model.backbone.type': PSViT})
    state = small_model(cfg).state_dict()
    cfg.model = dict(type='mmpretrain.AverageClsScoreTTA', module=cfg.model)
    model, classes = build_trained(
        cfg, dict(state_dict=state, meta=dict(dataset_meta=dict(classes='ab'))), 'x.pth'
    )
    assert isinstance(model, ImageClassifier) and classes == ['a', 'b']
    assert sample_images(model, [item()])[0].title
