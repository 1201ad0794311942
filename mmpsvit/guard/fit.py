# Copyright (c) mmpsvit contributors.
"""Holds the weights of a checkpoint against a module, which MMEngine only logs."""

import re
from collections.abc import Mapping

from torch import Tensor, nn


class CheckpointMisfitError(RuntimeError):
    """The weights of a checkpoint do not fit the model."""


def find_misfits(model: nn.Module, state: Mapping[str, Tensor]) -> dict[str, str]:
    """Find the weights of a checkpoint that do not fit a model.

    Args:
        model (nn.Module): The model. It receives the weights that fit.
        state (Mapping[str, Tensor]): The checkpoint's state dict.

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


def without_wrapper(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
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


def refuse_foreign_weights(
    module: nn.Module, state: Mapping[str, Tensor], prefix: str, *_
) -> None:
    """Stop where a module is about to be loaded from weights of which it has none.

    MMEngine would log the names and go on from scratch. This is a hook for
    ``module.register_load_state_dict_pre_hook`` and reaches every way of loading,
    also in other people's tools. A state dict without the prefix of the module loads
    other parts of a model, which is fine.

    Args:
        module (nn.Module): The module.
        state (Mapping[str, Tensor]): The state dict.
        prefix (str): Prefix of the module's keys.

    Raises:
        CheckpointMisfitError: If there are weights under the prefix, and none of them
            has the name and shape of one of the module's parameters.
    """
    given = [key for key in state if key.startswith(prefix)]
    own = {prefix + name: tuple(p.shape) for name, p in module.named_parameters()}
    if given and not any(
        key in own and tuple(state[key].shape) == own[key] for key in given
    ):
        some, mine = ', '.join(given[:3]), ', '.join([*own][:3])
        raise CheckpointMisfitError(
            f'no weight of the checkpoint fits {type(module).__name__}: the checkpoint '
            f'has {some}, ..., the module has {mine}, ... . Is it a checkpoint of '
            'another network, or does it need a prefix?'
        )
