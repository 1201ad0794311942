# Copyright (c) mmpsvit contributors.
"""Registries of mmpsvit, children of MMEngine's, with the scope ``mmpsvit``.

MMEngine imports this file by itself when a config says ``type='mmpsvit.X'``, and
each registry then imports the modules that fill it.
"""

from mmengine.registry import HOOKS as MMENGINE_HOOKS
from mmengine.registry import MODELS as MMENGINE_MODELS
from mmengine.registry import (
    OPTIM_WRAPPER_CONSTRUCTORS as MMENGINE_OPTIM_WRAPPER_CONSTRUCTORS,
)
from mmengine.registry import PARAM_SCHEDULERS as MMENGINE_PARAM_SCHEDULERS
from mmengine.registry import Registry

MODELS = Registry(
    'model', parent=MMENGINE_MODELS, scope='mmpsvit', locations=['mmpsvit.models']
)
PARAM_SCHEDULERS = Registry(
    'parameter scheduler',
    parent=MMENGINE_PARAM_SCHEDULERS,
    scope='mmpsvit',
    locations=['mmpsvit.engine'],
)
HOOKS = Registry(
    'hook', parent=MMENGINE_HOOKS, scope='mmpsvit', locations=['mmpsvit.engine']
)
OPTIM_WRAPPER_CONSTRUCTORS = Registry(
    'optimizer wrapper constructor',
    parent=MMENGINE_OPTIM_WRAPPER_CONSTRUCTORS,
    scope='mmpsvit',
    locations=['mmpsvit.engine'],
)
