# Copyright (c) mmpsvit contributors.
"""A hook for tests of trainings in several processes."""

from pathlib import Path

import torch
from mmengine.hooks import Hook
from mmengine.registry import HOOKS


@HOOKS.register_module()
class SaveRanks(Hook):
    """Saves the parameters of every process at the end, as ``rank_<number>.pth``."""

    def after_train(self, runner) -> None:
        file = Path(runner.work_dir) / f'rank_{runner.rank}.pth'
        torch.save(dict(runner.model.module.named_parameters()), file)
