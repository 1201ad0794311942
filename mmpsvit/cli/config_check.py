# Copyright (c) mmpsvit contributors.
"""Finds what is wrong with a config around PS-ViT before anything is built."""

from collections.abc import Iterator

from mmengine.config import Config

from mmpsvit.models import PSViT
from mmpsvit.models.backbones.psvit import resolve_arch

IMAGENET_MEAN = [123.675, 116.28, 103.53]
IMAGENET_STD = [58.395, 57.12, 57.375]
_POOLING_NECKS = ('GlobalAveragePooling', 'GeneralizedMeanPooling')


class ConfigError(RuntimeError):
    """Parts of a config do not fit each other."""


def check_config(cfg: Config, evaluator: str = 'val_evaluator') -> None:
    """Check that what PS-ViT puts out is what the model's next part takes, and classes.

    Args:
        cfg (Config): Config of a runner.
        evaluator (str): Which evaluator the run needs. Defaults to 'val_evaluator'.

    Raises:
        ConfigError: If ``out_type`` does not fit the neck, or without a neck the head,
            or the neck expects another number of maps or other channels. Of any
            classifier, if it has other classes than the ``data_preprocessor`` that
            mixes its images, or fewer than the ``topk`` of its accuracy.
    """
    model = _model_of(cfg)
    head = model.get('head')
    num_classes = head.get('num_classes') if isinstance(head, dict) else None
    if num_classes is not None:
        _check_mixing(cfg, model, num_classes)
        _check_topk(cfg, evaluator, num_classes)
    backbone = _psvit_of(model)
    if backbone is None:
        return
    out_type = backbone.get('out_type', 'cls_token')
    neck = model.get('neck')
    # MMDetection chains the necks of a list.
    neck = neck[0] if isinstance(neck, (list, tuple)) else neck
    if neck:
        channels = neck.get('in_channels')
        if isinstance(channels, (list, tuple)):
            _check_maps(backbone, f'model.neck {neck["type"]}', out_type, channels)
        elif _name(neck) in _POOLING_NECKS:
            _check_maps(backbone, f'model.neck {neck["type"]}', out_type)
    elif not model.get('head'):
        _check_maps(backbone, f'model {model["type"]}', out_type)
    elif out_type == 'featmap':
        others = [name for name in PSViT.OUT_TYPES if name != 'featmap']
        raise ConfigError(
            f'model.backbone.out_type must be one of {others} for model.head '
            f'{model["head"]["type"]} without a neck, got {out_type!r}'
        )


def _check_mixing(cfg: Config, model: dict, num_classes: int) -> None:
    """Check the number of classes of what makes vectors of labels, to mix them."""
    given = model.get('data_preprocessor') or cfg.get('data_preprocessor') or {}
    augments = (model.get('train_cfg') or {}).get('augments')
    mixes = given.get('to_onehot') or given.get('batch_augments') or augments
    if mixes and given.get('num_classes') not in (None, num_classes):
        raise ConfigError(
            f'data_preprocessor.num_classes is {given["num_classes"]}, '
            f'model.head.num_classes is {num_classes}: mixing images needs one number'
        )


def _check_topk(cfg: Config, key: str, num_classes: int) -> None:
    """Check that an accuracy asks for no more classes than there are."""
    evaluators = cfg.get(key)
    if not isinstance(evaluators, (list, tuple)):
        evaluators = [evaluators]
    for evaluator in evaluators:
        if not isinstance(evaluator, dict) or _name(evaluator) != 'Accuracy':
            continue
        topk = evaluator.get('topk', 1)
        if max(topk if isinstance(topk, (list, tuple)) else [topk]) > num_classes:
            raise ConfigError(
                f'{key}.topk is {topk}, model.head.num_classes is {num_classes}: no '
                'more classes than there are can be the best'
            )


def _check_maps(
    backbone: dict, taker: str, out_type: str, channels: list[int] | None = None
) -> None:
    """Check that the backbone puts out maps, of these channels where they are given."""
    if out_type != 'featmap':
        raise ConfigError(
            f"model.backbone.out_type must be 'featmap' for {taker}, got {out_type!r}"
        )
    strides = backbone.get('out_strides', PSViT.OUT_STRIDES)
    try:
        arch = resolve_arch(backbone.get('arch', 'base'), PSViT.arch_zoo)
    except ValueError as error:
        raise ConfigError(f'model.backbone: {error}') from None
    embed_dims = arch['embed_dims']
    if channels is not None and list(channels) != [embed_dims] * len(strides):
        raise ConfigError(
            f'in_channels of {taker} must be [{embed_dims}] * {len(strides)}, one for '
            f'each of model.backbone.out_strides {tuple(strides)}, got {list(channels)}'
        )


def training_remarks(cfg: Config) -> Iterator[str]:
    """What somebody who trains this config should know beforehand.

    Args:
        cfg (Config): Config of a runner.

    Yields:
        str: A warning if the images do not reach PS-ViT as RGB normalised by ImageNet's
        mean and standard deviation; another one if PS-ViT under a detector or segmentor
        starts from scratch.
    """
    model = _model_of(cfg)
    backbone = _psvit_of(model)
    if backbone is None:
        return
    # As MMEngine's runner has it: the model's own goes first.
    given = model.get('data_preprocessor') or cfg.get('data_preprocessor') or {}
    converts = any(given.get(key) for key in ('to_rgb', 'bgr_to_rgb'))
    # Image files are read as BGR; data sets of arrays, such as CIFAR, are RGB.
    wanted = dict(mean=IMAGENET_MEAN, std=IMAGENET_STD, rgb=_reads_files(cfg))
    actual = dict(mean=given.get('mean'), std=given.get('std'), rgb=converts)
    wrong = [
        f'{key} is {actual[key]}, not {wanted[key]}'
        for key in wanted
        if actual[key] != wanted[key]
    ]
    if wrong:
        yield (
            'PS-ViT expects RGB images with the mean and standard deviation of '
            f'ImageNet; in the data_preprocessor, {"; ".join(wrong)} (rgb stands for '
            'to_rgb or bgr_to_rgb). Pretrained weights will do badly on such images.'
        )
    weights = (
        cfg.get('load_from'),
        cfg.get('resume'),
        backbone.get('init_cfg'),
        model.get('init_cfg'),
    )
    if not any(weights) and 'head' not in model:
        yield (
            'The PS-ViT backbone starts from scratch. Set `pretrained` at the top of '
            'the config to a classifier checkpoint of mmpsvit; '
            'tools/model_converters/psvit_to_mmpretrain.py makes one of the '
            "authors' weights."
        )


def _model_of(cfg: Config) -> dict:
    """The model's config, also below test-time augmentation."""
    return cfg.model.get('module', cfg.model)


def _psvit_of(model: dict) -> dict | None:
    backbone = model.get('backbone')
    return backbone if backbone and _name(backbone) == 'PSViT' else None


def _name(part: dict) -> str:
    """The type of a part without its scope."""
    kind = part['type']
    return kind.split('.')[-1] if isinstance(kind, str) else kind.__name__


def _reads_files(cfg: Config) -> bool:
    """Whether the training pipeline reads image files."""
    dataset = (cfg.get('train_dataloader') or {}).get('dataset') or {}
    while 'dataset' in dataset:
        dataset = dataset['dataset']  # RepeatDataset and the like
    return any('LoadImage' in _name(t) for t in dataset.get('pipeline', []))
