# Copyright (c) mmpsvit contributors.
"""Finds, after a run of MMEngine failed, what in the data made it fail."""

import itertools
import traceback
from collections.abc import Iterator
from types import FrameType, TracebackType

from mmcv.transforms import BaseTransform
from mmengine.dataset import InfiniteSampler
from mmengine.runner import BaseLoop, IterBasedTrainLoop
from torch.utils.data import BatchSampler, DataLoader

from mmpsvit.guard import one_line, type_name


def find_data_fault(error: BaseException) -> str | None:
    """Find the image or data set that made a run fail.

    Nothing is checked beforehand: what failed is looked up in the traceback. Where a
    data worker failed, which leaves no frames behind, the samples of the batch that it
    was to make are prepared once more.

    Args:
        error (BaseException): What MMEngine's runner, or a data set, raised.

    Returns:
        str | None: One line, or None if the fault is not in the data.
    """
    frames = _frames(error.__traceback__)
    if fault := _fault_of_transform(frames, error):
        return fault
    for frame in reversed(frames):
        values = frame.f_locals
        loop = values.get('self')
        if isinstance(loop, BaseLoop):
            # Deeper inside, in `run_iter`, the batch was there.
            is_fetching = frame.f_code.co_name in ('run', 'run_epoch')
            return _fault_in_batch(loop, values.get('idx')) if is_fetching else None
        if frame.f_code.co_name == 'build_dataloader' and 'dataset' not in values:
            return _fault_of_dataset(values.get('dataset_cfg'), error)
    return None


def _frames(trace: TracebackType | None) -> list[FrameType]:
    """The frames of a traceback, the innermost last."""
    return [frame for frame, _ in traceback.walk_tb(trace)]


def _fault_of_transform(frames: list[FrameType], error: BaseException) -> str | None:
    """Name the image whose transform failed."""
    for frame in reversed(frames):
        step = frame.f_locals.get('self')
        if not isinstance(step, BaseTransform):
            continue
        samples = [v for v in frame.f_locals.values() if isinstance(v, dict)]
        paths = [sample['img_path'] for sample in samples if 'img_path' in sample]
        if paths:
            return f'image {paths[0]}: {type(step).__name__} failed ({one_line(error)})'
    return None


def _fault_in_batch(loop: BaseLoop, previous: int | None) -> str | None:
    """Prepare the samples of the batch that a loop could not get.

    Args:
        loop (BaseLoop): The loop.
        previous (int, optional): Number of the last batch that it got, if any.
    """
    number = 0 if previous is None else previous + 1
    if isinstance(loop, IterBasedTrainLoop):
        number = loop.iter
    try:
        indices = [*next(itertools.islice(_batches(loop.dataloader), number, None))]
    # Samplers of others may not start twice, or end.
    except Exception:
        return None
    for index in indices:
        try:
            sample = loop.dataloader.dataset[index]
        # A transform may fail in any way.
        except Exception as error:
            frames = _frames(error.__traceback__)
            fault = _fault_of_transform(frames, error)
            return fault or f'sample {index} of the data set failed ({one_line(error)})'
        if sample is None:
            return f'sample {index} of the data set is None'
    return None


def _batches(loader: DataLoader) -> Iterator[list[int]]:
    """The indices of the batches of a loader, once more from the beginning."""
    sampler = loader.sampler
    if isinstance(sampler, InfiniteSampler) and loader.batch_size is not None:
        # Its own iterator has moved on.
        again = sampler._indices_of_rank()
        return iter(BatchSampler(again, loader.batch_size, loader.drop_last))
    return iter(loader.batch_sampler)


def _fault_of_dataset(dataset: object, error: BaseException) -> str | None:
    """Say which data set could not be built."""
    if not isinstance(dataset, dict):
        return None
    keys = ('data_root', 'data_prefix', 'ann_file', 'split')
    where = ', '.join(f'{key}={dataset[key]!r}' for key in keys if dataset.get(key))
    return f'data set {type_name(dataset)}({where}) cannot be read ({one_line(error)})'
