# Copyright (c) mmpsvit contributors.
"""A small checkout for the demo: the demo's files, a config, a checkpoint, images."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from PIL import Image

from mmpsvit.models import ProgressiveSampling

CONFIG = 'configs/cluttered_digits/psvit.py'
CHECKPOINT = 'work_dirs/demo/iter_2.pth'
CLASSES = [*map(str, range(8)), 'crane', 'crane']


@pytest.fixture
def checkout(root, tmp_path) -> Path:
    """A checkout after `make demo`, with random weights that move the points."""
    from mmpretrain.registry import MODELS

    folder = tmp_path / 'checkout'
    shutil.copytree(root / 'demo', folder / 'demo')
    shutil.copytree(root / 'configs', folder / 'configs')
    cfg = Config.fromfile(folder / CONFIG)
    torch.manual_seed(0)
    model = MODELS.build(cfg.model)
    model.init_weights()
    for module in model.modules():
        if isinstance(module, ProgressiveSampling):
            for layer in module.offset_layers:
                torch.nn.init.normal_(layer.weight, std=0.3)
    work_dir = folder / 'work_dirs' / 'demo'
    work_dir.mkdir(parents=True)
    meta = dict(dataset_meta=dict(classes=CLASSES))
    torch.save(dict(state_dict=model.state_dict(), meta=meta), folder / CHECKPOINT)
    # As MMEngine writes it, before the checkout moved.
    (work_dir / 'last_checkpoint').write_text('/elsewhere/work_dirs/demo/iter_2.pth')
    rng = np.random.default_rng(0)
    for label in range(2):
        images = folder / 'data' / 'cluttered_digits' / 'val' / str(label)
        images.mkdir(parents=True)
        pixels = rng.integers(0, 255, (40, 48, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(images / f'{label:06d}.png')
    return folder
