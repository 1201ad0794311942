# Copyright (c) mmpsvit contributors.
"""Fixtures of the tests of pictures."""

from collections import OrderedDict

import pytest
from mmengine.logging import MMLogger
from mmengine.registry import DefaultScope


@pytest.fixture(autouse=True)
def forget(monkeypatch):
    """Forget the default scope and the loggers of a test afterwards."""
    for manager in (DefaultScope, MMLogger):
        monkeypatch.setattr(manager, '_instance_dict', OrderedDict())
