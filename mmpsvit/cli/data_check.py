# Copyright (c) mmpsvit contributors.
"""Tells in one line what is wrong with a user's data."""

import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from mmengine.config import Config
from mmengine.dataset import Compose
from mmengine.fileio import get_file_backend
from mmengine.logging import print_log
from mmengine.runner import Runner
from torch.utils.data import DataLoader, Dataset

from mmpsvit.guard.images import CheckedPipeline, DataError, one_line

__all__ = ['DataError', 'check_data_of']

# The heads that tell the classes of a data set apart. Auxiliary ones may have others.
_HEADS = ('head', 'bbox_head', 'mask_head', 'decode_head')
# Such models are told of classes in words; their number is that of words, or open.
_TEXT_PARTS = ('language_model', 'text_encoder', 'text_model')


def check_data_of(runner: Runner, cfg: Config) -> None:
    """Make a runner check each data set when it builds it, and each image later.

    Args:
        runner (Runner): The runner. From then on, building a data loader raises a
            :class:`DataError` for folders that are missing or empty, also those of
            single classes, annotations that cannot be read, labels that the classifier
            does not have, another number of classes than a head of the model has, and
            class folders other than in the data sets before. Taking batches from the
            loader raises one for an image that cannot be read or prepared.
        cfg (Config): The runner's config.
    """
    build = runner.build_dataloader
    counts = [*_class_counts(cfg.model)]
    num_classes = dict(counts).get('model.head.num_classes')
    known_folders: dict[str, dict] = {}

    def build_checked(dataloader: DataLoader | dict, *args, **kwargs) -> DataLoader:
        if isinstance(dataloader, DataLoader):
            return dataloader
        dataset = dataloader['dataset']
        if not isinstance(dataset, dict):
            return build(dataloader, *args, **kwargs)
        name = _describe(dataset)
        try:
            loader = build(dataloader, *args, **kwargs)
        # Each data set has its own way to fail.
        except Exception as error:
            reason = _fault_in_lines(dataset) or one_line(error)
            raise DataError(f'data set {name} cannot be read ({reason})') from error
        metainfo = getattr(loader.dataset, 'metainfo', {})
        # Of panoptic data, boxes and masks have the things only.
        things = metainfo.get('thing_classes')
        for key, count in counts:
            classes = (
                things if things and 'roi_head' in key else metainfo.get('classes')
            )
            if classes and len(classes) != count:
                raise DataError(
                    f'data set {name} has {len(classes)} classes, {key} is {count}'
                )
        for leaf in _leaves_of(loader.dataset):
            if len(leaf) == 0:
                raise DataError(f'data set {name} is empty')
            if getattr(leaf, 'folder_to_idx', None):
                _check_folders(name, leaf, known_folders)
            elif num_classes and hasattr(leaf, 'get_data_info'):
                _check_labels(name, leaf, num_classes)
            if type(getattr(leaf, 'pipeline', None)) is Compose:
                leaf.pipeline = CheckedPipeline(leaf.pipeline)
        return loader

    runner.build_dataloader = build_checked


def _class_counts(model: dict) -> Iterator[tuple[str, int]]:
    """The number of classes of each head, also below test-time augmentation."""
    model = model.get('module', model)
    if any(model.get(part) for part in _TEXT_PARTS):
        return
    for path, parent in (('model', model), ('model.roi_head', model.get('roi_head'))):
        for key in _HEADS if isinstance(parent, dict) else ():
            heads = parent.get(key)
            # Cascades have lists.
            for head in heads if isinstance(heads, (list, tuple)) else [heads]:
                if isinstance(head, dict) and _has_all_classes(head):
                    yield f'{path}.{key}.num_classes', head['num_classes']


def _has_all_classes(head: dict) -> bool:
    """Whether a head has one output for each class of the data set."""
    if not head.get('num_classes') or head.get('class_agnostic'):
        return False
    # Segmentors with one output tell two classes apart.
    return head.get('out_channels') != 1


def _describe(dataset: dict) -> str:
    """The data set's type and where it lies."""
    keys = ('data_root', 'data_prefix', 'ann_file', 'split')
    where = ', '.join(f'{key}={dataset[key]!r}' for key in keys if dataset.get(key))
    return f'{dataset["type"]}({where})'


def _leaves_of(dataset: Dataset) -> Iterator[Dataset]:
    """The data sets that read samples, below those that repeat or join others."""
    parts = getattr(dataset, 'datasets', None)
    if parts is None:
        # The latter where MMEngine's `num_batch_per_epoch` cuts a data set short.
        inner = (getattr(dataset, key, None) for key in ('dataset', '_dataset'))
        parts = [part for part in inner if isinstance(part, Dataset)]
    for part in parts:
        yield from _leaves_of(part)
    if not parts:
        yield dataset


def _check_folders(name: str, dataset: Dataset, known: dict[str, dict]) -> None:
    """Check a data set whose classes are folders, and tell which files it leaves out.

    Args:
        name (str): How messages call the data set.
        dataset (Dataset): MMPretrain's ``CustomDataset`` or a subclass.
        known (dict): The class folders of the first data set that came here, by its
            name; empty before.
    """
    folders = dataset.folder_to_idx
    ((first, expected),) = known.items() or [(name, folders)]
    known[first] = expected
    if folders != expected:
        differing = sorted(folders.keys() ^ expected.keys())
        raise DataError(
            f'data set {name} has other class folders than {first}: '
            f'{_some(differing)} in one of the two only'
        )
    backend = get_file_backend(dataset.img_prefix, enable_singleton=True)
    empty = []
    left_out = [*backend.list_dir_or_file(dataset.img_prefix, list_dir=False)]
    for folder in folders:
        path = backend.join_path(dataset.img_prefix, folder)
        is_empty = True
        for file in backend.list_dir_or_file(path, list_dir=False, recursive=True):
            if dataset.is_valid_file(file):
                is_empty = False
            else:
                left_out.append(backend.join_path(folder, file))
        if is_empty:
            empty.append(folder)
    extensions = ' '.join(sorted(dataset.extensions))
    if empty:
        raise DataError(
            f'data set {name} has class folders without images: {_some(empty)} '
            f'(extensions: {extensions})'
        )
    if left_out:
        print_log(
            f'data set {name} leaves out files in no class folder or without the '
            f'extension of an image: {_some(left_out)} (extensions: {extensions})',
            logger='current',
            level=logging.WARNING,
        )


def _check_labels(name: str, dataset: Dataset, num_classes: int) -> None:
    """Check that each label, or each one of several, is one of the classifier's."""
    for index in range(len(dataset)):
        info = dataset.get_data_info(index)
        labels = info.get('gt_label')
        if labels is None:
            return
        for label in np.atleast_1d(labels):
            if not 0 <= label < num_classes:
                raise DataError(
                    f'data set {name} has label {label} for '
                    f'{info.get("img_path", f"sample {index}")}, '
                    f'model.head.num_classes is {num_classes}: labels must be 0 to '
                    f'{num_classes - 1}'
                )


def _fault_in_lines(dataset: dict) -> str | None:
    """What is wrong with a text file of lines ``<image> <label>``, if it is that."""
    kind = str(dataset['type']).rsplit('.', 1)[-1]
    ann_file = dataset.get('ann_file')
    if kind not in ('CustomDataset', 'ImageNet') or not dataset.get('with_label', True):
        return None
    path = Path(os.path.expanduser(dataset.get('data_root', '')))
    path /= os.path.expanduser(ann_file or '')
    if not ann_file or not path.is_file():
        return None
    try:
        lines = path.read_text(encoding='utf-8').split('\n')
    except UnicodeDecodeError:
        return f'{path} is no text file'
    if lines[-1] == '':
        lines.pop()
    if not lines:
        return f'{path} is empty'
    for number, line in enumerate(lines, 1):
        *_, label = parts = line.strip().rsplit(' ', 1)
        if len(parts) != 2 or not label.lstrip('+-').isdecimal():
            return f'{path}, line {number}: expected <image> <label>, got {line[:80]!r}'
    return None


def _some(names: Sequence[str], count: int = 5) -> str:
    """The first of some names, and how many there are."""
    more = f', ... ({len(names)} in all)' if len(names) > count else ''
    return ', '.join(names[:count]) + more
