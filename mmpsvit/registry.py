# Copyright (c) mmpsvit contributors.
"""Registries of mmpsvit, children of MMEngine's, with the scope ``mmpsvit``.

MMEngine imports this file by itself when a config says ``type='mmpsvit.X'``, and
each registry then imports the modules that fill it.
"""

from mmengine import registry as mmengine_registry
from mmengine.registry import Registry


def _child(parent: str, *rooms: str) -> Registry:
    """A registry below MMEngine's of this name, filled by some of our packages."""
    parent = getattr(mmengine_registry, parent)
    locations = [f'mmpsvit.{room}' for room in rooms]
    return Registry(parent.name, parent=parent, scope='mmpsvit', locations=locations)


MODELS = _child('MODELS', 'models', 'engine')
HOOKS = _child('HOOKS', 'guard', 'engine', 'visualization')
LOOPS = _child('LOOPS', 'guard')
OPTIMIZERS = _child('OPTIMIZERS', 'engine')
PARAM_SCHEDULERS = _child('PARAM_SCHEDULERS', 'engine')
OPTIM_WRAPPER_CONSTRUCTORS = _child('OPTIM_WRAPPER_CONSTRUCTORS', 'engine')

# We register nothing here: MMEngine looks here first for what a config inherits from us
# (`mmpsvit::...`), and warns if there is no registry.
DATA_SAMPLERS = _child('DATA_SAMPLERS', 'engine')
OPTIM_WRAPPERS = _child('OPTIM_WRAPPERS', 'engine')
