# Copyright (c) mmpsvit contributors.
"""The average of the weights in one launch, where MMEngine takes one for each."""

from collections.abc import Iterable
from itertools import chain
from operator import is_

import torch
from mmengine.model import ExponentialMovingAverage
from torch import nn

from mmpsvit.registry import MODELS


@MODELS.register_module()
class ForeachEMA(ExponentialMovingAverage):
    """MMEngine's moving average, updated in one launch and without waiting for a GPU.

    For ``EMAHook(ema_type='mmpsvit.ForeachEMA')``. Values (bit for bit on the CPU) and
    state dict are those of MMEngine's class, with two exceptions: a tensor of two names
    is averaged once in a step, also with ``update_buffers=True``, and the model may be
    of another dtype than the average.

    Args:
        *args: As for ``mmengine.model.ExponentialMovingAverage``.
        **kwargs: Likewise.
    """

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        # In a tuple, where nn.Module does not take the model for a part of this one.
        self._watched: tuple = (None, (), ())

    @torch.no_grad()
    def update_parameters(self, model: nn.Module) -> None:
        """Take the model's tensors into the average.

        Args:
            model (nn.Module): The model.
        """
        last, holders, contents = self._watched
        now = _contents(holders)
        is_same = len(now) == len(contents) and all(map(is_, now, contents))
        if model is not last or not is_same:
            self._collect(model)

        # Counted on the CPU, where reading does not wait for a GPU.
        self.steps = self.steps.cpu()
        steps = int(self.steps)
        if steps == 0:
            for average, source in self._pairs:
                average.copy_(source)
        elif steps % self.interval == 0:
            # `.half()` and the like change a parameter that stays the same object.
            pairs = zip(self._averages, self._sources, strict=True)
            sources = [source.to(average) for average, source in pairs]
            torch._foreach_lerp_(self._averages, sources, self.momentum)
        for average, source in self._synchronised:
            average.copy_(source)
        self.steps += 1

    def _collect(self, model: nn.Module) -> None:
        """Look up the tensors of the average and of the model, once for many steps."""
        models = (self.module, model)
        self._synchronised = []
        if self.update_buffers:
            averages, sources = (m.state_dict(keep_vars=True) for m in models)
        else:
            averages, sources = (dict(m.named_parameters()) for m in models)
            self._synchronised += zip(*(m.buffers() for m in models), strict=False)
        names = {id(average): name for name, average in averages.items()}.values()
        self._pairs = [(averages[name], sources[name]) for name in names]
        floating = [pair for pair in self._pairs if pair[0].is_floating_point()]
        self._averages, self._sources = map(list, zip(*floating, strict=True))

        # All of it, so that whatever is replaced later is noticed.
        holders = [
            holder
            for module in chain.from_iterable(m.modules() for m in models)
            for holder in (module._parameters, module._buffers, module._modules)
            if holder
        ]
        self._watched = model, holders, _contents(holders)


def _contents(holders: Iterable[dict]) -> list:
    """The tensors and modules that modules hold."""
    return [*chain.from_iterable(map(dict.values, holders))]
