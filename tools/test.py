# Copyright (c) mmpsvit contributors.
"""Test a model.

python tools/test.py configs/psvit/b14.py CHECKPOINT --out results.pkl
tools/dist_test.sh configs/psvit/b14.py CHECKPOINT 8
"""

# isort: off
import mmpsvit  # noqa: F401  First: it says what to install if something is missing.
# isort: on

import argparse
from collections.abc import Iterator
from copy import deepcopy
from os import PathLike
from pathlib import Path

import mmengine
from mmengine.config import Config, ConfigDict
from mmengine.dist import is_main_process
from mmengine.evaluator import DumpResults
from mmengine.runner import Runner

from mmpsvit.cli import (
    add_common_arguments,
    build_runner,
    check_file,
    load_config,
    one_line_errors,
    run_main,
    set_dataloader_defaults,
    set_test_precision,
)
from mmpsvit.guard import leaf_datasets, write_atomically


def parse_args() -> tuple[argparse.Namespace, Config]:
    """Parse the command line and return it with the config that it asks for."""
    parser = argparse.ArgumentParser(description='Test a model')
    parser.add_argument('config', help='config file')
    parser.add_argument('checkpoint', help='checkpoint file')
    add_common_arguments(parser)
    parser.add_argument(
        '--out', help='file for the results: .pkl for predictions, .json for metrics'
    )
    parser.add_argument(
        '--out-item',
        choices=['metrics', 'pred'],
        help='what --out holds; by default predictions for .pkl, metrics otherwise',
    )
    parser.add_argument(
        '--tta',
        action='store_true',
        help="test-time augmentation: the config's tta_model and tta_pipeline, or the "
        'average over the image and its mirror image for a classifier',
    )
    args = parser.parse_args()
    cfg = load_config(parser, args)
    check_file(parser, 'checkpoint', args.checkpoint)
    cfg.load_from = args.checkpoint
    cfg.resume = False

    if args.out is None:
        if args.out_item is not None:
            parser.error('argument --out-item: needs --out')
    else:
        suffix = Path(args.out).suffix
        pickles = ('.pkl', '.pickle')
        if args.out_item is None:
            args.out_item = 'pred' if suffix in pickles else 'metrics'
        allowed = {'metrics': ('.json', '.yaml', '.yml', *pickles), 'pred': pickles}
        if suffix not in allowed[args.out_item]:
            parser.error(
                f'argument --out: {args.out_item} need a file ending in one of '
                f'{allowed[args.out_item]}, got {args.out}'
            )
        if Path(args.out).is_dir():
            parser.error(f'argument --out: {args.out} is a folder')
    if args.amp:
        set_test_precision(cfg, args.amp_dtype)
    if args.tta:
        _use_tta(parser, cfg)
    set_dataloader_defaults(cfg, not args.no_pin_memory)
    return args, cfg


def _use_tta(parser: argparse.ArgumentParser, cfg: Config) -> None:
    complete = 'tta_model' in cfg and 'tta_pipeline' in cfg
    scope = cfg.get('default_scope') or 'mmpretrain'
    if not complete and scope != 'mmpretrain':
        parser.error(
            'argument --tta: the config must have a tta_model and a tta_pipeline; '
            f'averaging over mirror images is for MMPretrain, not for {scope}'
        )
    cfg.setdefault('tta_model', dict(type='mmpretrain.AverageClsScoreTTA'))
    for dataset in _leaves_of(cfg.test_dataloader.dataset):
        dataset['pipeline'] = cfg.get('tta_pipeline') or _mirrored(dataset['pipeline'])
    cfg.model = ConfigDict(**cfg.tta_model, module=cfg.model)


def _leaves_of(dataset: dict) -> Iterator[dict]:
    """The configs of data sets that have a pipeline, also below wrappers."""
    parts = dataset.get('datasets') or [dataset.get('dataset')]
    for part in parts:
        if isinstance(part, dict):
            yield from _leaves_of(part)
    if 'pipeline' in dataset:
        yield dataset


def _mirrored(pipeline: list[dict]) -> list[dict]:
    """A pipeline that gives an image and its mirror image."""
    *steps, pack = deepcopy(pipeline)
    flips = [dict(type='RandomFlip', prob=prob) for prob in (1.0, 0.0)]
    # A lazy config has no default scope.
    scope = dict(_scope_='mmpretrain')
    return [*steps, dict(scope, type='TestTimeAug', transforms=[flips, [pack]])]


def main() -> None:
    """Test, print the metrics and write what ``--out`` asks for."""
    args, cfg = parse_args()
    with one_line_errors(cfg):
        runner = build_runner(cfg)
        if args.out is None:
            runner.test()
        elif is_main_process():
            with write_atomically(args.out) as path:
                _test(runner, args.out_item, path)
        else:
            _test(runner, args.out_item, args.out)


def _test(runner: Runner, item: str, path: str | PathLike) -> None:
    """Test; the main process writes a file."""
    metrics = runner.test_evaluator.metrics
    if item == 'pred':
        leaves = leaf_datasets(runner.test_dataloader.dataset)
        if not all(getattr(leaf, 'with_label', True) for leaf in leaves):
            metrics.clear()  # nothing to hold the predictions against
        metrics.append(DumpResults(out_file_path=str(path)))
    results = runner.test()
    if item == 'metrics' and is_main_process():
        mmengine.dump(results, path)


if __name__ == '__main__':
    run_main(main)
