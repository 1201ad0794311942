# Copyright (c) mmpsvit contributors.
"""MMSegmentation's UPerNet on a PS-ViT backbone."""

from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.model import revert_sync_batchnorm
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, init_default_scope
from mmengine.structures import PixelData

import mmpsvit  # noqa: F401  Lets MMEngine find `mmseg::`.

structures = pytest.importorskip('mmseg.structures')

CONFIGS = Path(__file__).parents[2] / 'configs' / 'mmseg'


@pytest.mark.parametrize('path', sorted(CONFIGS.glob('*.py')), ids=lambda p: p.stem)
def test_segmentor_takes_a_training_step(path):
    cfg = Config.fromfile(path)
    init_default_scope(cfg.default_scope)
    cfg.model.data_preprocessor.size = (96, 96)
    torch.manual_seed(0)
    # SyncBatchNorm has no CPU path.
    model = revert_sync_batchnorm(MODELS.build(cfg.model)).train()
    model.init_weights()
    samples = []
    for _ in range(2):
        sample = structures.SegDataSample(metainfo=dict(img_shape=(90, 96)))
        labels = torch.randint(0, 150, (1, 90, 96))
        sample.gt_sem_seg = PixelData(data=labels)
        samples.append(sample)
    images = [torch.randint(0, 255, (3, 90, 96), dtype=torch.uint8)] * 2
    data = dict(inputs=images, data_samples=samples)
    losses = model(**model.data_preprocessor(data, True), mode='loss')
    loss, _ = model.parse_losses(losses)
    assert loss.isfinite()
    loss.backward()
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.isfinite().all(), key
    build_optim_wrapper(model, cfg.optim_wrapper).step()
