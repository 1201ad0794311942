# Copyright (c) mmpsvit contributors.
"""AdamW in few launches: in eager training a GPU otherwise waits for the host."""

import inspect
from collections.abc import Callable, Iterable

import torch

from mmpsvit.registry import OPTIMIZERS

# How the step is computed, but not what comes out.
_HOW = ('foreach', 'fused', 'capturable', 'differentiable')
# Of the function that runs the hooks, whatever step it wraps.
_WITH_HOOKS = torch.optim.Optimizer.profile_hook_step(lambda: None).__code__


@OPTIMIZERS.register_module()
class AdamW(torch.optim.AdamW):
    """PyTorch's AdamW, with one launch for many parameters.

    With a ``paramwise_cfg``, MMEngine makes a group of each parameter, and PyTorch
    steps group by group. Here groups of equal settings step together; they remain
    groups for schedules and checkpoints. If all parameters are of floating point and on
    CUDA, PyTorch's fused kernel steps, which also spares a loss scaler waiting for the
    GPU. On the CPU, values are those of PyTorch's AdamW bit for bit.

    State dicts are those of PyTorch's AdamW, and may come from another device.

    Args:
        params (Iterable): Parameters or groups of them.
        *args: As for ``torch.optim.AdamW``.
        **kwargs: Likewise. With ``foreach``, ``fused``, ``capturable`` or
            ``differentiable`` among them, PyTorch decides by these.
    """

    def __init__(self, params: Iterable, *args, **kwargs) -> None:
        super().__init__(params, *args, **kwargs)
        # MMEngine makes them ConfigDicts, which every step would read slowly.
        self.param_groups = [dict(group) for group in self.param_groups]
        if not kwargs.keys() & {*_HOW} and all(
            parameter.is_cuda and parameter.is_floating_point()
            for group in self.param_groups
            for parameter in group['params']
        ):
            for group in (self.defaults, *self.param_groups):
                group['fused'] = True
            # As PyTorch sets it with fused=True: a loss scaler leaves it to the kernel.
            self._step_supports_amp_scaling = True

    def load_state_dict(self, state_dict: dict) -> None:
        """Load a state; how steps are computed stays what suits this device."""
        how = {key: self.defaults[key] for key in _HOW}
        groups = [{**group, **how} for group in state_dict['param_groups']]
        super().load_state_dict({**state_dict, 'param_groups': groups})

    # MMEngine's `compile` compiles whole iterations, and cannot trace what this does.
    @torch.compiler.disable
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Take a step."""
        groups = self.param_groups
        self.param_groups = _join(groups, self.defaults)
        try:
            return _without_hooks(super().step.__func__)(self, closure)
        finally:
            self.param_groups = groups


def _join(groups: list[dict], settings: Iterable[str]) -> list[dict]:
    """Groups of parameters, one for all those of equal settings."""
    joined = {}
    names = [name for name in settings if name != 'betas']  # which may be a list
    for group in groups:
        key = (*(group[name] for name in names), *group['betas'])
        if key in joined:
            joined[key]['params'] += group['params']
        else:
            joined[key] = {**group, 'params': [*group['params']]}
    return [*joined.values()]


def _without_hooks(step: Callable) -> Callable:
    """PyTorch's step as it is before the first instance wraps it in step hooks.

    They run around the step of the subclass already.
    """
    return inspect.unwrap(step, stop=lambda inner: inner.__code__ is not _WITH_HOOKS)
