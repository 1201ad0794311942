# Copyright (c) mmpsvit contributors.
"""The backbone's weights: their names, and checkpoints that fit or do not."""

import pytest
import torch
from mmengine.runner import load_checkpoint
from small import small_arch
from small import small_backbone as small

from mmpsvit import PSViT, PSViTClsHead
from mmpsvit.guard import CheckpointMisfitError

ARCH = small_arch(num_layers=6, stem_channels=(16, 24))


def names_of_0_1_0(num_iters: int, depth: int) -> set[str]:
    """The names of a network's weights in the checkpoints of mmpsvit 0.1.0."""
    names = {'cls_token', 'norm.weight', 'norm.bias'}

    def add(prefix: str, *modules: str, of: tuple = ('weight', 'bias')) -> None:
        names.update(f'{prefix}{module}.{name}' for module in modules for name in of)

    statistics = ('running_mean', 'running_var', 'num_batches_tracked')
    blocks = [f'blocks.{index}.' for index in range(2)]
    convolutions = [
        f'{block}{name}'
        for block in blocks
        for name in ('conv1', 'conv2', 'conv3', 'downsample.0')
    ]
    norms = [
        f'{block}{name}'
        for block in blocks
        for name in ('bn1', 'bn2', 'bn3', 'downsample.1')
    ]
    add('stem.', 'conv1', *convolutions, of=('weight',))
    add('stem.', 'bn1', *norms, of=('weight', 'bias', *statistics))
    add('sampler.', 'position_layer')
    for index in range(num_iters - 1):
        add('sampler.', f'offset_layers.{index}')
    layers = [f'sampler.layers.{index}.' for index in range(num_iters)]
    layers += [f'layers.{index}.' for index in range(depth)]
    for layer in layers:
        add(layer, 'attn.qkv', of=('weight',))
        add(layer, 'ln1', 'attn.proj', 'ln2', 'ffn.layers.0.0', 'ffn.layers.1')
    return names


def test_names_in_checkpoints():
    backbone = small()
    assert set(backbone.state_dict()) == names_of_0_1_0(num_iters=4, depth=2)
    assert PSViTClsHead(3, 24).state_dict().keys() == {
        'layers.head.weight',
        'layers.head.bias',
    }


@pytest.fixture
def checkpoint(tmp_path) -> tuple[str, dict]:
    """A classifier's checkpoint, and the weights of its backbone."""
    state = small().state_dict()
    path = tmp_path / 'checkpoint.pth'
    named = {f'backbone.{key}': value for key, value in state.items()}
    head = {'head.layers.head.weight': torch.zeros(3, 24)}
    torch.save(dict(state_dict={**named, **head}), path)
    return str(path), state


def pretrained(checkpoint: str, **kwargs) -> PSViT:
    """A backbone as it is when a runner has initialised it."""
    init_cfg = dict(type='Pretrained', checkpoint=checkpoint, **kwargs)
    backbone = PSViT(ARCH, sampler=dict(num_points=5), init_cfg=init_cfg)
    backbone.init_weights()
    return backbone


def test_pretrained_weights_are_not_initialised_again(checkpoint):
    path, state = checkpoint
    backbone = pretrained(path, prefix='backbone.')
    backbone.init_weights()  # once more
    for key, value in backbone.state_dict().items():
        assert torch.equal(value, state[key]), key


def test_checkpoint_of_which_nothing_fits(checkpoint, tmp_path):
    """MMEngine would log the names and go on from scratch."""
    path, state = checkpoint
    with pytest.raises(CheckpointMisfitError, match=r'backbone\.\S+, .* a prefix\?'):
        pretrained(path)
    with pytest.raises(CheckpointMisfitError, match=r'no weight .* fits PSViT'):
        load_checkpoint(small(), path)
    other = str(tmp_path / 'other.pth')
    torch.save({f'backbone.features.{i}': torch.zeros(3) for i in range(9)}, other)
    with pytest.raises(CheckpointMisfitError, match='another network'):
        pretrained(other, prefix='backbone.')
    # The same names, but other shapes.
    foreign = {key: value[None] for key, value in state.items()}
    torch.save(foreign, other)
    with pytest.raises(CheckpointMisfitError, match='no weight of the checkpoint fits'):
        pretrained(other)
    with pytest.raises(CheckpointMisfitError):
        small().load_state_dict(foreign, strict=False)


def test_checkpoint_in_a_stock_detector(checkpoint, tmp_path):
    """Nothing of ours loads it: MMEngine's runner and inferencers do it like this."""
    pytest.importorskip('mmcv._ext', reason='needs mmcv with ops')
    models = pytest.importorskip('mmdet.models')
    register_all_modules = pytest.importorskip('mmdet.utils').register_all_modules
    register_all_modules(init_default_scope=True)
    detector = models.FCOS(
        backbone=dict(
            type='mmpsvit.PSViT',
            arch=ARCH,
            sampler=dict(point_stride=16),
            out_type='featmap',
        ),
        neck=dict(type='FPN', in_channels=[24] * 4, out_channels=16, num_outs=4),
        bbox_head=dict(
            type='FCOSHead', num_classes=2, in_channels=16, strides=[4, 8, 16, 32]
        ),
    )
    path, state = checkpoint
    load_checkpoint(detector, path)  # a classifier's
    for key, value in detector.backbone.state_dict().items():
        assert torch.equal(value, state[key]), key
    wrong = str(tmp_path / 'resnet.pth')
    torch.save({'backbone.conv1.weight': torch.zeros(64, 3, 7, 7)}, wrong)
    with pytest.raises(CheckpointMisfitError, match=r'has backbone\.conv1\.weight'):
        load_checkpoint(detector, wrong)
    # Weights of other parts only are not about the backbone.
    head = detector.bbox_head.state_dict()
    torch.save({f'bbox_head.{key}': value for key, value in head.items()}, wrong)
    load_checkpoint(detector, wrong)


def test_checkpoint_of_which_a_part_fits(checkpoint):
    """Fine-tuning on other images, or without a class token."""
    path, state = checkpoint
    init_cfg = dict(type='Pretrained', checkpoint=path, prefix='backbone.')
    backbone = small(
        in_channels=4, out_type='raw', with_cls_token=False, init_cfg=init_cfg
    )
    assert torch.equal(backbone.norm.weight, state['norm.weight'])
    assert torch.equal(
        backbone.layers[1].attn.qkv.weight, state['layers.1.attn.qkv.weight']
    )
