# Copyright (c) mmpsvit contributors.
"""Registry of mmpsvit, a child of MMEngine's, with the scope ``mmpsvit``.

MMEngine imports this file by itself when a config says ``type='mmpsvit.X'``, and
the registry then imports the modules that fill it.
"""

from mmengine.registry import MODELS as MMENGINE_MODELS
from mmengine.registry import Registry

MODELS = Registry(
    'model', parent=MMENGINE_MODELS, scope='mmpsvit', locations=['mmpsvit.models']
)
