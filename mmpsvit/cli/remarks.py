# Copyright (c) mmpsvit contributors.
"""What is said about a config around PS-ViT."""

import traceback
from collections.abc import Iterator

from mmengine.config import Config
from torch import nn

from mmpsvit.guard import type_name

# ImageNet's mean in the order of caffe-style configs, which do not convert to RGB.
_BGR_MEAN = (103.53, 116.28, 123.675)


def training_remarks(cfg: Config) -> Iterator[str]:
    """What somebody who trains a detector or segmentor should know beforehand.

    Args:
        cfg (Config): Config of a runner.

    Yields:
        str: A warning if pretrained weights meet caffe-style images; another one if
        PS-ViT starts from scratch.
    """
    model = cfg.get('model') or {}
    backbone = model.get('backbone')
    if type_name(backbone) != 'PSViT' or 'head' in model:
        return
    init_cfgs = backbone.get('init_cfg'), model.get('init_cfg'), model.get('pretrained')
    if not any((*init_cfgs, cfg.get('load_from'), cfg.get('resume'))):
        yield (
            'The PS-ViT backbone starts from scratch. For the weights of a classifier, '
            "set model.backbone.init_cfg=dict(type='Pretrained', checkpoint=..., "
            "prefix='backbone.') and norm_eval=True."
        )
    # As MMEngine's runner has it: the model's own goes first.
    given = model.get('data_preprocessor') or cfg.get('data_preprocessor') or {}
    if any(init_cfgs) and tuple(given.get('mean') or ()) == _BGR_MEAN:
        yield (
            'The images are normalised in BGR, as for weights of caffe. PS-ViT expects '
            'RGB: in model.data_preprocessor, mean=[123.675, 116.28, 103.53], '
            'std=[58.395, 57.12, 57.375], bgr_to_rgb=True.'
        )


def explain_out_type(cfg: Config, error: BaseException) -> Iterator[str]:
    """Say, after a model failed, if PS-ViT gives its next part what that cannot take.

    Args:
        cfg (Config): Config of the run.
        error (BaseException): What it raised.

    Yields:
        str: A remedy, at most one.
    """
    frames = (frame for frame, _ in traceback.walk_tb(error.__traceback__))
    if not any(isinstance(frame.f_locals.get('self'), nn.Module) for frame in frames):
        return
    model = cfg.get('model') or {}
    model = model.get('module', model)  # below test-time augmentation
    backbone = model.get('backbone')
    if type_name(backbone) != 'PSViT':
        return
    out_type = backbone.get('out_type', 'cls_token')
    takes_maps = model.get('neck') or not model.get('head')
    if takes_maps and out_type != 'featmap':
        yield (
            f'model.backbone.out_type is {out_type!r}: if the next part takes maps, '
            "set 'featmap'."
        )
    elif out_type == 'featmap' and not takes_maps:
        yield (
            "model.backbone.out_type is 'featmap': a linear head takes vectors, set "
            "'cls_token', or put a pooling neck between."
        )
