# Copyright (c) mmpsvit contributors.
"""What measured figures depend on: the processor, and the versions of the stack."""

import platform
from pathlib import Path

import mmcv
import mmengine
import mmpretrain
import numpy
import torch
import torchvision

from mmpsvit.version import __version__


def processor_name() -> str:
    """The processor's name."""
    try:
        lines = Path('/proc/cpuinfo').read_text().split('\n')
    except OSError:  # not Linux
        lines = []
    names = [line.split(':')[1].strip() for line in lines if 'model name' in line]
    return names[0] if names else platform.processor() or platform.machine()


def stack_versions() -> dict[str, str]:
    """The versions of Python, of this package and of those that it stands on."""
    modules = (torch, torchvision, numpy, mmengine, mmcv, mmpretrain)
    return {
        'python': platform.python_version(),
        **{module.__name__: module.__version__ for module in modules},
        'mmpsvit': __version__,
    }
