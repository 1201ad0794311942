# Copyright (c) mmpsvit contributors.
"""Holds what a checkpoint loads against the model, which MMEngine only logs."""

from collections.abc import Sequence

from mmengine.hooks import Hook
from mmengine.model import BaseTTAModel, is_model_wrapper
from mmengine.runner import Runner, find_latest_checkpoint
from torch import Tensor

from mmpsvit.guard.fit import (
    CheckpointMisfitError,
    find_misfits,
    raise_misfits,
    without_wrapper,
)
from mmpsvit.registry import HOOKS


@HOOKS.register_module()
class CheckpointFitHook(Hook):
    """Stops when a loaded checkpoint does not fit the model.

    MMEngine loads what fits and logs the rest. Here, fine-tuning from a checkpoint
    with another number of classes leaves out the weights of the head, and says which;
    anything else that is missing, left over or of another shape is an error. Resuming
    needs a checkpoint that fits in all parts.

    Args:
        must_fit (Sequence[str]): Prefixes of the weights that must fit; those of all
            other parts are left out where they do not, with a warning. ``('',)``
            means all. Defaults to ('backbone.', 'neck.').

    Raises:
        CheckpointMisfitError: When a checkpoint is loaded that does not fit.
    """

    # Before EMAHook, which copies the weights for itself.
    priority = 'VERY_HIGH'

    def __init__(self, must_fit: Sequence[str] = ('backbone.', 'neck.')) -> None:
        self.must_fit = tuple(must_fit)

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Check the weights, and take out of the checkpoint those to be left out."""
        name = runner._load_from or find_latest_checkpoint(runner.work_dir)
        state = checkpoint.get('state_dict', checkpoint)
        if not state or not all(isinstance(value, Tensor) for value in state.values()):
            raise CheckpointMisfitError(
                f'checkpoint {name} holds no weights of a model'
            )
        # As MMEngine does: checkpoints of wrapped models have a prefix.
        unwrapped = without_wrapper(state)
        state.clear()
        state.update(unwrapped)

        model = runner.model
        while is_model_wrapper(model) or isinstance(model, BaseTTAModel):
            model = model.module
        problems = find_misfits(model, state)
        must_fit = ('',) if runner._resume else self.must_fit
        raise_misfits(
            name, [text for key, text in problems.items() if key.startswith(must_fit)]
        )
        for key in problems:
            state.pop(key, None)
        if problems:
            runner.logger.warning(
                f'Not taken from {name}, so trained from their initial values: '
                + '; '.join(problems.values())
            )
