# Copyright (c) mmpsvit contributors.
"""Test a model.

python tools/test.py configs/psvit/b14.py CHECKPOINT --out results.pkl
tools/dist_test.sh configs/psvit/b14.py CHECKPOINT 8
"""

# isort: off
import mmpsvit  # noqa: F401  First: it says what to install if something is missing.
# isort: on

import argparse
import os
from copy import deepcopy
from pathlib import Path

import mmengine
from mmengine.config import Config, ConfigDict
from mmengine.dist import is_main_process
from mmengine.evaluator import DumpResults

from mmpsvit.cli import (
    add_common_arguments,
    build_runner,
    check_file,
    load_config,
    run_main,
    set_dataloader_defaults,
)


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
        help='what --out holds; by default metrics for .json, predictions otherwise',
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
        if args.out_item is None:
            args.out_item = 'metrics' if suffix == '.json' else 'pred'
        allowed = {'metrics': ('.json', '.yaml', '.yml', '.pkl'), 'pred': ('.pkl',)}
        if suffix not in allowed[args.out_item]:
            parser.error(
                f'argument --out: {args.out_item} need a file ending in one of '
                f'{allowed[args.out_item]}, got {args.out}'
            )
    if args.amp:
        cfg.test_cfg.fp16 = True
    if args.tta:
        _use_tta(parser, cfg)
    set_dataloader_defaults(cfg, not args.no_pin_memory)
    return args, cfg


def _use_tta(parser: argparse.ArgumentParser, cfg: Config) -> None:
    if 'tta_model' in cfg:
        if 'tta_pipeline' not in cfg:
            parser.error('argument --tta: the config has a tta_model, no tta_pipeline')
    else:
        if cfg.model.type.split('.')[-1] != 'ImageClassifier':
            parser.error(
                'argument --tta: the config has no tta_model, and averaging over '
                f'mirror images is for classifiers, not for {cfg.model.type}'
            )
        cfg.tta_model = dict(type='mmpretrain.AverageClsScoreTTA')
        *pipeline, pack = deepcopy(cfg.test_dataloader.dataset.pipeline)
        flips = [dict(type='RandomFlip', prob=prob) for prob in (1.0, 0.0)]
        tta = dict(type='TestTimeAug', transforms=[flips, [pack]])
        cfg.tta_pipeline = [*pipeline, tta]
    cfg.model = ConfigDict(**cfg.tta_model, module=cfg.model)
    cfg.test_dataloader.dataset.pipeline = cfg.tta_pipeline


def main() -> None:
    """Test, print the metrics and write what ``--out`` asks for."""
    args, cfg = parse_args()
    runner = build_runner(cfg, must_fit=('',), evaluator='test_evaluator')
    if args.out is None:
        runner.test()
        return
    # Written under a temporary name and renamed: a file called --out is whole.
    target = Path(args.out)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f'.{os.getpid()}.{target.name}')
    if args.out_item == 'pred':
        runner.test_evaluator.metrics.append(DumpResults(out_file_path=str(temporary)))
    metrics = runner.test()
    if is_main_process():
        if args.out_item == 'metrics':
            mmengine.dump(metrics, temporary)
        temporary.replace(target)


if __name__ == '__main__':
    run_main(main)
