# Copyright (c) mmpsvit contributors.
"""Trainings whose network is compiled end as those in which it is not."""

from types import SimpleNamespace

import pytest
import torch
from guard.small_training import Killed, Recorder, assert_same, make_runner, read
from mmengine.model import MMDistributedDataParallel
from mmengine.registry import HOOKS
from torch import distributed, nn

from mmpsvit.engine import CompileHook


class Backend:
    """Runs graphs as they are, and keeps what it was given."""

    def __init__(self) -> None:
        self.graphs = []

    def __call__(self, graph: torch.fx.GraphModule, inputs: list):
        self.graphs.append(graph)
        return graph.forward


class Backbone(nn.Module):
    """PyTorch compiles no module of its own, such as nn.Sequential."""

    def __init__(self, layers: nn.Module) -> None:
        super().__init__()
        self.layers = layers

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.layers(inputs)


def test_training_that_is_killed_and_resumes(tmp_path):
    """With an average of the weights, validations and checkpoints."""
    backend = Backend()

    def run(folder: str, compiles: bool = True, last: int | None = None, **changes):
        runner = make_runner(tmp_path / folder, recorder=Recorder(last), **changes)
        runner.model.layers = Backbone(runner.model.layers)
        if compiles:
            torch._dynamo.reset()
            hook = CompileHook('layers', backend=backend, fullgraph=True)
            runner.register_hook(hook)
        runner.train()

    run('plain', compiles=False)
    assert not backend.graphs
    with pytest.raises(Killed):
        run('compiled', last=7)
    # In training and in validation.
    assert len(backend.graphs) == 2
    run('compiled', resume=True)
    assert len(backend.graphs) == 4
    assert_same(read(tmp_path / 'compiled'), read(tmp_path / 'plain'))


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.backbone = Backbone(nn.Linear(2, 2))
        self.head = nn.Linear(2, 1)

    def forward(self, inputs):
        return self.head(self.backbone(inputs))


def test_backbone_below_the_wrapper_of_ddp():
    torch._dynamo.reset()
    backend = Backend()
    store = distributed.HashStore()
    distributed.init_process_group('gloo', store=store, rank=0, world_size=1)
    try:
        model = MMDistributedDataParallel(Model())
        inputs = torch.ones(3, 2)
        expected = model(inputs)
        names = [*model.state_dict()]
        cfg = dict(type='mmpsvit.CompileHook', backend=backend)
        HOOKS.build(cfg).before_train(SimpleNamespace(model=model))
        result = model(inputs)
        result.sum().backward()
        assert len(backend.graphs) == 1
        assert torch.equal(result, expected)
        assert [*model.state_dict()] == names
        assert model.module.backbone.layers.weight.grad is not None
    finally:
        distributed.destroy_process_group()
