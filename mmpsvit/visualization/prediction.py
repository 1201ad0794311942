# Copyright (c) mmpsvit contributors.
"""Runs a network on single images, for pictures of where it looks."""

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from mmengine.dataset import pseudo_collate
from mmengine.model import BaseModel
from mmengine.structures import BaseDataElement
from torch import nn

from .sampling import record_sampling

_MAX_NAME = 24


class SampledImages(NamedTuple):
    """Images and what a network did with them: the arguments of `sampling_figure`.

    Attributes:
        images (list[np.ndarray]): The network's inputs as RGB images, each (H, W, 3),
            uint8.
        trajectories (list[np.ndarray]): The points of every iteration in each image,
            (num_iters, N, 2), (x, y) in pixels, see :func:`record_sampling`.
        titles (list[str]): A classifier's predictions, see :func:`title_of`.
    """

    images: list[np.ndarray]
    trajectories: list[np.ndarray]
    titles: list[str]


class SampledImage(NamedTuple):
    """An image and what a network did with it.

    Attributes:
        image (np.ndarray): The network's input as an RGB image, (H, W, 3), uint8.
        trajectory (np.ndarray): The points of every iteration, (num_iters, N, 2),
            (x, y) in pixels, see :func:`record_sampling`.
        prediction (BaseDataElement): What the model returned.
    """

    image: np.ndarray
    trajectory: np.ndarray
    prediction: BaseDataElement


def spread_indices(total: int, count: int) -> list[int]:
    """Indices of ``count`` of ``total`` things, or of all, evenly spread over them."""
    return np.linspace(0, total - 1, min(count, total)).astype(int).tolist()


def sample_images(model: BaseModel, items: Iterable[dict]) -> list[SampledImage]:
    """Run a model on images one by one, since they may differ in size.

    The model runs in eval mode and without gradients; afterwards, each of its modules
    is in the mode it was in.

    Args:
        model (BaseModel): A classifier or detector with a
            :class:`ProgressiveSampling` in it; not wrapped for distributed training,
            so that one process can run it alone.
        items (Iterable[dict]): Images as the pipeline of a data set packs them:
            ``inputs``, a tensor (3, H, W) or (1, H, W), uint8, and ``data_samples``,
            which the model may write its predictions into.

    Returns:
        list[SampledImage]: Images, points and predictions, in the order of ``items``.

    Raises:
        ValueError: If the model has no or several samplers.
    """
    sampled = []
    with _eval_mode(model), torch.no_grad(), record_sampling(model) as trajectories:
        for item in items:
            (prediction,) = model.test_step(pseudo_collate([item]))
            image = _rgb_image(item, model.data_preprocessor)
            sampled.append(SampledImage(image, trajectories[-1], prediction))
    return sampled


def predict_sampling(
    model: BaseModel, items: Iterable[dict], classes: Sequence[str] = ()
) -> SampledImages:
    """Run a model on images and title each with what was predicted.

    Args:
        model (BaseModel): As in :func:`sample_images`.
        items (Iterable[dict]): As in :func:`sample_images`.
        classes (Sequence[str]): Class names for the titles. Defaults to ().

    Returns:
        SampledImages: Images, points and titles, in the order of ``items``.

    Raises:
        ValueError: If the model has no or several samplers.
    """
    sampled = sample_images(model, items)
    return SampledImages(
        [each.image for each in sampled],
        [each.trajectory for each in sampled],
        [title_of(each.prediction, classes) for each in sampled],
    )


def title_of(prediction: BaseDataElement, classes: Sequence[str]) -> str:
    """Name a classifier's best class, its score, and the truth where it is known.

    Args:
        prediction (BaseDataElement): What the model returned for an image.
        classes (Sequence[str]): Class names; labels beyond them stay numbers.

    Returns:
        str: Such as 'cat (93%), truth: dog'; empty for a detector.
    """
    if 'pred_score' not in prediction:
        return ''
    label = int(prediction.pred_score.argmax())
    title = f'{class_name(label, classes)} ({prediction.pred_score[label]:.0%})'
    if 'gt_label' in prediction:
        truth = (class_name(label, classes) for label in prediction.gt_label.tolist())
        title += f', truth: {" + ".join(truth)}'
    return title


def class_name(label: int, classes: Sequence[str]) -> str:
    """Name a class, by its number where the names end; long names are cut off."""
    name = str(classes[label] if label < len(classes) else label)
    return name if len(name) <= _MAX_NAME else name[: _MAX_NAME - 1] + '…'


def _rgb_image(item: dict, data_preprocessor: nn.Module) -> np.ndarray:
    """The network's input before normalisation and padding, (H, W, 3) in RGB."""
    # Files are read as BGR, whatever the network wants; the arrays of a data set such
    # as CIFAR are RGB already, and then the network does not convert them.
    converts = any(
        getattr(data_preprocessor, name, False)
        for name in ('to_rgb', '_channel_conversion')
    )
    image = item['inputs']
    if converts or 'img_path' in item['data_samples']:
        image = image.flip(0)
    # Grey images get three equal channels.
    return image.expand(3, -1, -1).permute(1, 2, 0).numpy()


@contextlib.contextmanager
def _eval_mode(model: nn.Module) -> Iterator[None]:
    """Put the modules into eval mode, and each back into its own mode afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
