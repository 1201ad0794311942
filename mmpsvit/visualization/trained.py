# Copyright (c) mmpsvit contributors.
"""Builds a config's network with the weights of a checkpoint, to look at it."""

import logging

from mmengine.config import Config
from mmengine.logging import print_log
from mmengine.model import BaseModel, BaseTTAModel
from mmengine.registry import MODELS, init_default_scope

from mmpsvit.guard import CheckpointMisfitError, find_misfits


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
    model = MODELS.build(model_cfg)
    while isinstance(model, BaseTTAModel):
        model = model.module
    state = checkpoint.get('state_dict', checkpoint)
    state = {key.removeprefix('module.'): value for key, value in state.items()}
    misfits = find_misfits(model, state)
    own = {key for key, _ in (*model.named_parameters(), *model.named_buffers())}
    surplus = [key for key in misfits if key in state and key not in own]
    wrong = [text for key, text in misfits.items() if key not in surplus]
    if wrong:
        raise CheckpointMisfitError(
            f'checkpoint {name} does not fit the config: {_some(wrong, "; ")}'
        )
    if surplus:
        print_log(
            f'Left out of checkpoint {name}, not in the model: {_some(surplus, ", ")}',
            logger='current',
            level=logging.WARNING,
        )
    meta = checkpoint.get('meta') or {}
    classes = (meta.get('dataset_meta') or {}).get('classes') or []
    return model.eval(), list(classes)


def _some(texts: list[str], separator: str) -> str:
    """The first three of some texts, and how many more there are."""
    rest = f' and {len(texts) - 3} more' if len(texts) > 3 else ''
    return separator.join(texts[:3]) + rest
