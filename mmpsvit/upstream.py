# Copyright (c) mmpsvit contributors.
"""The two places where this package changes something of another one, and why.

Everything else is done through registries and configs.
"""

import os
import sys
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

import mmengine.config.config
import mmengine.hub.hub
from mmengine.utils import get_installed_path
from packaging.version import Version


def find_editable_packages() -> None:
    """Make MMEngine find the configs of what is installed with ``pip install -e``.

    The original MMEngine takes it that a package lies beside its metadata.
    """
    for module in (mmengine.config.config, mmengine.hub.hub):
        module.get_installed_path = _installed_path


def _installed_path(package: str) -> str:
    """As MMEngine says, or where Python imports the package from."""
    path = get_installed_path(package)
    if os.path.exists(path):
        return path
    spec = find_spec(os.path.basename(path))
    return os.path.dirname(spec.origin) if spec and spec.origin else path


def switch_off_multimodal_models() -> None:
    """Keep MMPretrain from importing its multimodal models, where that would fail.

    It imports them where it finds transformers and pycocotools, but they cannot be
    imported beside transformers 5; then none of MMPretrain could. Its flag is to be set
    before ``mmpretrain.models`` is imported.
    """
    try:
        is_new = Version(version('transformers')) >= Version('5')
    except PackageNotFoundError:
        return
    if is_new and 'mmpretrain.models' not in sys.modules:
        from mmpretrain.utils import dependency

        dependency.WITH_MULTIMODAL = False
