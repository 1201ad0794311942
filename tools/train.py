# Copyright (c) mmpsvit contributors.
"""Train a model.

python tools/train.py configs/psvit/b14.py
tools/dist_train.sh configs/psvit/b14.py 8
"""

# isort: off
import mmpsvit  # noqa: F401  First: it says what to install if something is missing.
# isort: on

import argparse
import logging
from pathlib import Path

from mmengine.config import Config
from mmengine.logging import print_log

from mmpsvit.cli import (
    add_common_arguments,
    build_runner,
    check_file,
    load_config,
    one_line_errors,
    run_main,
    set_dataloader_defaults,
    training_remarks,
    use_mixed_precision,
)
from mmpsvit.guard import (
    adopt_seed,
    latest_checkpoint,
    load_checkpoint,
    saved_precision,
)


def parse_args() -> Config:
    """Parse the command line into the config that it asks for."""
    parser = argparse.ArgumentParser(description='Train a model')
    parser.add_argument('config', help='config file')
    add_common_arguments(parser)
    parser.add_argument(
        '--resume',
        nargs='?',
        const='auto',
        help='resume from this checkpoint; without a value, from the latest one of '
        'the work dir, if there is one',
    )
    parser.add_argument(
        '--no-validate', action='store_true', help='do not validate while training'
    )
    parser.add_argument(
        '--auto-scale-lr',
        action='store_true',
        help='scale the learning rate with the total batch size',
    )
    parser.add_argument(
        '--no-persistent-workers',
        action='store_true',
        help='start data workers anew in every epoch',
    )
    args = parser.parse_args()
    cfg = load_config(parser, args)

    if args.no_validate:
        cfg.val_cfg = cfg.val_dataloader = cfg.val_evaluator = None
    if args.auto_scale_lr:
        cfg.auto_scale_lr = {**(cfg.get('auto_scale_lr') or {}), 'enable': True}
    if args.resume == 'auto':
        # The first run of a job that always resumes still starts from load_from.
        latest = latest_checkpoint(cfg.work_dir)
        cfg.resume = latest is not None
        if cfg.resume:
            cfg.load_from = latest
    elif args.resume is not None:
        check_file(parser, '--resume', args.resume)
        cfg.resume = True
        cfg.load_from = args.resume
    saved = None
    if cfg.get('resume'):
        cfg.load_from = cfg.get('load_from') or latest_checkpoint(cfg.work_dir)
        # Sharded checkpoints are folders.
        if cfg.load_from and Path(cfg.load_from).expanduser().is_file():
            meta = load_checkpoint(cfg.load_from, 'cpu').get('meta') or {}
            adopt_seed(cfg, meta)
            saved = saved_precision(meta)
    if args.amp:
        use_mixed_precision(cfg, args.amp_dtype, saved)
    set_dataloader_defaults(cfg, not args.no_pin_memory, not args.no_persistent_workers)
    return cfg


def main() -> None:
    """Train."""
    cfg = parse_args()
    with one_line_errors(cfg):
        runner = build_runner(cfg)
        for remark in training_remarks(cfg):
            print_log(remark, logger='current', level=logging.WARNING)
        runner.train()


if __name__ == '__main__':
    run_main(main)
