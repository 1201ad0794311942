# Copyright (c) mmpsvit contributors.
"""Pictures of where a network looks, while it trains."""

import copy
from collections.abc import Sequence

import numpy as np
from mmengine.dist import is_main_process
from mmengine.hooks import Hook, LoggerHook
from mmengine.runner import IterBasedTrainLoop, Runner, autocast
from torch.utils.data import Dataset

from mmpsvit.guard import leaf_datasets, unwrap
from mmpsvit.guard.process_state import get_random_state, set_random_state
from mmpsvit.registry import HOOKS

from .file_pipeline import MODES, find_channels, first_view
from .prediction import sample_images, spread_indices
from .sampling import figure_to_rgb, find_sampler, sampling_figure


@HOOKS.register_module()
class SamplingVisualizationHook(Hook):
    """Draws the sampling points on the same few images while a network trains.

    After validation rounds ``interval``, ``2 * interval``, and so on, counted from
    the start of the process, also when it resumes, each backend of the visualizer
    gets

    - the picture ``sampling``: images with start grid, paths and end points, and
      above each the predicted class, its score, and the true class if it is known;
    - the scalars ``sampling/displacement_2`` to ``sampling/displacement_<num_iters>``:
      how far the points of an iteration are from the start grid, as the mean over
      all points of these images, in pixels of the network's input.

    Both show the weights that were validated: with an ``EMAHook``, the averaged ones.
    The step is LoggerHook's for the scores of a validation, the epoch, or with
    ``log_metric_by_epoch=False`` the iteration; without epochs it always is the
    iteration, where LoggerHook by default puts all rounds at step 0.

    The first process does all this alone, on the network without its wrapper, so a
    network whose weights are sharded over processes cannot be drawn. The random state
    is restored: the network trains as it would without this hook.

    Args:
        interval (int): Validation rounds from picture to picture. Defaults to 1.
        num_images (int): How many images of the validation data set to draw, evenly
            spread over it. Defaults to 8.
        indices (Sequence[int], optional): Which images to draw instead. Defaults to
            None.

    Raises:
        ValueError: If an argument is out of its range, or, when training starts, if
            the network has no or several :class:`ProgressiveSampling` or the
            validation data set lacks one of ``indices``.
    """

    # Before EMAHook takes the averaged weights out again.
    priority = 'VERY_HIGH'

    def __init__(
        self,
        interval: int = 1,
        num_images: int = 8,
        indices: Sequence[int] | None = None,
    ) -> None:
        for name, value in dict(interval=interval, num_images=num_images).items():
            if value < 1:
                raise ValueError(f'{name} must be at least 1, got {value}')
        if indices is not None and not len(indices):
            raise ValueError(f'indices must name an image or be None, got {indices}')
        self.interval = interval
        self.num_images = num_images
        self.indices = indices
        self._rounds = 0
        self._items: list[dict] = []
        self._channels: list[int] | None = None

    def before_train(self, runner: Runner) -> None:
        """Check network and indices before the first epoch rather than after it."""
        if runner.val_loop is not None:
            self._check(runner)

    def before_val(self, runner: Runner) -> None:
        """Check network and indices of a validation without training."""
        self._check(runner)

    def after_val_epoch(self, runner: Runner, metrics: dict | None = None) -> None:
        """Draw, and log how far the points have moved."""
        self._rounds += 1
        if self._rounds % self.interval or not is_main_process():
            return
        model = unwrap(runner.model)
        dataset = runner.val_dataloader.dataset
        classes = (getattr(dataset, 'metainfo', None) or {}).get('classes') or ()
        random_state = get_random_state()
        with autocast(enabled=getattr(runner.val_loop, 'fp16', False)):
            if not self._items:
                # Kept, so that a pipeline with random steps shows the same images too.
                self._items = [
                    first_view(dataset[index]) for index in self._choose(len(dataset))
                ]
                self._channels = _channels_of(dataset, len(self._items[0]['inputs']))
            # Models write into the samples they get.
            sampled = sample_images(
                model, copy.deepcopy(self._items), self._channels, classes
            )
        set_random_state(random_state)

        step = _step(runner)
        panels = [(each.image, each.trajectory, each.title) for each in sampled]
        picture = figure_to_rgb(sampling_figure(panels))
        runner.visualizer.add_image('sampling', picture, step=step)
        means = mean_displacements([each.trajectory for each in sampled])
        if len(means):
            # Not also into LoggerHook's json file: MMPretrain's analyze_logs.py wants
            # the scores in every line of a validation there.
            runner.visualizer.add_scalars(
                {
                    f'sampling/displacement_{iteration}': float(mean)
                    for iteration, mean in enumerate(means, start=2)
                },
                step=step,
            )

    def _choose(self, total: int) -> Sequence[int]:
        """The indices of the images in a data set of ``total``."""
        if self.indices is None:
            return spread_indices(total, self.num_images)
        return self.indices

    def _check(self, runner: Runner) -> None:
        try:
            find_sampler(unwrap(runner.model))
        except ValueError as error:
            raise ValueError(f'{type(self).__name__}: {error}') from None
        total = len(runner.val_dataloader.dataset)
        if not all(0 <= index < total for index in self._choose(total)):
            raise ValueError(
                f'{type(self).__name__}: indices must be in [0, {total - 1}], the '
                f'images of the validation data set, got {self.indices}'
            )


def _channels_of(dataset: Dataset, count: int) -> list[int] | None:
    """Where a data set has the colours of its images, see :func:`find_channels`."""
    inner = next(leaf_datasets(dataset))
    # A data set of one's own may have a pipeline, and no description of its images.
    if count not in MODES or not (
        hasattr(inner, 'pipeline') and hasattr(inner, 'get_data_info')
    ):
        return None
    return find_channels(inner.pipeline, MODES[count], inner.get_data_info(0))


def mean_displacements(trajectories: Sequence[np.ndarray]) -> np.ndarray:
    """How far points are from where they started, as the mean over all images.

    Args:
        trajectories (Sequence[np.ndarray]): Points of each image, (num_iters, N, 2),
            (x, y) in pixels; N may differ.

    Returns:
        np.ndarray: The mean Euclidean distance to the start grid in iterations 2 to
        num_iters, (num_iters - 1,), in pixels.
    """
    points = np.concatenate(trajectories, axis=1).astype(float)
    return np.linalg.norm(points[1:] - points[0], axis=-1).mean(axis=1)


def _step(runner: Runner) -> int:
    """The step of a validation, see the hook."""
    loop = runner._train_loop
    # Without training. The public `runner.train_loop` would build the loop.
    if loop is None or isinstance(loop, dict):
        return 0
    by_epoch = all(
        hook.log_metric_by_epoch
        for hook in runner.hooks
        if isinstance(hook, LoggerHook)
    )
    if isinstance(loop, IterBasedTrainLoop) or not by_epoch:
        return runner.iter
    return runner.epoch
