# Copyright (c) mmpsvit contributors.
"""Fixtures of the tests of pictures."""

import numpy as np
import pytest
from mmengine.config import Config
from PIL import Image
from small_network import save


@pytest.fixture
def draw(run_here, tmp_path):
    """Draw with a tool in this process; what it said, and the picture's pixels."""

    def run(
        tool: str, cfg: Config, *args, code: int = 0
    ) -> tuple[str, np.ndarray | None]:
        path = tmp_path / 'picture.png'
        command = (*save(cfg, tmp_path, classes=['cat']), *args, '--out', path)
        output = run_here(f'tools/visualization/{tool}.py', *command, code=code)
        assert not [*tmp_path.glob('.*')]
        assert path.exists() == (code == 0)
        if code:
            return output, None
        return output, np.asarray(Image.open(path).convert('RGB')).astype(int)

    return run
