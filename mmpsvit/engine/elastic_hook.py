# Copyright (c) mmpsvit contributors.
"""Draws the number of points of each batch of a training."""

from mmengine.dist import broadcast_object_list
from mmengine.hooks import Hook
from mmengine.runner import Runner

from mmpsvit.guard import unwrap
from mmpsvit.models import ProgressiveSampling
from mmpsvit.registry import HOOKS


@HOOKS.register_module()
class ElasticPointsHook(Hook):
    """Lets every batch of a training draw its number of points.

    For samplers whose ``num_points`` are choices. The draw depends on the seed of the
    training and on the iteration only: all processes draw the same, and so does a
    training that resumes.

    Raises:
        ValueError: When the training starts, if no sampler of the model has choices.
    """

    def before_train(self, runner: Runner) -> None:
        """Find the samplers, and the seed of the main process."""
        # With `diff_rank_seed`, each process has one of its own.
        seeds = [runner.seed]
        broadcast_object_list(seeds)
        self._seed = seeds[0]
        model = unwrap(runner.model)
        self._samplers = [
            module
            for module in model.modules()
            if isinstance(module, ProgressiveSampling) and module.choices
        ]
        if not self._samplers:
            raise ValueError(
                f'ElasticPointsHook: no sampler of {type(model).__name__} has several '
                'num_points to choose from, such as [10, 12, 14, 16, 18]'
            )

    def before_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: dict | None = None
    ) -> None:
        """Draw."""
        for sampler in self._samplers:
            sampler.draw_points(f'{self._seed} {runner.iter}')
