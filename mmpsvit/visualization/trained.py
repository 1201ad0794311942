# Copyright (c) mmpsvit contributors.
"""Builds a config's network with the weights of a checkpoint, to look at it."""

from mmengine.config import Config
from mmengine.model import BaseModel
from mmengine.registry import MODELS, init_default_scope

from mmpsvit.guard.fit import find_misfits, raise_misfits, without_wrapper


def build_trained(
    cfg: Config, checkpoint: dict, name: str
) -> tuple[BaseModel, list[str]]:
    """Build the model of a config with the weights of a checkpoint.

    Args:
        cfg (Config): The config. Its default scope becomes that of the process.
        checkpoint (dict): What :func:`mmpsvit.guard.load_checkpoint` returned.
        name (str): The checkpoint's name, for error messages.

    Returns:
        tuple[BaseModel, list[str]]: The model in eval mode, and the class names that
        the checkpoint knows, which may be none.

    Raises:
        CheckpointMisfitError: If weights are missing, unknown or of another shape.
    """
    init_default_scope(cfg.get('default_scope', 'mmpretrain'))
    model_cfg = cfg.model
    if 'data_preprocessor' in cfg:
        model_cfg.setdefault('data_preprocessor', cfg.data_preprocessor)
    model = MODELS.build(model_cfg)
    state = without_wrapper(checkpoint.get('state_dict', checkpoint))
    raise_misfits(name, list(find_misfits(model, state).values()))
    meta = checkpoint.get('meta') or {}
    classes = (meta.get('dataset_meta') or {}).get('classes') or []
    return model.eval(), list(classes)
