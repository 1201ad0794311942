# Copyright (c) mmpsvit contributors.
"""Learning rate schedule."""

import math

from mmengine.optim import CosineAnnealingLR

from mmpsvit.registry import PARAM_SCHEDULERS


@PARAM_SCHEDULERS.register_module()
class CosineFactorLR(CosineAnnealingLR):
    """A cosine whose steps are factors, so that a warm-up may run beside it.

    MMEngine's schedulers change the current learning rate step by step, and so
    multiply. Its cosine adds ``eta_min`` in every step, also while a warm-up holds
    the rate low, and then stays off by some 5e-6 for good. This one multiplies by the
    ratio of two values of the cosine: after the warm-up the values are exact. A rate of
    0 stays 0; beyond ``T_max`` the cosine rises again, as MMEngine's does.

    Args:
        *args: Arguments of ``mmengine.optim.CosineAnnealingLR``.
        eta_min (float): Learning rate at the end. Defaults to 0.
        **kwargs: Other arguments of it, ``eta_min_ratio`` excepted.
    """

    def __init__(self, *args, eta_min: float = 0.0, **kwargs) -> None:
        super().__init__(*args, eta_min=eta_min, **kwargs)

    def _get_value(self) -> list[float]:
        """The values of all parameter groups after this step."""
        values = [group[self.param_name] for group in self.optimizer.param_groups]
        if self.last_step == 0:
            return values
        # MMEngine makes a group of each parameter, and most have the same rate.
        cosines = {
            base: [self._cosine(base, self.last_step - i) for i in (1, 0)]
            for base in {*self.base_values}
        }
        return [
            _step_from(value, base, *cosines[base])
            for value, base in zip(values, self.base_values, strict=True)
        ]

    def _cosine(self, base: float, step: int) -> float:
        cosine = (1 + math.cos(math.pi * step / self.T_max)) / 2
        return self.eta_min + (base - self.eta_min) * cosine


def _step_from(value: float, base: float, before: float, now: float) -> float:
    if base == 0:
        return 0.0  # a frozen group
    # With eta_min = 0 it is zero at T_max, and has no factors from there.
    return value * now / before if before else value + now
