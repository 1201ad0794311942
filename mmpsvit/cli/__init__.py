# Copyright (c) mmpsvit contributors.
"""What the command lines of training and testing have in common."""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from mmengine.config import Config, DictAction
from mmengine.registry import RUNNERS
from mmengine.runner import Runner

from mmpsvit.guard import (
    CheckpointError,
    CheckpointMisfitError,
    NonFiniteLossError,
    use_safe_loading,
)

from .config_check import ConfigError, check_config
from .data_check import DataError, check_data_of
from .launch import close_distributed, prepare_distributed

# What a tool tells in one line. The rest is our mistake, and its traceback helps.
_MISTAKES = (
    CheckpointError,
    CheckpointMisfitError,
    ConfigError,
    DataError,
    NonFiniteLossError,
)


def add_common_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options that training and testing share."""
    parser.add_argument('--work-dir', help='folder for logs and results')
    parser.add_argument(
        '--amp', action='store_true', help='automatic mixed precision (CUDA only)'
    )
    parser.add_argument(
        '--no-pin-memory', action='store_true', help='do not pin memory of batches'
    )
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=DictAction,
        help='settings of the config to override, as key=value; lists as key="[a,b]"',
    )
    parser.add_argument(
        '--launcher',
        choices=['none', 'pytorch', 'slurm', 'mpi'],
        default='none',
        help='job launcher',
    )


def read_config(
    parser: argparse.ArgumentParser, path: str, options: dict | None = None
) -> Config:
    """Read a config file and apply ``--cfg-options``.

    A mistake of the user ends the process with code 2 and one line.
    """
    if not Path(path).is_file():
        parser.error(f'argument config: {path} does not exist')
    try:
        cfg = Config.fromfile(path)
    except Exception as error:
        reason = ' '.join(str(error).split())
        parser.error(
            f'argument config: {path} cannot be read as a config '
            f'({type(error).__name__}: {reason})'
        )
    if options is not None:
        cfg.merge_from_dict(options)
    return cfg


def load_config(parser: argparse.ArgumentParser, args: argparse.Namespace) -> Config:
    """Read the config and apply the common options.

    A mistake of the user ends the process with code 2 and one line.
    """
    cfg = read_config(parser, args.config, args.cfg_options)
    if args.amp and not torch.cuda.is_available():
        parser.error('argument --amp: mixed precision needs a CUDA device')
    cfg.launcher = args.launcher
    # Command line, then config, then the config's file name.
    if args.work_dir is not None:
        cfg.work_dir = args.work_dir
    elif cfg.get('work_dir') is None:
        cfg.work_dir = str(Path('work_dirs') / Path(args.config).stem)
    return cfg


def check_file(parser: argparse.ArgumentParser, argument: str, path: str) -> None:
    """End the process with code 2 if a local file that the user named is missing."""
    # Sharded checkpoints are folders.
    if '://' not in path and not Path(path).expanduser().exists():
        parser.error(f'argument {argument}: {path} does not exist')


def set_dataloader_defaults(
    cfg: Config, pin_memory: bool = True, persistent_workers: bool = True
) -> None:
    """Fill in what the config's data loaders leave open.

    No collate function: MMEngine's default serves classifiers and detectors.
    """
    for name in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
        loader = cfg.get(name)
        if loader is None:
            continue
        if not pin_memory:
            loader.pin_memory = False
        loader.setdefault('pin_memory', torch.cuda.is_available())
        has_workers = loader.get('num_workers', 0) > 0
        if not (persistent_workers and has_workers):
            loader.persistent_workers = False
        loader.setdefault('persistent_workers', True)


def build_runner(
    cfg: Config, must_fit: Sequence[str], evaluator: str = 'val_evaluator'
) -> Runner:
    """Check a config and build its runner, distributed also without a GPU.

    Args:
        cfg (Config): The config.
        must_fit (Sequence[str]): What of a checkpoint must fit, as in
            :class:`CheckpointFitHook`, unless the config has such a hook.
        evaluator (str): Which evaluator the run needs. Defaults to 'val_evaluator'.
    """
    check_config(cfg, evaluator)
    prepare_distributed(cfg)
    hooks = [*cfg.get('custom_hooks', ())]
    if not any(hook['type'] == 'mmpsvit.CheckpointFitHook' for hook in hooks):
        hooks.append(dict(type='mmpsvit.CheckpointFitHook', must_fit=must_fit))
        cfg.custom_hooks = hooks
    runner = RUNNERS.build(cfg) if 'runner_type' in cfg else Runner.from_cfg(cfg)
    check_data_of(runner, cfg)
    return runner


def run_main(main: Callable[[], None]) -> None:
    """Run a tool's main function with safe loading and short messages for users."""
    use_safe_loading()
    try:
        main()
    except _MISTAKES as error:
        sys.exit(f'{os.path.basename(sys.argv[0])}: error: {error}')
    # Not after an exception: it could wait for the other ranks and hide the message.
    close_distributed()
