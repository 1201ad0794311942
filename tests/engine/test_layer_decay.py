# Copyright (c) mmpsvit contributors.
"""Learning rates that fall with the depth of a layer."""

import pytest
from torch import nn

from mmpsvit.engine import LayerDecayOptimWrapperConstructor


class Backbone(nn.Module):
    """Two layers of depth 0 and 1 out of 3 depths."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(1, 1), nn.Linear(1, 1)

    def get_layer_depth(self, name: str, prefix: str) -> tuple[int, int]:
        depths = {'first': 0, 'second': 1}
        return depths.get(name.removeprefix(prefix).split('.')[0], 2), 3


def learning_rates(**paramwise_cfg) -> dict[str, float]:
    model = nn.ModuleDict(dict(backbone=Backbone(), head=nn.Linear(1, 1)))
    # nn.ModuleDict has no attribute of a key that it has.
    assert model.backbone is model['backbone']
    build = LayerDecayOptimWrapperConstructor(
        dict(optimizer=dict(type='mmpsvit.AdamW', lr=1.0, weight_decay=0.1)),
        dict(layer_decay_rate=0.5, **paramwise_cfg),
    )
    groups = build(model).optimizer.param_groups
    assert not any('lr_mult' in group for group in groups)  # it is in the rate
    return {group['param_name']: group['lr'] for group in groups}


def test_rate_falls_with_depth():
    rates = learning_rates()
    assert rates['backbone.first.weight'] == 0.25
    assert rates['backbone.second.bias'] == 0.5
    assert rates['head.weight'] == 1


def test_multipliers_of_custom_keys():
    """The longest key counts, as in MMEngine; of two, the first by the alphabet."""
    keys = {
        'backbone': dict(lr_mult=0.1, decay_mult=0.0),
        'backbone.second': dict(lr_mult=0.0),
        'head.bias': dict(decay_mult=0.0),
        'first.weight': dict(lr_mult=0.2),
        'backbone.fir': dict(lr_mult=0.1),
    }
    rates = learning_rates(custom_keys=keys)
    assert rates['backbone.first.weight'] == pytest.approx(0.025)
    assert rates['backbone.second.bias'] == 0
    assert rates['head.weight'] == rates['head.bias'] == 1


def test_backbone_without_depths():
    build = LayerDecayOptimWrapperConstructor(
        dict(optimizer=dict(type='SGD', lr=1.0)), dict(layer_decay_rate=0.5)
    )
    message = 'needs a backbone with get_layer_depth, ModuleDict has Linear'
    with pytest.raises(NotImplementedError, match=message):
        build(nn.ModuleDict(dict(backbone=nn.Linear(1, 1))))
