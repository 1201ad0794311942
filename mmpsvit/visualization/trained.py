# Copyright (c) mmpsvit contributors.
"""Builds a config's network with the weights of a checkpoint, to look at it."""

import logging
from collections.abc import Sequence

from mmengine.config import Config
from mmengine.logging import print_log
from mmengine.model import BaseModel
from mmengine.registry import MODELS, init_default_scope
from mmpretrain.registry import DATASETS

from mmpsvit.guard import (
    find_misfits,
    one_line,
    raise_misfits,
    shorten,
    unwrap,
    without_wrapper,
)

from .file_pipeline import testing_dataset


def build_model(cfg: Config) -> BaseModel:
    """Build the model of a config, as MMEngine's runner would.

    Args:
        cfg (Config): The config. Its default scope becomes that of the process.

    Raises:
        ValueError: If the config does not fit.
    """
    init_default_scope(cfg.get('default_scope') or 'mmpretrain')
    try:
        if 'data_preprocessor' in cfg:
            cfg.model.setdefault('data_preprocessor', cfg.data_preprocessor)
        return MODELS.build(cfg.model)
    except (AssertionError, AttributeError, KeyError, TypeError) as error:
        raise ValueError(
            f'the model of the config cannot be built ({one_line(error)})'
        ) from error


def build_trained(
    cfg: Config, checkpoint: dict, name: str
) -> tuple[BaseModel, list[str]]:
    """Build the model of a config with the weights of a checkpoint.

    Args:
        cfg (Config): The config. Its default scope becomes that of the process.
        checkpoint (dict): What was loaded: weights, alone or in ``state_dict``. Those
            that the model has no place for are left out, with a warning.
        name (str): The checkpoint's name, for messages.

    Returns:
        tuple[BaseModel, list[str]]: The model in eval mode, without a wrapper for
        test-time augmentation, and the class names of the checkpoint, or else those
        of the config's test data set if they are as many; may be none.

    Raises:
        CheckpointMisfitError: If weights are missing or of another shape.
    """
    model = unwrap(build_model(cfg))
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
    # Those of MMClassification have the names in capitals.
    classes = (meta.get('dataset_meta') or {}).get('classes') or meta.get('CLASSES')
    if not classes:
        found = _class_names(cfg)
        fits = len(found) == getattr(getattr(model, 'head', None), 'num_classes', None)
        classes = found if fits else ()
    return model.eval(), list(classes)


def _class_names(cfg: Config) -> Sequence[str]:
    """The names of the classes that the config's test data set knows; may be none."""
    dataset = testing_dataset(cfg)
    while inner := dataset.get('dataset') or next(
        iter(dataset.get('datasets') or ()), 0
    ):
        dataset = inner
    kind = dataset.get('type')
    kind = DATASETS.get(kind) if isinstance(kind, str) else kind
    for metainfo in (dataset.get('metainfo'), getattr(kind, 'METAINFO', None)):
        names = (metainfo or {}).get('classes')
        # A string would be the name of a file.
        if isinstance(names, list | tuple):
            return names
    return ()
