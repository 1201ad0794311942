# Copyright (c) mmpsvit contributors.
"""Runs a network on single images, for pictures of where it looks."""

import contextlib
import logging
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from mmengine.dataset import pseudo_collate
from mmengine.logging import print_log
from mmengine.model import BaseModel
from mmengine.structures import BaseDataElement
from mmpretrain.models.retrievers.base import BaseRetriever
from mmpretrain.structures import MultiTaskDataSample
from torch import Tensor, nn

from .file_pipeline import first_view
from .sampling import record_sampling

_MAX_NAME = 24


class SampledImage(NamedTuple):
    """An image and what a network did with it.

    Attributes:
        image (np.ndarray): The network's input as an RGB image, (H, W, 3), uint8.
        trajectory (np.ndarray): The points of every iteration, (num_iters, N, 2),
            (x, y) in pixels, see :func:`record_sampling`.
        prediction (BaseDataElement): What the model returned.
        title (str): A classifier's prediction, see :func:`title_of`.
    """

    image: np.ndarray
    trajectory: np.ndarray
    prediction: BaseDataElement
    title: str


def spread_indices(total: int, count: int) -> list[int]:
    """Indices of ``count`` of ``total`` things, or of all, evenly spread over them."""
    return np.linspace(0, total - 1, min(count, total)).astype(int).tolist()


def sample_images(
    model: BaseModel,
    items: Iterable[dict],
    channels: Sequence[int] | None = None,
    classes: Sequence[str] = (),
) -> list[SampledImage]:
    """Run a model on images one by one, since they may differ in size.

    The model runs in eval mode and without gradients; afterwards, each of its modules
    is in the mode it was in. Where it predicts nothing, such as without a head, the
    points are shown all the same.

    Args:
        model (BaseModel): A model with a :class:`ProgressiveSampling` in it; not
            wrapped for distributed training, so that one process can run it alone.
        items (Iterable[dict]): Images as the pipeline of a data set packs them:
            ``inputs``, a tensor (C, H, W), and ``data_samples``, which the model may
            write its predictions into; or lists of views, of which one is shown.
        channels (Sequence[int], optional): Where red, green and blue are in the
            inputs, see :func:`find_channels`. By default, inputs are BGR if the data
            preprocessor converts them, else RGB.
        classes (Sequence[str]): Class names for the titles. Defaults to ().

    Returns:
        list[SampledImage]: Images, points and predictions, in the order of ``items``.

    Raises:
        ValueError: If the model has no or several samplers.
    """
    if channels is None:
        converts = any(
            getattr(model.data_preprocessor, name, False)
            for name in ('to_rgb', '_channel_conversion')
        )
        channels = (2, 1, 0) if converts else (0, 1, 2)
    sampled, failure = [], None
    with eval_mode(model), torch.no_grad(), record_sampling(model) as trajectories:
        for item in map(first_view, items):
            prediction, error = _predict(model, item)
            failure = failure or error
            image = to_image(item['inputs'], channels)
            title = title_of(prediction, classes)
            sampled.append(SampledImage(image, trajectories[-1], prediction, title))
    if failure is not None:
        print_log(
            f'{type(model).__name__} predicts nothing: {failure!r}',
            logger='current',
            level=logging.WARNING,
        )
    return sampled


def _predict(model: BaseModel, item: dict) -> tuple[BaseDataElement, Exception | None]:
    """Run a model; its prediction, or the sample and what kept it from predicting."""
    failure = None
    # A retriever's is a place in its gallery, which would have to be read first; a
    # segmentor's may be of windows, of which the last would be shown.
    windows = (getattr(model, 'test_cfg', None) or {}).get('mode') == 'slide'
    if not windows and not isinstance(model, BaseRetriever):
        try:
            prediction = model.test_step(pseudo_collate([item]))[0]
            # A model of one's own may return anything, such as logits.
            known = isinstance(prediction, BaseDataElement)
            return prediction if known else BaseDataElement(), None
        # Models fail to predict in many ways. The network itself is run again below,
        # and fails again if it is to blame.
        except Exception as error:
            failure = error
    data = model.data_preprocessor(pseudo_collate([item]), False)
    model(**data, mode='tensor')
    return item['data_samples'], failure


def title_of(prediction: BaseDataElement, classes: Sequence[str]) -> str:
    """Name a classifier's best class, its score, and the truth where it is known.

    Args:
        prediction (BaseDataElement): What the model returned for an image.
        classes (Sequence[str]): Class names; labels beyond them stay numbers.

    Returns:
        str: Such as 'cat (93%), truth: dog', for each task where there are several;
        empty for a detector.
    """
    if isinstance(prediction, MultiTaskDataSample):
        # MMEngine keeps them in a set, in another order in each process.
        tasks = (
            (task, title_of(prediction.get(task), ()))
            for task in sorted(prediction.keys())
        )
        return '; '.join(f'{task}: {title}' for task, title in tasks if title)
    if 'pred_score' not in prediction:
        return ''
    label = int(prediction.pred_score.argmax())
    title = f'{class_name(label, classes)} ({prediction.pred_score[label]:.0%})'
    if 'gt_label' in prediction:
        truth = (class_name(label, classes) for label in prediction.gt_label.tolist())
        title += f', truth: {" + ".join(truth) or "none"}'
    return title


def class_name(label: int, classes: Sequence[str]) -> str:
    """Name a class, by its number where the names end; long names are cut off."""
    name = str(classes[label] if 0 <= label < len(classes) else label)
    return name if len(name) <= _MAX_NAME else name[: _MAX_NAME - 1] + '…'


def to_image(inputs: Tensor, channels: Sequence[int]) -> np.ndarray:
    """The network's input before normalisation and padding, for a picture.

    Args:
        inputs (Tensor): Of shape (C, H, W). What is not from 0 to 255 is scaled.
        channels (Sequence[int]): Where red, green and blue are; images without them
            are shown in grey.

    Returns:
        np.ndarray: RGB image of shape (H, W, 3), uint8.
    """
    inputs = inputs.detach().cpu()
    inputs = inputs[list(channels[:3])] if len(inputs) > 2 else inputs[:1]
    if inputs.dtype != torch.uint8:
        inputs = inputs.float()  # unsigned 16 bits have no minimum in PyTorch
        low, high = inputs.min(), inputs.max()
        if low < 0 or high > 255 or high <= 1:
            inputs = (inputs - low) / (high - low).clamp(min=1e-6) * 255
        inputs = inputs.round().to(torch.uint8)
    return inputs.expand(3, -1, -1).permute(1, 2, 0).numpy()


@contextlib.contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Put the modules into eval mode, and each back into its own mode afterwards.

    From PyTorch 2.6 on, compiled modules run uncompiled: otherwise they would not call
    hooks that were added later.
    """
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    eagerly = contextlib.nullcontext()
    if hasattr(torch.compiler, 'set_stance'):  # from PyTorch 2.6 on
        eagerly = torch.compiler.set_stance('force_eager')
    try:
        with eagerly:
            yield
    finally:
        for module, training in modes:
            module.training = training
