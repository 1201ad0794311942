# Copyright (c) mmpsvit contributors.
"""The places where this package changes something of another one, and why.

Everything else is done through registries and configs.
"""

import os
import sys
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

import mmengine.config.config
import mmengine.hub.hub
from mmengine.config.utils import MODULE2PACKAGE
from mmengine.utils import get_installed_path, is_installed
from packaging.version import Version


def make_configs_found() -> None:
    """Make MMEngine find what configs name as ``_base_ = 'mmpsvit::psvit/b14.py'``.

    It knows MMSegmentation by the name of its original distribution only, and the
    original MMEngine takes it that a package lies beside its metadata, which one that
    is installed with ``pip install -e`` does not.
    """
    MODULE2PACKAGE.setdefault('mmpsvit', 'mmpsvit')
    if not is_installed(MODULE2PACKAGE['mmseg']) and is_installed('mmseg'):
        MODULE2PACKAGE['mmseg'] = 'mmseg'
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
