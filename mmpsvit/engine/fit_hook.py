# Copyright (c) mmpsvit contributors.
"""Holds what a checkpoint loads against the model, which MMEngine only logs."""

import re
from collections.abc import Sequence

from mmengine.hooks import Hook
from mmengine.model import BaseTTAModel, is_model_wrapper
from mmengine.runner import Runner
from torch import Tensor, nn

from mmpsvit.engine.checkpoint import CheckpointError
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
        CheckpointError: When a checkpoint is loaded that does not fit.
    """

    # Before EMAHook, which copies the weights for itself.
    priority = 'VERY_HIGH'

    def __init__(self, must_fit: Sequence[str] = ('backbone.', 'neck.')) -> None:
        self.must_fit = tuple(must_fit)

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Check the weights, and take out of the checkpoint those to be left out."""
        name = runner._load_from
        state = checkpoint.get('state_dict', checkpoint)
        if not state or not all(isinstance(value, Tensor) for value in state.values()):
            raise CheckpointError(f'checkpoint {name} holds no weights of a model')
        # As MMEngine does: checkpoints of wrapped models have a prefix.
        for key in list(state):
            state[re.sub(r'^module\.', '', key)] = state.pop(key)

        model = runner.model
        while is_model_wrapper(model) or isinstance(model, BaseTTAModel):
            model = model.module
        problems = find_misfits(model, state)
        must_fit = ('',) if runner._resume else self.must_fit
        fatal = [text for key, text in problems.items() if key.startswith(must_fit)]
        if fatal:
            rest = f' and {len(fatal) - 3} more' if len(fatal) > 3 else ''
            raise CheckpointError(
                f'checkpoint {name} does not fit the config: '
                + '; '.join(fatal[:3])
                + rest
            )
        for key in problems:
            state.pop(key, None)
        if problems:
            runner.logger.warning(
                f'Not taken from {name}, so trained from their initial values: '
                + '; '.join(problems.values())
            )


def find_misfits(model: nn.Module, state: dict[str, Tensor]) -> dict[str, str]:
    """Find the weights of a checkpoint that do not fit a model.

    Args:
        model (nn.Module): The model. It receives the weights that fit.
        state (dict[str, Tensor]): The checkpoint's state dict.

    Returns:
        dict[str, str]: For each key that is missing in the checkpoint, unknown to the
        model or of another shape, a line that says so.
    """
    misfits = {}
    fitting = dict(state)
    try:
        model.load_state_dict(fitting, strict=False)
    except RuntimeError as error:
        # Shapes are compared here and not beforehand: modules may adapt weights, such
        # as position embeddings, while they load them.
        for key in re.findall(r'size mismatch for (\S+):', str(error)):
            given, expected = tuple(state[key].shape), model.state_dict()[key].shape
            misfits[key] = f'{key} has shape {given}, the model wants {tuple(expected)}'
            del fitting[key]
    incompatible = model.load_state_dict(fitting, strict=False)
    for key in incompatible.unexpected_keys:
        misfits[key] = f'{key} is unknown to the model'
    for key in incompatible.missing_keys:
        # Old checkpoints lack this counter, which only matters without a momentum.
        if key not in misfits and not key.endswith('num_batches_tracked'):
            misfits[key] = f'{key} is missing'
    return misfits
