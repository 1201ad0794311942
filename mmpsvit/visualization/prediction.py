# Copyright (c) mmpsvit contributors.
"""Runs a network on images and keeps what its picture needs."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from mmengine.dataset import pseudo_collate
from mmengine.structures import BaseDataElement
from torch import nn

from .sampling import record_sampling


class SampledImages(NamedTuple):
    """What a picture of several images needs, in the order of ``sampling_figure``.

    Attributes:
        images (list[np.ndarray]): The network's inputs before normalisation and
            padding, each RGB of shape (H, W, 3), uint8.
        trajectories (list[np.ndarray]): Points of each, (num_iters, N, 2), (x, y) in
            pixels of the image.
        titles (list[str]): The predicted class and its score; empty unless the model
            is a classifier.
    """

    images: list[np.ndarray]
    trajectories: list[np.ndarray]
    titles: list[str]


def spread_indices(total: int, count: int) -> list[int]:
    """Indices of ``count`` of ``total`` things, or of all, evenly spread over them."""
    return np.linspace(0, total - 1, min(count, total)).astype(int).tolist()


def predict_sampling(
    model: nn.Module, items: Iterable[dict], classes: Sequence[str] = ()
) -> SampledImages:
    """Run a model on images, one by one, and record where it samples.

    The model evaluates without gradients; its mode is restored.

    Args:
        model (nn.Module): A classifier or detector with one
            :class:`ProgressiveSampling`, with its data preprocessor.
        items (Iterable[dict]): What a data set or its pipeline gives, each with
            'inputs' of shape (3, H, W), uint8, and 'data_samples'.
        classes (Sequence[str]): Names of the classes. Defaults to (), which means
            their numbers.

    Returns:
        SampledImages: One entry for each image.

    Raises:
        ValueError: If the model has no or several samplers.
    """
    images, titles = [], []
    training = model.training
    model.eval()
    try:
        with torch.no_grad(), record_sampling(model) as trajectories:
            for item in items:
                (sample,) = model.test_step(pseudo_collate([item]))
                image = item['inputs']
                if _swaps_channels(model.data_preprocessor):
                    image = image.flip(0)
                # (3, H, W) -> (H, W, 3)
                images.append(image.permute(1, 2, 0).cpu().numpy())
                titles.append(_title_of(sample, classes))
    finally:
        model.train(training)
    return SampledImages(images, trajectories, titles)


def _swaps_channels(data_preprocessor: nn.Module) -> bool:
    """Whether BGR images become the RGB that the network is made for."""
    # MMPretrain's name, then MMEngine's and MMDetection's.
    for name in ('to_rgb', '_channel_conversion'):
        if hasattr(data_preprocessor, name):
            return bool(getattr(data_preprocessor, name))
    return False


def _title_of(sample: BaseDataElement, classes: Sequence[str]) -> str:
    """The predicted class and its score, and the true class where it is another."""
    if 'pred_score' not in sample:
        return ''
    label = int(sample.pred_label)
    title = f'{_name(label, classes)} ({sample.pred_score[label]:.0%})'
    if 'gt_label' in sample and sample.gt_label.numel() == 1:
        truth = int(sample.gt_label)
        if truth != label:
            title += f', is {_name(truth, classes)}'
    return title


def _name(label: int, classes: Sequence[str]) -> str:
    return classes[label] if label < len(classes) else str(label)
