# Copyright (c) mmpsvit contributors.
"""What is said about a config around PS-ViT."""

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


def explain_failure(cfg: Config, error: BaseException) -> str | None:
    """Say, after a run failed, what in its config does not fit together.

    Args:
        cfg (Config): Config of the run.
        error (BaseException): What it raised.

    Returns:
        str | None: A remedy, if there is one.
    """
    if str(error) == 'None is not a callable object':  # MMEngine's, of an optimizer
        name = cfg.optim_wrapper.optimizer.type
        with OPTIMIZERS.switch_scope_and_registry(None) as registry:
            if registry.get(name) is None:
                return f'There is no optim_wrapper.optimizer.type {name!r}'
    frames = (frame for frame, _ in traceback.walk_tb(error.__traceback__))
    parts = [frame.f_locals.get('self') for frame in frames]
    parts = [part for part in parts if isinstance(part, nn.Module)]
    for model in parts:
        if isinstance(getattr(model, 'backbone', None), PSViT):
            return next(_misfits(model, parts[-1]), None)
    return None


def _misfits(model: nn.Module, failed: nn.Module) -> Iterator[str]:
    """Remedies where what comes after the backbone failed, or the preprocessor did."""
    backbone, neck, head, preprocessor = (
        getattr(model, name, None)
        for name in ('backbone', 'neck', 'head', 'data_preprocessor')
    )
    after = [set(part.modules()) for part in (neck, head) if part is not None]
    # Segmentors name their heads otherwise: all that is not before them.
    after = after or [{failed} - {model, preprocessor, *backbone.modules()}]
    is_map = backbone.out_type == 'featmap'
    is_after = failed in set.union(*after)
    if is_after:
        name, part = 'neck', neck
        # Pooling leaves the channels as they are.
        if neck is None or next(neck.parameters(), None) is None:
            name, part = 'head', head
        given, fits = getattr(part, 'in_channels', None), backbone.embed_dims
        if isinstance(given, list | tuple):
            given, fits = list(given), [fits] * len(backbone.out_strides)
        if given not in (None, fits):
            yield f'model.{name}.in_channels is {given}: for this backbone, set {fits}'
    if failed in after[0]:
        if not is_map and (neck or not head):
            yield (
                f'model.backbone.out_type is {backbone.out_type!r}: if the next part '
                "takes maps, set 'featmap'"
            )
        if is_map and head and not neck:
            yield (
                "model.backbone.out_type is 'featmap': if the head takes vectors, set "
                "'cls_token', or put a pooling neck between"
            )
    if getattr(preprocessor, 'batch_augments', None):
        given = [getattr(part, 'num_classes', None) for part in (head, preprocessor)]
        is_concerned = is_after or failed is preprocessor
        if is_concerned and None not in given and given[0] != given[1]:
            yield (
                f'head.num_classes is {given[0]} and data_preprocessor.num_classes '
                f'{given[1]}: set both to the number of classes'
            )
