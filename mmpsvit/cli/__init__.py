# Copyright (c) mmpsvit contributors.
"""What the command lines have in common."""

import argparse
import contextlib
import inspect
import logging
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from mmengine.config import Config, DictAction
from mmengine.dist import get_rank
from mmengine.logging import print_log
from mmengine.registry import RUNNERS
from mmengine.runner import Runner

from mmpsvit.guard import (
    CheckpointError,
    CheckpointFitHook,
    CheckpointMisfitError,
    DataError,
    DataHook,
    NonFiniteLossError,
    one_line,
    type_name,
    use_safe_loading,
    write_atomically,
)

from .diagnosis import find_data_fault
from .launch import close_distributed, prepare_distributed
from .remarks import explain_failure, training_remarks

__all__ = [
    'RunError',
    'add_cfg_options',
    'add_common_arguments',
    'build_runner',
    'check_file',
    'load_config',
    'one_line_errors',
    'read_config',
    'run_main',
    'set_dataloader_defaults',
    'set_test_precision',
    'training_remarks',
    'use_mixed_precision',
]

# What MMEngine reads at the top of a config, besides the arguments of its Runner.
_OTHER_KEYS = {
    *('runner_type', 'strategy', 'custom_imports', 'model_wrapper_cfg', 'compile'),
    *('find_unused_parameters', 'activation_checkpointing', 'efficient_conv_bn_eval'),
    *('sync_bn', 'tta_model', 'tta_pipeline'),
}


class RunError(RuntimeError):
    """A run failed; the message says why."""


# What a tool tells in one line.
_MISTAKES = (
    CheckpointError,
    CheckpointMisfitError,
    DataError,
    NonFiniteLossError,
    RunError,
)


class _Options(DictAction):
    """MMEngine's parser of ``key=value``, whose errors are those of argparse."""

    def __call__(self, parser, namespace, values, option_string=None) -> None:
        try:
            super().__call__(parser, namespace, values, option_string)
        except (AssertionError, SyntaxError, ValueError):
            parser.error(
                f'argument {option_string}: expected key=value, got {" ".join(values)}'
            )
        except RecursionError:  # lists in dicts
            parser.error(
                f'argument {option_string}: a value may not be a dict, name its keys '
                f'(a.b=1), got {" ".join(values)}'
            )


def add_cfg_options(parser: argparse.ArgumentParser, what: str = 'the config') -> None:
    """Add ``--cfg-options``, which override settings of ``what``."""
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=_Options,
        help=f'settings of {what} to override, as key=value; lists as key="[a,b]"',
    )


def add_common_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options that training and testing share."""
    parser.add_argument('--work-dir', help='folder for logs and results')
    parser.add_argument(
        '--amp',
        action='store_true',
        help='automatic mixed precision; on CPUs for tests only, in bfloat16',
    )
    parser.add_argument(
        '--amp-dtype',
        choices=['float16', 'bfloat16'],
        help='mixed precision in this dtype; switches --amp on',
    )
    parser.add_argument(
        '--no-pin-memory', action='store_true', help='do not pin memory of batches'
    )
    add_cfg_options(parser)
    parser.add_argument(
        '--launcher',
        choices=['none', 'pytorch', 'slurm', 'mpi'],
        default='none',
        help='job launcher',
    )
    # From MIM's torch.distributed.launch; the rank is in the environment too.
    parser.add_argument('--local-rank', '--local_rank', help=argparse.SUPPRESS)


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
    # The config's own code may fail in any way.
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        # It may be a config that this one inherits.
        places = [
            f', line {f.lineno} of {f.filename}' for f in frames if f.name == '<module>'
        ]
        parser.error(
            f'argument config: {path} cannot be read as a config ({one_line(error)}'
            f'{"".join(places[-1:])})'
        )
    try:
        cfg.merge_from_dict(options or {})
    except (AssertionError, AttributeError, LookupError, TypeError) as error:
        parser.error(f'argument --cfg-options: they do not fit ({one_line(error)})')
    return cfg


def load_config(parser: argparse.ArgumentParser, args: argparse.Namespace) -> Config:
    """Read the config and apply the common options.

    A mistake of the user ends the process with code 2 and one line.
    """
    cfg = read_config(parser, args.config, args.cfg_options)
    args.amp = args.amp or args.amp_dtype is not None
    known = {*inspect.signature(Runner.__init__).parameters, *_OTHER_KEYS}
    for key in {option.split('.')[0] for option in args.cfg_options or {}} - known:
        print_log(
            f'--cfg-options: MMEngine reads no {key} at the top of a config. It only '
            'has an effect on code that reads it from there, not on what a config file '
            'computed from it.',
            logger='current',
            level=logging.WARNING,
        )
    cfg.launcher = args.launcher
    # Command line, then config, then the config's file name.
    if args.work_dir is not None:
        cfg.work_dir = args.work_dir
    elif cfg.get('work_dir') is None:
        cfg.work_dir = str(Path('work_dirs') / Path(args.config).stem)
    if Path(cfg.work_dir).is_file():
        parser.error(f'argument --work-dir: {cfg.work_dir} is a file')
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

    A batch of MMPretrain's models is one tensor, as with its tool, and goes to the GPU
    and is normalised as one. Other libraries' models take MMEngine's default, which
    serves images of all sizes.
    """
    model = cfg.get('model') or {}
    model = model.get('module', model)  # below test-time augmentation
    kind, scopes = model.get('type'), [cfg.get('default_scope')]
    if isinstance(kind, type):  # in a lazy config
        scopes += [base.__module__.partition('.')[0] for base in kind.__mro__]
    elif isinstance(kind, str) and '.' in kind:
        scopes = [kind.partition('.')[0]]
    stacks = 'mmpretrain' in scopes or type_name(model) == 'ImageClassifier'
    for name in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
        loader = cfg.get(name)
        if not isinstance(loader, dict):
            continue
        if stacks:
            loader.setdefault('collate_fn', dict(type='default_collate'))
        if not pin_memory:
            loader.pin_memory = False
        loader.setdefault('pin_memory', torch.cuda.is_available())
        has_workers = loader.get('num_workers', 0) > 0
        if not (persistent_workers and has_workers):
            loader.persistent_workers = False
        loader.setdefault('persistent_workers', True)


def use_mixed_precision(
    cfg: Config, dtype: str | None = None, saved: str | None = None
) -> None:
    """Switch automatic mixed precision on, with a loss scale unless in bfloat16.

    Args:
        cfg (Config): Config of a training.
        dtype (str, optional): 'float16' or 'bfloat16'. Defaults to the config's own
            one, to that of the checkpoint, and to 'float16'.
        saved (str, optional): Precision of the checkpoint that the training resumes.
    """
    wrapper = cfg.optim_wrapper
    wrapper.type = 'AmpOptimWrapper'
    own = wrapper.get('dtype') and str(wrapper.dtype).removeprefix('torch.')
    resumed = saved if saved in ('float16', 'bfloat16') else None
    wrapper.dtype = dtype or own or resumed or 'float16'
    if wrapper.dtype != (own or 'float16'):
        wrapper.pop('loss_scale', None)  # of another dtype
    # The range of bfloat16 is that of float32.
    needs_none = wrapper.dtype == 'bfloat16'
    wrapper.setdefault('loss_scale', dict(enabled=False) if needs_none else 'dynamic')


def set_test_precision(cfg: Config, dtype: str | None = None) -> None:
    """Let a test compute in mixed precision.

    Args:
        cfg (Config): Config of a test.
        dtype (str, optional): 'float16' or 'bfloat16'. Defaults to PyTorch's default.
    """
    cfg.test_cfg.fp16 = True
    if dtype is None:
        return
    # MMEngine's loop has no dtype: it takes PyTorch's default.
    if hasattr(torch, 'set_autocast_dtype'):
        torch.set_autocast_dtype('cuda', getattr(torch, dtype))
    else:  # before PyTorch 2.4
        torch.set_autocast_gpu_dtype(getattr(torch, dtype))


def build_runner(cfg: Config) -> Runner:
    """Build a config's runner, distributed also without a GPU.

    It gets :class:`CheckpointFitHook` and :class:`DataHook`, unless the config has
    them. They do not get into the config that MMEngine writes into the work dir.
    """
    prepare_distributed(cfg)
    runner = RUNNERS.build(cfg) if 'runner_type' in cfg else Runner.from_cfg(cfg)
    for hook in (CheckpointFitHook(), DataHook()):
        if not any(isinstance(other, type(hook)) for other in runner.hooks):
            runner.register_hook(hook)
    return runner


@contextlib.contextmanager
def one_line_errors(cfg: Config) -> Iterator[None]:
    """Turn what goes wrong in a run into a :class:`RunError` that explains it.

    The traceback goes into a file in the work dir.
    """
    try:
        yield
    except _MISTAKES:
        raise
    # Upstream's errors, of any kind: they are explained, not foreseen.
    except Exception as error:
        path = Path(cfg.work_dir) / f'traceback_of_rank_{get_rank()}.txt'
        with contextlib.suppress(OSError), write_atomically(path) as temporary:
            temporary.write_text(''.join(traceback.format_exception(error)))
        reason = find_data_fault(error)
        if reason is None:
            reason, remedy = one_line(error).rstrip('.'), None
            # Of a config or model of any kind, it may fail: the error is what counts.
            with contextlib.suppress(Exception):
                remedy = explain_failure(cfg, error)
            reason = f'{reason}. {remedy}' if remedy else reason
        raise RunError(f'{reason} (traceback: {path})') from error


def run_main(main: Callable[[], None]) -> None:
    """Run a tool's main function with safe loading and short messages for users."""
    use_safe_loading()
    try:
        main()
    except _MISTAKES as error:
        sys.exit(f'{os.path.basename(sys.argv[0])}: error: {error}')
    # Not after an exception: it could wait for the other ranks and hide the message.
    close_distributed()
