# Copyright (c) mmpsvit contributors.
"""Checkpoints from which a training continues as if nothing had happened."""

import fnmatch
import os.path as osp
from collections.abc import Iterator, Sequence

from mmengine.config import Config
from mmengine.dist import all_gather_object, get_rank, get_world_size, is_main_process
from mmengine.hooks import CheckpointHook
from mmengine.runner import (
    BaseLoop,
    EpochBasedTrainLoop,
    IterBasedTrainLoop,
    Runner,
    find_latest_checkpoint,
)

from mmpsvit.registry import HOOKS

from .checkpoint import CheckpointError, load_checkpoint
from .exact_loop import BatchStream
from .files import AtomicBackend, remove_leftovers
from .process_state import (
    get_process_state,
    get_random_state,
    set_process_state,
    set_random_state,
)

# Where this hook's part of a checkpoint is.
_KEY = 'resume_state'


@HOOKS.register_module()
class ExactCheckpointHook(CheckpointHook):
    """MMEngine's CheckpointHook, for trainings that may be killed at any moment.

    A training that resumes ends with the weights, averages, optimizer state and
    learning rates that it would have had without the interruption: bit for bit on the
    CPU, with the same number of processes (at most two: the order of a sum over more
    is not fixed), and with data workers that do not outlive an epoch
    (``num_workers=0`` or ``persistent_workers=False``). A warning says what else will
    differ. To this end

    - checkpoints hold the random state of Python, NumPy and PyTorch of every process,
      and the buffers of its model;
    - validation leaves the random state as it was. A training that resumes where
      validation was due validates first, since that may have been interrupted;
    - with ``IterBasedTrainLoop``, the data workers start anew after each checkpoint.

    A checkpoint gets its name when it is written in full, then ``last_checkpoint``
    names it, and only then older ones are removed. Nothing outside the folder of the
    checkpoints is removed, and nothing in it but checkpoints.

    Args:
        *args: As for ``mmengine.hooks.CheckpointHook``.
        **kwargs: Likewise.

    Raises:
        RuntimeError: If ``by_epoch=False`` in a training by epochs, when it starts.
        CheckpointError: If such a training is to resume in the middle of an epoch, or
            any from a file that holds weights only.
    """

    def __init__(self, *args, **kwargs) -> None:
        # Other storage has its own backends; there, files appear as a whole.
        is_local = '://' not in str(kwargs.get('out_dir', ''))
        if is_local and not kwargs.get('file_client_args'):
            default = dict(backend='mmpsvit.atomic')
            kwargs['backend_args'] = kwargs.get('backend_args') or default
        super().__init__(*args, **kwargs)
        self.file_backend = None  # until the training starts
        self._batches: BatchStream | None = None
        self._is_validated = False
        self._state_with_workers: dict | None = None
        # Our part of the checkpoint that is being written, and of the one to resume.
        self._saving: dict | None = None
        self._loaded: dict | None = None

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Keep what the training needs when it starts, if it resumes."""
        if not runner._resume:
            return
        if not {'epoch', 'iter'} <= checkpoint.get('meta', {}).keys():
            raise CheckpointError(
                f'checkpoint {_name(runner)} holds no training that could resume; '
                'start from its weights with load_from'
            )
        self._loaded = _own_part(runner, checkpoint)
        self._loaded['differences'] = list(_differences(runner, checkpoint))

    def before_train(self, runner: Runner) -> None:
        """Prepare the training, and bring it to where the checkpoint was saved."""
        loop = runner.train_loop
        if isinstance(loop, EpochBasedTrainLoop) and not self.by_epoch:
            raise RuntimeError(
                f'{type(self).__name__}: by_epoch=False saves in the middle of epochs, '
                'where a training by epochs cannot resume: set by_epoch=True, or train '
                'by iterations, with train_cfg.by_epoch=False and an InfiniteSampler'
            )
        super().before_train(runner)
        names = f'*{self.filename_tmpl.format("*")}'
        self.file_backend = _LateRemoval(self.file_backend, self.out_dir, names)
        if is_main_process():
            for folder in {self.out_dir, runner.work_dir}:
                remove_leftovers(folder)
        if isinstance(loop, IterBasedTrainLoop) and BatchStream.supports(loop):
            self._batches = BatchStream(loop)
        if self._loaded is not None:
            self._resume(runner, **self._loaded)
            self._loaded = None

    def _resume(
        self,
        runner: Runner,
        differences: list[str],
        by_epoch: bool | None = None,
        validated: bool = True,
        processes: list[dict] | None = None,
        outdated: Sequence[str] = (),
    ) -> None:
        _check_end_of_epoch(runner, by_epoch)
        for name in outdated:
            self.file_backend.remove(self.file_backend.join_path(self.out_dir, name))
        self.file_backend.remove_now()
        # Without it, MMEngine would not save again when the best checkpoint changes.
        self.last_ckpt = runner.message_hub.runtime_info.get('last_ckpt')
        if differences:
            runner.logger.warning(
                'This training resumes, but does not end exactly as it would have '
                f'without the interruption: {"; ".join(differences)}'
            )
        if processes is not None and len(processes) == get_world_size():
            state = processes[get_rank()]
            try:
                set_process_state(runner, state)
            except (
                AttributeError,
                LookupError,
                RuntimeError,
                TypeError,
                ValueError,
            ) as error:
                raise _damaged(runner) from error
            if runner.train_dataloader.persistent_workers:
                # To start them again takes a random number that they took long ago.
                self._state_with_workers = state['random']
        if not validated and _is_validation_due(runner):
            runner.val_loop.run()

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
        if self._saving is not None:
            checkpoint[_KEY] = self._saving

    def _save_best_checkpoint(self, runner: Runner, metrics: dict) -> None:
        if self.file_backend is None:
            return  # a validation without a training
        super()._save_best_checkpoint(runner, metrics)
        self.file_backend.remove_now()

    def _save_checkpoint_with_step(self, runner: Runner, step: int, meta: dict) -> None:
        """Save a checkpoint that is not one of the best. All processes take part."""
        if self.max_keep_ckpts > 0 and step not in self.keep_ckpt_ids:
            if len(self.keep_ckpt_ids) == self.max_keep_ckpts:
                self.file_backend.remove(self._path(self.keep_ckpt_ids[0]))
            self.keep_ckpt_ids.append(step)
            runner.message_hub.update_info('keep_ckpt_ids', list(self.keep_ckpt_ids))
        self._saving = dict(
            by_epoch=self.by_epoch,
            validated=self._is_validated,
            processes=all_gather_object(get_process_state(runner)),
            # If the process is killed before it can remove them.
            outdated=[osp.basename(path) for path in self.file_backend.outdated],
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
        self.file_backend.remove_now()
        if self._batches is not None:
            self._batches.restart()

    def _path(self, step: int) -> str:
        return self.file_backend.join_path(
            self.out_dir, self.filename_tmpl.format(step)
        )


def adopt_seed(cfg: Config, checkpoint: str) -> None:
    """Give a run that resumes the seed of the run that it resumes.

    MMEngine does so too, but when the order of the images is already drawn.

    Args:
        cfg (Config): Config of the run. Unchanged if it has a seed of its own.
        checkpoint (str): Local file from which the run resumes.

    Raises:
        CheckpointError: If the file is damaged or refused.
    """
    if (cfg.get('randomness') or {}).get('seed') is None:
        seed = load_checkpoint(checkpoint, 'cpu').get('meta', {}).get('seed')
        cfg.merge_from_dict({'randomness.seed': seed})


class _LateRemoval:
    """A file backend that removes checkpoints of one folder, and only when told to.

    A checkpoint says which others are outdated. These can be files of another training,
    and what it says can come from anybody.
    """

    def __init__(self, backend, folder: str, names: str) -> None:
        self._backend = backend
        self._folder = folder
        self._names = names
        self.outdated: list[str] = []

    def __getattr__(self, name: str):
        return getattr(self._backend, name)

    def remove(self, path: str) -> None:
        name = osp.basename(path)
        is_here = path == self._backend.join_path(self._folder, name)
        if is_here and fnmatch.fnmatchcase(name, self._names):
            self.outdated.append(path)

    # Checkpoints may be folders.
    rmtree = remove

    def remove_now(self) -> None:
        while self.outdated:
            path = self.outdated.pop()
            if not is_main_process():
                continue
            if self._backend.isfile(path):
                self._backend.remove(path)
            elif self._backend.isdir(path):
                self._backend.rmtree(path)


def _name(runner: Runner) -> str | None:
    """The file from which a runner resumes."""
    return runner._load_from or find_latest_checkpoint(runner.work_dir)


def _own_part(runner: Runner, checkpoint: dict) -> dict:
    """This hook's part of a checkpoint; empty if another hook saved it."""
    part = checkpoint.get(_KEY)
    if part is None:
        return {}
    known = {'by_epoch', 'validated', 'processes', 'outdated'}
    if not (
        isinstance(part, dict)
        and part.keys() <= known
        and isinstance(part.get('processes'), list)
        and isinstance(part.get('outdated', []), list)
        and all(isinstance(name, str) for name in part.get('outdated', []))
    ):
        raise _damaged(runner)
    return dict(part)


def _damaged(runner: Runner) -> CheckpointError:
    return CheckpointError(
        f'checkpoint {_name(runner)} is damaged: its {_KEY} is not what '
        'ExactCheckpointHook saves'
    )


def _differences(runner: Runner, checkpoint: dict) -> Iterator[str]:
    """What will differ from a training that was not interrupted."""
    if 'optimizer' not in checkpoint:
        yield 'the checkpoint has no state of the optimizer'
    if checkpoint.get(_KEY) is None:
        yield 'the checkpoint has no random state, as ExactCheckpointHook saves it'
    elif len(checkpoint[_KEY]['processes']) != get_world_size():
        yield (
            f'there are {get_world_size()} processes, not '
            f'{len(checkpoint[_KEY]["processes"])}, so images and random numbers are '
            'others'
        )
    seed = checkpoint['meta'].get('seed')
    if seed != runner.seed:
        yield f'the order of the images is another; randomness.seed={seed} keeps it'
    loop = runner.train_loop
    if loop.dataloader.persistent_workers:
        yield (
            'random numbers of the data workers are others; '
            'train_dataloader.persistent_workers=False keeps them'
        )
    if isinstance(loop, IterBasedTrainLoop) and not BatchStream.supports(loop):
        yield (
            'random numbers of the data are others; '
            'train_dataloader.sampler.type=InfiniteSampler keeps them'
        )
    accumulated = getattr(runner.optim_wrapper, '_accumulative_counts', 1)
    if checkpoint['meta']['iter'] % accumulated:
        yield (
            'the gradients accumulated so far are lost; a checkpoint interval that is '
            f'a multiple of {accumulated} iterations keeps them'
        )


def _check_end_of_epoch(runner: Runner, by_epoch: bool | None) -> None:
    """Refuse to resume a training by epochs in the middle of one.

    Args:
        runner (Runner): The runner, at the iteration of the checkpoint.
        by_epoch (bool, optional): Whether the checkpoint was saved at the end of an
            epoch, None if it does not tell.
    """
    loop = runner.train_loop
    if not isinstance(loop, EpochBasedTrainLoop):
        return
    if by_epoch is None:
        by_epoch = loop.iter == loop.epoch * len(loop.dataloader)
    if not by_epoch:
        raise CheckpointError(
            f'checkpoint {_name(runner)} was saved in the middle of an epoch, where a '
            f'training by epochs cannot resume, or with epochs of another length '
            f'(epoch {loop.epoch}, iteration {loop.iter}, now {len(loop.dataloader)} '
            'iterations per epoch): resume from the checkpoint of an epoch, with the '
            'same batch size and number of processes, or start anew from these weights '
            'with load_from'
        )


def _is_validation_due(runner: Runner) -> bool:
    """Whether the training loop would validate now, before it trains on."""
    loop: BaseLoop = runner.train_loop
    if isinstance(loop, IterBasedTrainLoop):
        done, last = loop.iter, loop.max_iters
    else:
        done, last = loop.epoch, loop.max_epochs
    loop._decide_current_val_interval()
    return (
        runner.val_loop is not None
        and done >= loop.val_begin
        and (done % loop.val_interval == 0 or done == last)
    )
