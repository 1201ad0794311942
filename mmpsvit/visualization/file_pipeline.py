# Copyright (c) mmpsvit contributors.
"""Prepares image files as the test data of a config, and finds their colours again."""

import contextlib
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from mmengine.config import Config
from mmengine.dataset import Compose
from mmengine.registry import init_default_scope
from PIL import Image, ImageOps
from torch import nn

from mmpsvit.guard import type_name

# Modes of image files by their number of channels.
MODES = {1: 'L', 3: 'RGB', 4: 'RGBA'}


class FilePipeline:
    """The test pipeline of a config, for any image file.

    Steps that load annotations are left out, and images are read from the local disk.
    For a data set of arrays, such as CIFAR, the pipeline gets the file's pixels.

    Args:
        cfg (Config): The config. Its default scope becomes that of the process.
        channels (int): How many channels the network takes. Defaults to 3.

    Raises:
        ValueError: If the config has no data set with a pipeline.
    """

    def __init__(self, cfg: Config, channels: int = 3) -> None:
        init_default_scope(cfg.get('default_scope') or 'mmpretrain')
        steps = _steps_of(testing_dataset(cfg))
        if not steps:
            raise ValueError('the config has no test_dataloader with a pipeline')
        self.mode = MODES.get(channels, 'RGB')
        self.compose = Compose([_for_files(s) for s in steps if not _annotates(s)])
        #: See :func:`find_channels`.
        self.channels = find_channels(self.compose, self.mode)

    def __call__(self, path: str | Path) -> dict:
        """Prepare an image file; gives ``inputs`` (C, H, W) and ``data_samples``."""
        return first_view(self.compose(describe_file(path, self.mode)))


def testing_dataset(cfg: Config) -> dict:
    """The config of the test data set, or else of the validation's; may be empty."""
    loaders = (cfg.get(f'{name}_dataloader') or {} for name in ('test', 'val'))
    return next((each['dataset'] for each in loaders if each.get('dataset')), {})


def describe_file(path: str | Path, mode: str = 'RGB') -> dict:
    """What a data set knows of an image: the file, or its pixels in an array.

    Args:
        path (str | Path): The file; what Pillow cannot read is without pixels.
        mode (str): Pillow's mode of the pixels. Defaults to 'RGB'.
    """
    info = dict(img_path=str(path), img_id=0, sample_idx=0)
    with contextlib.suppress(Exception), Image.open(path) as opened:
        pixels = np.array(ImageOps.exif_transpose(opened).convert(mode))
        height, width = shape = pixels.shape[:2]
        info.update(img=pixels, img_shape=shape, ori_shape=shape)
        info.update(height=height, width=width)
    return info


def find_channels(
    pipeline: Callable[[dict], dict], mode: str = 'RGB', info: dict | None = None
) -> list[int] | None:
    """Find where a pipeline puts the colours of an image file, by looking.

    A file of one colour goes through it. So no step is to be known: readers, wrapped
    data sets, and transforms that swap colours all show in what comes out.

    Args:
        pipeline (Callable[[dict], dict]): The pipeline.
        mode (str): The mode of the files: 'L', 'RGB' or 'RGBA'. Defaults to 'RGB'.
        info (dict, optional): What else the pipeline needs: the data set's description
            of one of its images, as from ``get_data_info``. Defaults to None.

    Returns:
        list[int] | None: For each channel of the file the one it becomes: [2, 1, 0]
        for BGR. None if the pipeline does not take such a file.
    """
    colour = dict(zip('LRGBA', (120, 200, 120, 40, 255), strict=True))
    values = [colour[name] for name in mode]
    with TemporaryDirectory() as folder:
        path = Path(folder) / 'colour.png'
        # A pipeline may fail in any way.
        try:
            size = _size_of(info or {})
            Image.new(mode, size, tuple(values)).save(path)
            item = first_view(pipeline({**(info or {}), **describe_file(path, mode)}))
            inputs = item['inputs'].float()
        except Exception:
            return None
    if len(inputs) != len(values):
        return None
    # Where the channels differ most there is no padding.
    pixel = (inputs.amax(0) - inputs.amin(0)).argmax()
    ranked = inputs.flatten(1)[:, pixel].argsort(descending=True, stable=True).tolist()
    channels = [0] * len(values)
    for place, band in enumerate(sorted(range(len(values)), key=lambda b: -values[b])):
        channels[band] = ranked[place]
    return channels


def first_view(item: dict) -> dict:
    """One view of an image for test-time augmentation, one not flipped if possible."""
    if not isinstance(item['inputs'], Sequence):
        return item
    flips = [sample.get('flip', False) for sample in item['data_samples']]
    view = flips.index(False) if False in flips else 0
    return {key: value[view] for key, value in item.items()}


def in_channels(model: nn.Module) -> int:
    """How many channels the first convolution of a model takes; 3 without one."""
    convs = (m for m in model.modules() if isinstance(m, nn.Conv2d))
    return next((conv.in_channels for conv in convs), 3)


def _size_of(info: dict) -> tuple[int, int]:
    """Width and height of a described image, which its annotations fit."""
    if Path(info.get('img_path') or '').is_file():
        with Image.open(info['img_path']) as opened:
            return opened.size
    return info.get('width', 256), info.get('height', 256)


def _steps_of(dataset: dict) -> list:
    """The pipeline of a data set's config, through its wrappers."""
    inner = dataset.get('dataset') or next(iter(dataset.get('datasets') or ()), None)
    steps = _steps_of(inner) if inner else []
    return [*steps, *(dataset.get('pipeline') or ())]


def _annotates(step: dict | Callable) -> bool:
    name = type_name(step) or type(step).__name__
    return name.startswith('Load') and ('Ann' in name or 'Proposals' in name)


def _for_files(step: dict | Callable) -> dict | Callable:
    """The same step without what says where images are stored."""
    if not isinstance(step, dict):
        return step
    storage = ('backend_args', 'file_client_args')
    return {key: value for key, value in step.items() if key not in storage}
