# Copyright (c) mmpsvit contributors.
"""What a test needs that not every supported release has."""

import pytest
import torch
from packaging.version import Version

NEW_TORCH = Version(torch.__version__) >= Version('2.6')

needs_new_torch = pytest.mark.skipif(not NEW_TORCH, reason='PyTorch 2.1 cannot do this')


def skip_without_autocast(dtype: torch.dtype, device: str = 'cpu') -> None:
    """Skip a test where PyTorch has no autocast to this dtype on the device."""
    if device == 'cpu' and dtype == torch.float16 and not NEW_TORCH:
        pytest.skip('PyTorch 2.1 has no float16 autocast on the CPU')
