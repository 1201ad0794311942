# Copyright (c) mmpsvit contributors.
"""PS-ViT, the Vision Transformer with Progressive Sampling, for OpenMMLab."""

from importlib import import_module

from packaging.version import Version

from .version import __version__

# Either family of distributions provides the last three: the maintained onedl-* ones,
# or the original ones of OpenMMLab.
_REQUIRED = {
    'torch': '2.1.0',
    'mmengine': '0.10.0',
    'mmcv': '2.1.0',
    'mmpretrain': '1.2.0',
}


def _check_requirements() -> None:
    """Raise an ImportError that says what to install, where something is amiss."""
    remedy = (
        'Install torch and torchvision, then either the maintained distributions, '
        '`pip install --no-cache-dir onedl-mmengine onedl-mmcv onedl-mmpretrain`, or '
        'the original `mmengine`, `mmcv` and `mmpretrain` (see docs/install.md).'
    )
    for name, minimum in _REQUIRED.items():
        try:
            module = import_module(name)
        # mmpretrain asserts the versions of mmcv and mmengine when imported.
        except (ImportError, AssertionError) as error:
            raise ImportError(
                f'mmpsvit needs {name} >= {minimum}, which cannot be imported '
                f'({error}). {remedy}'
            ) from error
        version = module.__version__
        if Version(version) < Version(minimum):
            raise ImportError(
                f'mmpsvit needs {name} >= {minimum}, got {version}. {remedy}'
            )


_check_requirements()

# ruff: noqa: E402
from .upstream import make_configs_found, switch_off_multimodal_models

switch_off_multimodal_models()

from .models import ProgressiveSampling, PSViT, PSViTClsHead, SampledTokens
from .ops import sample_points, splat_points
from .utils import register_model_names

make_configs_found()
register_model_names()

__all__ = [
    'PSViT',
    'PSViTClsHead',
    'ProgressiveSampling',
    'SampledTokens',
    '__version__',
    'sample_points',
    'splat_points',
]
