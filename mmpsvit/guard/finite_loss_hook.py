# Copyright (c) mmpsvit contributors.
"""Stops a training whose loss is no longer a number."""

import torch
from mmengine.dist import all_reduce
from mmengine.hooks import Hook
from mmengine.runner import Runner, find_latest_checkpoint
from torch import Tensor

from mmpsvit.registry import HOOKS

from .fit import unwrap

# Later than any iteration.
_NEVER = 2**62


class NonFiniteLossError(RuntimeError):
    """A loss or a weight of a training is infinite or not a number."""


@HOOKS.register_module()
class FiniteLossHook(Hook):
    """Stops the training at an infinite loss or one that is not a number.

    All processes stop together: every ``interval`` iterations, before a validation,
    before a checkpoint is written or at the end. A checkpoint is never written after
    such a loss, nor with such a weight, so the last one that there is can be used.

    Args:
        interval (int): Iterations after which the processes compare what they saw.
            Defaults to 50.

    Raises:
        NonFiniteLossError: In all processes alike; while a checkpoint is written, in
            the main process only, and the launcher ends the others. It names the first
            iteration whose loss is not finite, or a weight, and the last checkpoint.
    """

    def __init__(self, interval: int = 50) -> None:
        if interval < 1:
            raise ValueError(f'interval must be at least 1, got {interval}')
        self.interval = interval
        # The first iteration whose loss is not finite, counted from 1, as in the log.
        self._first = _NEVER

    def before_train(self, runner: Runner) -> None:
        """Forget what an earlier training saw."""
        self._first = _NEVER

    def after_train_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: dict | None = None,
        outputs: dict | None = None,
    ) -> None:
        """Look at the losses of an iteration."""
        for name, value in (outputs or {}).items():
            if 'loss' in name:
                # RuntimeInfoHook, which comes first, has waited for their device.
                read = runner.message_hub.log_scalars.get(f'train/{name}')
                if not _is_finite(torch.as_tensor(read.current() if read else value)):
                    self._first = min(self._first, runner.iter + 1)
        if self.every_n_train_iters(runner, self.interval):
            self._check(runner)

    def before_val(self, runner: Runner) -> None:
        """Do not validate what is lost."""
        self._check(runner)

    def after_train_epoch(self, runner: Runner) -> None:
        """Stop before the checkpoint of an epoch, or the last one, is written."""
        self._check(runner)

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Refuse to write a checkpoint that nothing could go on from.

        MMEngine calls this in the main process only. A loss that another process saw
        has reached the weights of this one by its gradients.
        """
        self._raise(runner, self._first)
        # Some buffers hold infinity on purpose.
        wrapper, buffers = '_fsdp_wrapped_module.', unwrap(runner.model).named_buffers()
        buffers = {name.replace(wrapper, '') for name, _ in buffers}
        # With EMAHook, the average and the weights themselves, one under each key.
        for state in (checkpoint.get(k, {}) for k in ('state_dict', 'ema_state_dict')):
            for name, value in state.items():
                name = name.removeprefix('module.')
                if name not in buffers and not _is_finite(value):
                    raise NonFiniteLossError(
                        f'after iteration {checkpoint["meta"]["iter"]} the weight '
                        f'{name} is not finite; {self._last(runner)}'
                    )

    def _check(self, runner: Runner) -> None:
        """Stop in all processes, if one of them has to."""
        # The others would wait for it for ever.
        first = torch.tensor(self._first)
        all_reduce(first, 'min')
        self._raise(runner, int(first))

    def _raise(self, runner: Runner, iteration: int) -> None:
        if iteration < _NEVER:
            raise NonFiniteLossError(
                f'the loss of iteration {iteration} is not finite; {self._last(runner)}'
            )

    def _last(self, runner: Runner) -> str:
        checkpoint = find_latest_checkpoint(runner.work_dir)
        if checkpoint is None:
            return f'there is no checkpoint yet in {runner.work_dir}'
        return f'the last checkpoint, from before it, is {checkpoint}'


def _is_finite(value: object) -> bool:
    """Whether a weight is finite, or what this process has of it."""
    if hasattr(value, 'local_shards'):
        return all(_is_finite(shard.tensor) for shard in value.local_shards())
    if hasattr(value, 'to_local'):
        value = value.to_local()
    return not isinstance(value, Tensor) or bool(value.isfinite().all())
