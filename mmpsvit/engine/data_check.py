# Copyright (c) mmpsvit contributors.
"""Tells in one line what is wrong with a user's data, before training starts."""

from mmengine.config import Config
from mmengine.runner import Runner
from torch.utils.data import DataLoader


class DataError(RuntimeError):
    """A data set cannot be read, or does not fit the model."""


def check_data_of(runner: Runner, cfg: Config) -> None:
    """Make a runner check each data set when it builds it.

    Args:
        runner (Runner): The runner; from then on, building a data loader raises a
            :class:`DataError` for folders that are missing or empty, annotations that
            cannot be read, and a number of classes that the classifier does not have.
        cfg (Config): The runner's config.
    """
    build = runner.build_dataloader

    def build_checked(dataloader: DataLoader | dict, *args, **kwargs) -> DataLoader:
        if isinstance(dataloader, DataLoader):
            return dataloader
        dataset = dataloader['dataset']
        if not isinstance(dataset, dict):
            return build(dataloader, *args, **kwargs)
        try:
            loader = build(dataloader, *args, **kwargs)
        # Each data set has its own way to fail.
        except Exception as error:
            reason = ' '.join(str(error).split())
            raise DataError(
                f'data set {_describe(dataset)} cannot be read '
                f'({type(error).__name__}: {reason})'
            ) from error
        classes = getattr(loader.dataset, 'metainfo', {}).get('classes')
        num_classes = _head_of(cfg.model).get('num_classes')
        if classes and num_classes and len(classes) != num_classes:
            raise DataError(
                f'data set {_describe(dataset)} has {len(classes)} classes, '
                f'model.head.num_classes is {num_classes}'
            )
        return loader

    runner.build_dataloader = build_checked


def _head_of(model: dict) -> dict:
    """The config of a classifier's head, also below test-time augmentation."""
    model = model.get('module', model)
    return model.get('head') or {}


def _describe(dataset: dict) -> str:
    """The data set's type and where it lies."""
    keys = ('data_root', 'data_prefix', 'ann_file', 'split')
    where = ', '.join(f'{key}={dataset[key]!r}' for key in keys if dataset.get(key))
    return f'{dataset["type"]}({where})'
