# Copyright (c) mmpsvit contributors.
"""The average of the weights: MMEngine's values and states, in one launch."""

from contextlib import nullcontext
from copy import deepcopy

import pytest
import torch
from dispatch import Operators
from guard.small_training import Killed, Recorder, make_runner, read
from guard.small_training import assert_same as assert_same_files
from mmengine.model import ExponentialMovingAverage
from mmengine.registry import MODELS
from torch import Tensor, nn

from mmpsvit.engine import ForeachEMA


class Network(nn.Module):
    """Parameters, one of them frozen, and buffers of all kinds."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
        self.frozen = nn.Parameter(torch.rand(2), requires_grad=False)
        self.register_buffer('count', torch.tensor(7))
        self.register_buffer('hidden', torch.rand(2), persistent=False)
        self.register_buffer('nothing', None)

    def change(self, step: int) -> None:
        """What a step of a training does, and more."""
        generator = torch.Generator().manual_seed(step)
        for tensor in (*self.parameters(), *self.buffers()):
            if tensor.is_floating_point():
                noise = torch.rand(tensor.shape, generator=generator)
                tensor.data += noise.to(tensor)
            else:
                tensor += 1


def tensors(average: nn.Module) -> dict[str, Tensor]:
    buffers = dict(average.named_buffers())
    return {**average.state_dict(), **buffers}


def assert_same(one: nn.Module, other: nn.Module) -> None:
    results, expected = tensors(one), tensors(other)
    assert [*results] == [*expected]
    for name, value in results.items():
        assert value.dtype == expected[name].dtype
        assert torch.equal(value, expected[name]), name


@pytest.fixture(params=[False, True], ids=['parameters', 'buffers too'])
def update_buffers(request) -> bool:
    return request.param


@pytest.mark.parametrize('interval', [1, 3])
def test_bits_of_mmengine(update_buffers, interval):
    model = Network()
    settings = dict(momentum=0.1, interval=interval, update_buffers=update_buffers)
    ours = MODELS.build(dict(type='mmpsvit.ForeachEMA', model=model, **settings))
    theirs = ExponentialMovingAverage(model, **settings)
    assert type(ours) is ForeachEMA
    for step in range(7):
        model.change(step)
        ours.update_parameters(model)
        theirs.update_parameters(model)
        assert_same(ours, theirs)


def test_states_load_into_each_other(update_buffers):
    model = Network()
    settings = dict(momentum=0.1, update_buffers=update_buffers)
    ours = ForeachEMA(model, **settings)
    theirs = ExponentialMovingAverage(model, **settings)
    for step in range(2):
        model.change(step)
        ours.update_parameters(model)
    theirs.load_state_dict(ours.state_dict())
    ours = ForeachEMA(Network(), **settings)
    ours.load_state_dict(theirs.state_dict())
    for step in range(3):
        model.change(step)
        ours.update_parameters(model)
        theirs.update_parameters(model)
    assert_same(ours, theirs)


def replace_data(model: Network) -> None:
    model.frozen.data = torch.rand(2)


def replace_parameter(model: Network) -> None:
    model.layers[0].weight = nn.Parameter(torch.rand(4, 3))


def replace_buffer(model: Network) -> None:
    model.layers[1].running_mean = torch.rand(4)


def replace_module(model: Network) -> None:
    model.layers[1] = nn.BatchNorm1d(4)


def assign(model: Network) -> None:
    model.load_state_dict(deepcopy(model.state_dict()), assign=True)


@pytest.mark.parametrize(
    'replace',
    [replace_data, replace_parameter, replace_buffer, replace_module, assign],
    ids=lambda function: function.__name__,
)
def test_replaced_tensors_are_noticed(replace, update_buffers):
    model = Network()
    settings = dict(momentum=0.1, update_buffers=update_buffers)
    ours = ForeachEMA(model, **settings)
    theirs = ExponentialMovingAverage(model, **settings)
    for step in range(4):
        if step == 2:
            replace(model)
        model.change(step)
        ours.update_parameters(model)
        theirs.update_parameters(model)
        assert_same(ours, theirs)
    # And another model.
    for average in (ours, theirs):
        average.update_parameters(Network())
    assert_same(ours, theirs)


def test_added_modules_take_no_part(update_buffers):
    model = Network()
    ours = ForeachEMA(model, update_buffers=update_buffers)
    before = [*ours.state_dict()]
    ours.update_parameters(model)
    model.added = nn.Linear(2, 2)
    ours.update_parameters(model)
    assert [*ours.state_dict()] == before


def test_average_of_another_dtype(update_buffers):
    """Also one that changes on the way; the average keeps its own."""
    model = Network()
    ours = ForeachEMA(model, momentum=0.25, update_buffers=update_buffers)
    ours.update_parameters(model)
    expected = model.layers[0].weight.detach().clone()
    model.double()
    model.change(0)
    ours.update_parameters(model)
    expected.lerp_(model.layers[0].weight.detach().float(), 0.25)
    assert torch.equal(ours.module.layers[0].weight, expected)
    ours.double()
    ours.update_parameters(model)
    expected = expected.double().lerp_(model.layers[0].weight.detach(), 0.25)
    assert torch.equal(ours.module.layers[0].weight, expected)


def test_tied_tensors_are_averaged_once(update_buffers):
    model = Network()
    model.tied = model.layers[0].weight
    ours = ForeachEMA(model, momentum=0.25, update_buffers=update_buffers)
    ours.update_parameters(model)
    expected = model.tied.detach().clone()
    model.change(0)
    ours.update_parameters(model)
    expected.lerp_(model.tied.detach(), 0.25)
    assert torch.equal(ours.module.layers[0].weight, expected)
    assert ours.module.tied is ours.module.layers[0].weight


def test_training_with_validations_that_resumes(tmp_path):
    """It ends as with MMEngine's, also if that was killed halfway."""

    ours, theirs = 'mmpsvit.ForeachEMA', 'ExponentialMovingAverage'

    def run(folder, last=None, kind=theirs, **changes):
        average = dict(update_buffers=True, ema_type=kind)
        recorder = Recorder(last)
        runner = make_runner(
            tmp_path / folder, recorder=recorder, average=average, **changes
        )
        with pytest.raises(Killed) if last else nullcontext():
            runner.train()

    run('whole')
    for first in (ours, theirs):
        run(first, last=7, kind=first)
        run(first, kind=ours, resume=True)
        assert_same_files(read(tmp_path / first), read(tmp_path / 'whole'))


def test_one_launch_for_all():
    model = Network()
    ours = ForeachEMA(model, update_buffers=True)
    ours.update_parameters(model)
    with Operators() as operators:
        ours.update_parameters(model)
    # The others count the step.
    names = ['_foreach_lerp_', '_local_scalar_dense', 'add_']
    assert sorted(operators.names) == names


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs CUDA')
@pytest.mark.parametrize('device', [None, 'cuda'])
def test_cuda_never_waits(update_buffers, device):
    model = Network().cuda()
    settings = dict(momentum=0.1, update_buffers=update_buffers)
    ours = ForeachEMA(model, device=device, **settings)
    theirs = ExponentialMovingAverage(model, **settings)
    for step in range(4):
        model.change(step)
        theirs.update_parameters(model)
        if step:
            torch.cuda.set_sync_debug_mode('error')
        try:
            ours.update_parameters(model)
        finally:
            torch.cuda.set_sync_debug_mode('default')
    for name, value in theirs.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[name], value, check_device=False)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs CUDA')
def test_average_on_the_cpu_of_a_model_on_cuda(update_buffers):
    model = Network().cuda()
    settings = dict(momentum=0.1, update_buffers=update_buffers, device='cpu')
    ours, theirs = (
        ForeachEMA(model, **settings),
        ExponentialMovingAverage(model, **settings),
    )
    for step in range(3):
        model.change(step)
        ours.update_parameters(model)
        theirs.update_parameters(model)
    assert_same(ours, theirs)
