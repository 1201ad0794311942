# Copyright (c) mmpsvit contributors.
"""A small classifier whose points move, as a config, a model and a checkpoint."""

import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmpretrain.registry import MODELS
from small import small_arch

ARCH = small_arch(stem_channels=(16, 24))
PIPELINE = [dict(type='LoadImageFromFile'), dict(type='PackInputs')]


def small_config(**changes) -> Config:
    """The config of a classifier of three classes; dotted keys change it."""
    backbone = dict(
        type='mmpsvit.PSViT', arch=ARCH, sampler=dict(num_points=3, num_iters=2)
    )
    head = dict(type='mmpsvit.PSViTClsHead', num_classes=3, in_channels=24)
    dataset = dict(type='CustomDataset', data_root='images', data_prefix='val')
    cfg = Config(
        dict(
            default_scope='mmpretrain',
            model=dict(type='ImageClassifier', backbone=backbone, head=head),
            data_preprocessor=dict(mean=[120.0], std=[60.0], to_rgb=True),
            test_dataloader=dict(dataset=dict(dataset, pipeline=PIPELINE)),
        )
    )
    for key, value in changes.items():
        *path, last = key.split('.')
        place = cfg
        for name in path:
            place = place[name]
        place[last] = value
    return cfg


def small_model(cfg: Config) -> torch.nn.Module:
    """The model of a config, with random weights that move the points."""
    init_default_scope('mmpretrain')
    torch.manual_seed(0)
    model = MODELS.build(
        dict(cfg.model.to_dict(), data_preprocessor=cfg.data_preprocessor)
    )
    for name, parameter in model.named_parameters():
        if 'offset_layers' in name or '.head' in name:
            torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()


def save(cfg: Config, folder, **meta) -> tuple[str, str]:
    """Write config and checkpoint into a folder; return their paths."""
    config, checkpoint = folder / 'config.py', folder / 'weights.pth'
    cfg.dump(config)
    state = small_model(cfg).state_dict()
    torch.save(dict(meta=dict(dataset_meta=meta), state_dict=state), checkpoint)
    return str(config), str(checkpoint)
