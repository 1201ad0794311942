# Copyright (c) mmpsvit contributors.
"""Builds a config's network with the weights of a checkpoint, to look at it."""

import logging

from mmengine.config import Config
from mmengine.logging import print_log
from mmengine.model import BaseModel
from mmengine.registry import MODELS, init_default_scope

from mmpsvit.guard import (
    find_misfits,
    raise_misfits,
    shorten,
    unwrap,
    without_wrapper,
)


def build_trained(
    cfg: Config, checkpoint: dict, name: str
) -> tuple[BaseModel, list[str]]:
    """Build the model of a config with the weights of a checkpoint.

    Args:
        cfg (Config): The config. Its default scope becomes that of the process.
        checkpoint (dict): What :func:`mmpsvit.guard.load_checkpoint` returned. Weights
            that the model has no place for are left out, with a warning.
        name (str): The checkpoint's name, for messages.

    Returns:
        tuple[BaseModel, list[str]]: The model in eval mode, without a wrapper for
        test-time augmentation, and the class names that the checkpoint knows, which
        may be none.

    Raises:
        CheckpointMisfitError: If weights are missing or of another shape.
    """
    init_default_scope(cfg.get('default_scope', 'mmpretrain'))
    model_cfg = cfg.model
    if 'data_preprocessor' in cfg:
        model_cfg.setdefault('data_preprocessor', cfg.data_preprocessor)
    model = unwrap(MODELS.build(model_cfg))
    state = checkpoint.get('state_dict', checkpoint)
    wanted, unknown = find_misfits(model, without_wrapper(state))
    raise_misfits(name, [*wanted.values()])
    if unknown:
        print_log(
            f'Left out of checkpoint {name}, not in the model: {shorten(unknown)}',
            logger='current',
            level=logging.WARNING,
        )
    meta = checkpoint.get('meta') or {}
    classes = (meta.get('dataset_meta') or {}).get('classes') or []
    return model.eval(), list(classes)
