# Copyright (c) mmpsvit contributors.
"""Checkpoints from which a training continues as if nothing had happened."""

import os.path as osp
from collections.abc import Iterator, Mapping
from io import BytesIO

import torch
from mmengine.config import Config
from mmengine.dist import all_gather_object, get_rank, get_world_size, is_main_process
from mmengine.hooks import CheckpointHook, EMAHook
from mmengine.runner import (
    BaseLoop,
    EpochBasedTrainLoop,
    IterBasedTrainLoop,
    Runner,
    find_latest_checkpoint,
)

from mmpsvit.registry import HOOKS

from .checkpoint import CheckpointError
from .exact_loop import ExactIterBasedTrainLoop
from .files import AtomicBackend, remove_leftovers
from .precision import precision_of, saved_precision
from .process_state import (
    get_process_state,
    get_random_state,
    set_process_state,
    set_random_state,
)
from .unpickling import load_weights

# Where this hook's part of a checkpoint is.
_KEY = 'resume_state'
# What changes in a scheduler while it steps; the rest are its settings.
_PROGRESS = {
    *('last_step', '_global_step', '_last_value', 'base_values', 'verbose'),
    *('best', 'num_bad_epochs', 'cooldown_counter'),  # of ReduceOnPlateauLR
}


@HOOKS.register_module()
class ExactCheckpointHook(CheckpointHook):
    """MMEngine's CheckpointHook, for trainings that may be killed at any moment.

    A training that resumes ends bit for bit as without the interruption on the CPU,
    with the same settings and number of processes (at most two: the order of a sum over
    more is not fixed), and with ``num_workers=0`` or data workers that do not outlive
    an epoch (``persistent_workers=False``); by iterations, with
    :class:`ExactIterBasedTrainLoop`. Elsewhere, as on a GPU, it ends nearly so, and a
    warning names the settings that make a difference. To this end

    - checkpoints hold the random state of Python, NumPy and PyTorch of every process,
      and the buffers of its model;
    - validation leaves the random state as it was. A training that resumes where
      validation was due validates first, since that may have been interrupted.

    A checkpoint gets its name when it is written in full, then ``last_checkpoint``
    names it, and only then older ones are removed. Nothing is removed but checkpoints
    in their folder, and what a killed process left half-written there or in the work
    dir.

    Args:
        *args: As for ``mmengine.hooks.CheckpointHook``.
        **kwargs: Likewise.

    Raises:
        CheckpointError: If a training is to resume from weights only.
    """

    def __init__(self, *args, **kwargs) -> None:
        # Other storage has its own backends; there, files appear as a whole.
        is_local = '://' not in str(kwargs.get('out_dir', ''))
        if is_local and not kwargs.get('file_client_args'):
            default = dict(backend='mmpsvit.atomic')
            kwargs['backend_args'] = kwargs.get('backend_args') or default
        super().__init__(*args, **kwargs)
        self.file_backend = None  # until the training starts
        self._is_validated = False
        self._is_tried = False
        self._state_with_workers: dict | None = None
        # Our part of the checkpoint that is being written, and of the one to resume.
        self._saving: dict | None = None
        self._loaded: dict | None = None

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Keep what the training needs when it starts, if it resumes."""
        if not runner._resume:
            return
        # That of a training without a loss scale, which a GradScaler would not load.
        if (checkpoint.get('optimizer') or {}).get('loss_scaler') == {}:
            del checkpoint['optimizer']['loss_scaler']
        name = runner._load_from or find_latest_checkpoint(runner.work_dir)
        if not {'epoch', 'iter'} <= checkpoint.get('meta', {}).keys():
            raise CheckpointError(
                f'checkpoint {name} holds no training that could resume; '
                'start from its weights with load_from'
            )
        self._loaded = dict(checkpoint.get(_KEY) or {})
        # Numbers make the names of files to remove, so they must be numbers.
        info = checkpoint['message_hub']['runtime_info']
        if 'keep_ckpt_ids' in info:
            info['keep_ckpt_ids'] = [int(step) for step in info['keep_ckpt_ids']]
        # Not of a test: a config that resumes says so there too.
        is_training = isinstance(runner._train_loop, BaseLoop)
        if is_training and (differences := [*_differences(runner, checkpoint)]):
            runner.logger.warning(
                'This training resumes, but does not end exactly as it would have '
                f'without the interruption: {"; ".join(differences)}'
            )

    def before_train(self, runner: Runner) -> None:
        """Prepare the training, and bring it to where the checkpoint was saved."""
        # This also removes what a killed training had no time to remove.
        super().before_train(runner)
        if self.max_keep_ckpts > 0:
            self.keep_ckpt_ids = [*self.keep_ckpt_ids]
        self.file_backend = _LateRemoval(self.file_backend, self.out_dir)
        if is_main_process():
            for folder in {self.out_dir, runner.work_dir}:
                remove_leftovers(folder)
        if self._loaded is None:
            return
        # Without it, MMEngine would not save again when the best checkpoint changes.
        self.last_ckpt = runner.message_hub.runtime_info.get('last_ckpt')
        processes = self._loaded.get('processes', ())
        if len(processes) == get_world_size():
            set_process_state(runner, processes[get_rank()])
            if getattr(runner.train_dataloader, 'persistent_workers', False):
                # To start them again takes a random number that they took long ago.
                self._state_with_workers = processes[get_rank()]['random']
        if not self._loaded.get('validated', True) and _is_validation_due(runner):
            runner.val_loop.run()
        self._loaded = None

    def before_train_iter(self, runner: Runner, *args, **kwargs) -> None:
        """Bring the random state back once more if starting workers changed it."""
        if self._state_with_workers is not None:
            set_random_state(self._state_with_workers)
            self._state_with_workers = None

    def before_val(self, runner: Runner) -> None:
        """Remember the random state."""
        self._random_state = get_random_state()

    def after_val_epoch(self, runner: Runner, metrics: dict | None = None) -> None:
        """Bring the random state back, then save the best checkpoint."""
        set_random_state(self._random_state)
        self._is_validated = True
        super().after_val_epoch(runner, metrics)
        self._is_validated = False

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Add this hook's part, but not to the best ones: they lack an optimizer."""
        if not self._is_tried:
            self._is_tried = True
            _try_loading(runner, checkpoint)
        if self._saving is not None:
            checkpoint[_KEY] = self._saving

    def _save_best_checkpoint(self, runner: Runner, metrics: dict) -> None:
        if self.file_backend is None:
            return  # a validation without a training
        super()._save_best_checkpoint(runner, metrics)
        self.file_backend.remove_now()

    def _save_checkpoint_with_step(self, runner: Runner, step: int, meta: dict) -> None:
        """Save a checkpoint that is not one of the best. All processes take part."""
        # The best one before, of which the next checkpoint says nothing.
        self.file_backend.remove_now()
        outdated = []
        if self.max_keep_ckpts > 0:
            if step not in self.keep_ckpt_ids:
                self.keep_ckpt_ids.append(step)
            # With the outdated ones, for the process that finds them after a kill.
            runner.message_hub.update_info('keep_ckpt_ids', [*self.keep_ckpt_ids])
            outdated = self.keep_ckpt_ids[: -self.max_keep_ckpts]
        # By iterations in epochs, it is written before an epoch ends.
        is_due = self.by_epoch or isinstance(runner.train_loop, IterBasedTrainLoop)
        self._saving = dict(
            validated=self._is_validated or not is_due,
            processes=all_gather_object(get_process_state(runner)),
        )
        self.last_ckpt = self._path(step)
        runner.message_hub.update_info('last_ckpt', self.last_ckpt)
        runner.save_checkpoint(
            self.out_dir,
            self.filename_tmpl.format(step),
            self.file_client_args,
            save_optimizer=self.save_optimizer,
            save_param_scheduler=self.save_param_scheduler,
            meta=meta,
            by_epoch=self.by_epoch,
            backend_args=self.backend_args,
            **self.args,
        )
        self._saving = None
        if is_main_process():
            AtomicBackend().put_text(
                self.last_ckpt, osp.join(runner.work_dir, 'last_checkpoint')
            )
        for old in outdated:
            self.keep_ckpt_ids.remove(old)
            self.file_backend.remove_now(self._path(old))
        if isinstance(runner.train_loop, ExactIterBasedTrainLoop):
            runner.train_loop.restart_workers()

    def _path(self, step: int) -> str:
        return self.file_backend.join_path(
            self.out_dir, self.filename_tmpl.format(step)
        )


def _try_loading(runner: Runner, checkpoint: dict) -> None:
    """Say it early if nobody could load the checkpoints of a training."""
    file = BytesIO()
    torch.save([checkpoint.get(key) for key in ('meta', 'message_hub')], file)
    file.seek(0)
    try:
        load_weights(file, 'cpu')
    except Exception as error:  # whatever it is, it would also come later
        runner.logger.warning(
            f'Safe loading will refuse the checkpoints of this training ({error}): '
            "use plain values in the data set's metainfo, and in what hooks log"
        )


def adopt_seed(cfg: Config, meta: Mapping) -> None:
    """Give a run that resumes the seed of the checkpoint, unless it has one itself.

    MMEngine does so too, but when the order of the images is already drawn.

    Args:
        cfg (Config): Config of the run.
        meta (Mapping): The ``meta`` of the checkpoint.
    """
    if (cfg.get('randomness') or {}).get('seed') is None:
        cfg.merge_from_dict({'randomness.seed': meta.get('seed')})


class _LateRemoval:
    """A file backend that removes the best checkpoint before only when told to.

    MMEngine would remove it before it writes the better one. Which one it is comes from
    a checkpoint: it may be of another training, or what anybody wrote into it.
    """

    def __init__(self, backend, folder: str) -> None:
        self._backend = backend
        self._folder = folder
        self._outdated: list[str] = []

    def __getattr__(self, name: str):
        return getattr(self._backend, name)

    def remove(self, path: str) -> None:
        name = osp.basename(path)
        is_here = path == self._backend.join_path(self._folder, name)
        if is_here and name.startswith('best_'):
            self._outdated.append(path)

    rmtree = remove  # checkpoints may be folders

    def remove_now(self, *more: str) -> None:
        paths, self._outdated = [*self._outdated, *more], []
        for path in paths if is_main_process() else ():
            if self._backend.isfile(path):
                self._backend.remove(path)
            elif self._backend.isdir(path):
                self._backend.rmtree(path)


def _differences(runner: Runner, checkpoint: dict) -> Iterator[str]:
    """What will differ from a training that was not interrupted."""
    loop, meta = runner.train_loop, checkpoint['meta']
    if 'optimizer' not in checkpoint:
        yield 'the checkpoint has no state of the optimizer'
    if 'ema_state_dict' in checkpoint and not any(
        isinstance(hook, EMAHook) for hook in runner.hooks
    ):
        yield 'it goes on from the average of the weights, without an EMAHook'
    yield from _other_rates(runner, checkpoint)
    if checkpoint.get(_KEY) is None:
        yield 'the checkpoint has no random state, as ExactCheckpointHook saves it'
    elif len(checkpoint[_KEY]['processes']) != get_world_size():
        yield (
            f'there are {get_world_size()} processes, not '
            f'{len(checkpoint[_KEY]["processes"])}, so images and random numbers are '
            'others'
        )
    before, now = saved_precision(meta), precision_of(runner.cfg.get('optim_wrapper'))
    if None not in (before, now) and before != now:
        yield f'it was in {before} and is in {now}, by type and dtype of optim_wrapper'
    if meta.get('seed') != runner.seed:
        seed = meta.get('seed')
        yield f'the order of the images is another; randomness.seed={seed} keeps it'
    if not isinstance(loop, IterBasedTrainLoop):
        length = len(loop.dataloader)
        if meta['iter'] != meta['epoch'] * length:
            yield (
                f'{meta["epoch"]} epochs of now {length} iterations are not the '
                f'{meta["iter"]} iterations of the checkpoint: it is from the middle '
                'of an epoch, which begins again, or from epochs of another length, '
                'which schedules go by'
            )
    elif not getattr(loop, 'is_exact', False):
        yield (
            'random numbers of the data are others; '
            'train_cfg.type=mmpsvit.ExactIterBasedTrainLoop (without by_epoch) and '
            'train_dataloader.sampler.type=InfiniteSampler keep them'
        )
    if getattr(loop.dataloader, 'persistent_workers', False):
        yield (
            'random numbers of the data workers are others; '
            'train_dataloader.persistent_workers=False keeps them'
        )
    accumulated = getattr(runner.optim_wrapper, '_accumulative_counts', 1)
    if meta['iter'] % accumulated:
        yield (
            'the gradients accumulated so far are lost; a checkpoint interval that is '
            f'a multiple of {accumulated} iterations keeps them'
        )
    yield from _other_schedules(runner, checkpoint)


def _other_rates(runner: Runner, checkpoint: dict) -> Iterator[str]:
    """The settings of the optimizer that MMEngine takes from the checkpoint instead."""
    new = getattr(runner.optim_wrapper, 'param_groups', ())
    old = (checkpoint.get('optimizer') or {}).get('param_groups', ())
    for group, saved in zip(new, old, strict=False):  # none of several optimizers
        for name in ('lr', 'weight_decay'):
            # What a schedule started from, where there is one.
            key = f'initial_{name}' if f'initial_{name}' in group else name
            given = group.get(key)  # Rprop has no weight_decay
            if saved.get(key, given) != given:
                yield (
                    f'the optimizer goes on as the checkpoint has it, with {name}='
                    f'{saved[key]} and not {given}; load_from instead of resume '
                    'takes the new one'
                )
                return


def _other_schedules(runner: Runner, checkpoint: dict) -> Iterator[str]:
    """The settings of schedules that MMEngine takes from the checkpoint instead."""
    new, old = runner.param_schedulers, checkpoint.get('param_schedulers')
    if not isinstance(new, list) or not isinstance(old, list):
        return  # one for each of several optimizers
    for scheduler, saved in zip(new, old, strict=False):
        changed = [
            f'{key}={saved[key]!r} and not {value!r}'
            for key, value in scheduler.state_dict().items()
            if key not in _PROGRESS and saved.get(key, value) != value
        ]
        if changed:
            yield (
                f'the schedule {type(scheduler).__name__} goes on as the checkpoint '
                f'has it, with {", ".join(changed)}; load_from instead of resume '
                'starts a new one'
            )
    if len(new) != len(old):
        yield f'there are {len(new)} schedules, the checkpoint has {len(old)}'


def _is_validation_due(runner: Runner) -> bool:
    """Whether MMEngine's training loops would validate now, before they train on."""
    loop = runner.train_loop
    if not isinstance(loop, (EpochBasedTrainLoop, IterBasedTrainLoop)):
        return False
    done, last = loop.epoch, loop.max_epochs
    if isinstance(loop, IterBasedTrainLoop):
        done, last = loop.iter, loop.max_iters
    loop._decide_current_val_interval()
    is_turn = done % loop.val_interval == 0 or done == last
    return runner.val_loop is not None and done >= loop.val_begin and is_turn
