# Copyright (c) mmpsvit contributors.
"""What is said about a config around PS-ViT."""

import itertools
import traceback
from collections.abc import Iterator

from mmengine.config import Config
from mmengine.registry import OPTIMIZERS
from torch import nn

from mmpsvit.guard import type_name
from mmpsvit.models import PSViT

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


def explain_failure(cfg: Config, error: BaseException) -> Iterator[str]:
    """Say, after a run failed, what in its config does not fit together.

    Args:
        cfg (Config): Config of the run.
        error (BaseException): What it raised.

    Yields:
        str: A remedy, at most one.
    """
    optimizer = (cfg.get('optim_wrapper') or {}).get('optimizer') or {}
    name = optimizer.get('type')
    is_name = isinstance(error, TypeError) and isinstance(name, str)
    if is_name and OPTIMIZERS.get(name) is None:
        yield f'There is no optim_wrapper.optimizer.type {name!r}'
        return
    frames = (frame for frame, _ in traceback.walk_tb(error.__traceback__))
    parts = [frame.f_locals.get('self') for frame in frames]
    parts = [part for part in parts if isinstance(part, nn.Module)]
    for model in parts:
        backbone = getattr(model, 'backbone', None)
        # What fails in the backbone itself says why.
        if isinstance(backbone, PSViT) and parts[-1] not in set(backbone.modules()):
            yield from itertools.islice(_misfits(model, backbone), 1)
            return


def _misfits(model: nn.Module, backbone: PSViT) -> Iterator[str]:
    """Remedies for what follows a backbone and does not fit it."""
    neck, head = (getattr(model, name, None) for name in ('neck', 'head'))
    is_map = backbone.out_type == 'featmap'
    for name, part in (('neck', neck), ('head', head)):
        given = getattr(part, 'in_channels', None)
        if given is None:
            continue
        fits = backbone.embed_dims
        if isinstance(given, list | tuple):
            fits, given = [fits] * len(backbone.out_strides), list(given)
        if given != fits:
            yield f'model.{name}.in_channels is {given}: for this backbone, set {fits}'
        break
    if not is_map and (neck or not head):
        yield (
            f'model.backbone.out_type is {backbone.out_type!r}: if the next part takes '
            "maps, set 'featmap'"
        )
    if is_map and head and not neck:
        yield (
            "model.backbone.out_type is 'featmap': a linear head takes vectors, set "
            "'cls_token', or put a pooling neck between"
        )
    preprocessor = getattr(model, 'data_preprocessor', None)
    if getattr(preprocessor, 'batch_augments', None):
        given = [getattr(part, 'num_classes', None) for part in (head, preprocessor)]
        if None not in given and given[0] != given[1]:
            yield (
                f'model.head.num_classes is {given[0]} and '
                f'data_preprocessor.num_classes {given[1]}: set both'
            )
