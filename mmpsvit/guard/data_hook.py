# Copyright (c) mmpsvit contributors.
"""Tells what of its data a training would not survive, or silently get wrong."""

from collections.abc import Iterator

import torch
from mmengine.dataset import InfiniteSampler
from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.runner import EpochBasedTrainLoop, Runner
from torch import Tensor, nn
from torch.utils.data import Dataset

from mmpsvit.registry import HOOKS

from .errors import DataError
from .fit import shorten, unwrap

# What PyTorch's cross entropy ignores.
_IGNORED = -100


@HOOKS.register_module()
class DataHook(Hook):
    """Watches labels, class folders and the length of epochs.

    An error is a label beyond the model's classes, which on CUDA would end the process
    with a bare assertion of a kernel, and a training by epochs from an endless sampler.
    A warning are negative labels, which some losses ignore, class folders that one data
    set numbers otherwise than another one, where the accuracy of such numbers is taken,
    and hidden folders that count as classes.

    Raises:
        DataError: Before the iteration with such a label, naming the image, or before
            such a training.
    """

    def __init__(self) -> None:
        self._num_classes: int | None = None
        self._has_warned = False

    def before_train(self, runner: Runner) -> None:
        """Look at the data sets, which are built by now."""
        loader = runner.train_dataloader
        if isinstance(runner.train_loop, EpochBasedTrainLoop) and isinstance(
            getattr(loader, 'sampler', None), InfiniteSampler
        ):
            raise DataError(
                'the first epoch would never end: train_dataloader.sampler is an '
                'InfiniteSampler and train_cfg.by_epoch is True; take a DefaultSampler '
                'or train by iterations'
            )
        self._num_classes = _num_classes(runner.model)
        if is_main_process():
            for remark in _remarks(runner):
                runner.logger.warning(remark)

    def before_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: dict | None = None
    ) -> None:
        """Check the labels while they are still on the CPU."""
        if self._num_classes is None or not isinstance(data_batch, dict):
            return
        samples = data_batch.get('data_samples')
        samples = samples if isinstance(samples, (list, tuple)) else ()
        labels = [_labels_of(sample) for sample in samples]
        # Together, since this comes before each iteration.
        if not labels or not self._are_outside(torch.cat(labels)):
            return
        for sample, label in zip(samples, labels, strict=True):
            if not self._are_outside(label):
                continue
            told = (
                f'{getattr(sample, "img_path", "an image")} has the label '
                f'{label.tolist()}, the model has {self._num_classes} classes: labels '
                f'must be 0 to {self._num_classes - 1}'
            )
            if label.max() >= self._num_classes:
                raise DataError(told)
            if not self._has_warned:
                self._has_warned = True
                runner.logger.warning(f'{told}, or what the loss ignores')

    def _are_outside(self, labels: Tensor) -> bool:
        outside = (labels < 0) | (labels >= self._num_classes)
        return bool((outside & (labels != _IGNORED)).any())


def _num_classes(model: nn.Module) -> int | None:
    """How many classes the head of a classifier or detector tells apart, if known."""
    model = unwrap(model)
    if any(kind.__name__ == 'RPN' for kind in type(model).__mro__):
        return None  # MMDetection's, which takes all labels for 0
    roi_head = getattr(model, 'roi_head', model)
    for head in (getattr(model, 'head', None), getattr(roi_head, 'bbox_head', None)):
        if isinstance(head, nn.ModuleList):  # a cascade
            head = head[0]
        count = getattr(head, 'num_classes', None)
        if isinstance(count, int):
            return count
    return None


def _labels_of(sample: object) -> Tensor:
    """The class numbers of a sample of MMPretrain or MMDetection, (n,)."""
    labels = getattr(sample, 'gt_label', None)
    if labels is None:
        labels = getattr(getattr(sample, 'gt_instances', None), 'labels', None)
    # Those of a regression are no class numbers.
    if not isinstance(labels, Tensor) or labels.is_floating_point():
        return torch.empty(0, dtype=torch.int64)
    return labels.flatten()


def _remarks(runner: Runner) -> Iterator[str]:
    """What somebody who trains on class folders should know."""
    loops = [runner.train_loop]
    evaluator = getattr(runner.val_loop, 'evaluator', None)  # of MMEngine's loops
    if any(
        type(metric).__name__ in ('Accuracy', 'SingleLabelMetric')
        for metric in getattr(evaluator, 'metrics', ())
    ):
        loops.append(runner.val_loop)
    numbers: dict[str, int] = {}
    for loop in loops:
        for leaf in leaf_datasets(loop.dataloader.dataset):
            folders = getattr(leaf, 'folder_to_idx', None)
            if not folders:
                continue
            place = leaf.img_prefix
            hidden = [name for name in folders if name.startswith('.')]
            if hidden:
                yield (
                    f'hidden folders of {place} count as classes: {shorten(hidden)}. '
                    'Remove them'
                )
            other = [n for n in folders if numbers.get(n, folders[n]) != folders[n]]
            if other:
                yield (
                    f'class folders of {place} have other numbers than those of the '
                    f'same names before: {shorten(other)}. Scores will be wrong; the '
                    'same folders in each data set, or empty ones, mend it'
                )
            numbers = folders | numbers


def leaf_datasets(dataset: Dataset) -> Iterator[Dataset]:
    """The data sets that read samples, below those that repeat or join others."""
    parts = getattr(dataset, 'datasets', None)
    if parts is None:
        # The latter where MMEngine's `num_batch_per_epoch` cuts a data set short.
        inner = (getattr(dataset, key, None) for key in ('dataset', '_dataset'))
        parts = [part for part in inner if part is not None]
    for part in parts:
        yield from leaf_datasets(part)
    if not parts:
        yield dataset
