# Copyright (c) mmpsvit contributors.
"""Holds pretrained weights against a module, which MMEngine only logs."""

import re

from mmengine.runner.checkpoint import (
    CheckpointLoader,
    _load_checkpoint_with_prefix,
)
from torch import Tensor, nn


class CheckpointMisfitError(RuntimeError):
    """The weights of a checkpoint do not fit the model."""


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


def without_wrapper(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Take the prefix of wrapped models off the keys, as MMEngine does."""
    return {re.sub(r'^module\.', '', key): value for key, value in state.items()}


def raise_misfits(name: str, misfits: list[str]) -> None:
    """Raise a CheckpointMisfitError that shows the first of the misfits, if any.

    Args:
        name (str): The checkpoint.
        misfits (list[str]): Lines of :func:`find_misfits`.
    """
    if misfits:
        rest = f' and {len(misfits) - 3} more' if len(misfits) > 3 else ''
        raise CheckpointMisfitError(
            f'checkpoint {name} does not fit the config: {"; ".join(misfits[:3])}{rest}'
        )


def check_pretrained(
    module: nn.Module,
    init_cfg: dict | list[dict] | None,
    ignored: tuple[str, ...] = (),
) -> None:
    """Check that the checkpoints of ``init_cfg`` have all weights of a module.

    Args:
        module (nn.Module): The module that is about to be initialised.
        init_cfg (dict | list[dict], optional): Its initialisation config. Entries of
            other types than 'Pretrained' are left alone.
        ignored (tuple[str, ...]): Weights that the module has no use for.

    Raises:
        CheckpointMisfitError: If weights are missing, unknown or of another shape.
    """
    for cfg in [init_cfg] if isinstance(init_cfg, dict) else init_cfg or []:
        if str(cfg['type']).split('.')[-1] != 'Pretrained':
            continue
        name, prefix = cfg['checkpoint'], cfg.get('prefix')
        if prefix is None:
            state = CheckpointLoader.load_checkpoint(name, 'cpu')
            state = without_wrapper(state.get('state_dict', state))
        else:
            try:
                state = _load_checkpoint_with_prefix(prefix, name, 'cpu')
            except AssertionError:
                raise CheckpointMisfitError(
                    f'checkpoint {name} does not fit the config: it has no weights '
                    f'with the prefix {prefix!r}'
                ) from None
        misfits = find_misfits(module, state)
        raise_misfits(
            name, [text for key, text in misfits.items() if key not in ignored]
        )
