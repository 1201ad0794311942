# Copyright (c) mmpsvit contributors.
"""What makes models be found by name: in MMPretrain, and in MMEngine's hub.

MMEngine's hub looks for ``register_all_modules`` in a file of this name.
"""

import warnings
from functools import cache
from pathlib import Path

from mmpretrain import ModelHub


def register_all_modules(init_default_scope: bool = True) -> None:
    """Register all modules, for ``mmengine.hub.get_model('mmpsvit::psvit/b14.py')``.

    Args:
        init_default_scope (bool): Of OpenMMLab's functions of this name; without effect
            here, where types are named with their scope. Defaults to True.
    """
    import mmpsvit.engine
    import mmpsvit.guard
    import mmpsvit.visualization  # noqa: F401


@cache
def register_model_names() -> None:
    """Let MMPretrain find our classifiers by name.

    Detectors and the segmentor, which it cannot build, are in the model index only.
    Whatever goes wrong, importing this package does not fail for it.
    """
    root = Path(__file__).parent / '.mim'
    index = root / 'configs' / 'psvit' / 'metafile.yml'
    if not index.is_file():  # neither installed nor editable
        return
    try:
        ModelHub.register_model_index(index, root)
    except Exception as error:
        warnings.warn(
            f'MMPretrain does not know the models of {index} by name ({error})',
            stacklevel=2,
        )
