# Copyright (c) mmpsvit contributors.
"""AdamW: PyTorch's values and states, in fewer launches."""

from copy import deepcopy

import pytest
import torch
from dispatch import Operators
from mmengine.config import ConfigDict
from mmengine.optim import build_optim_wrapper
from stack import needs_new_torch
from torch import nn

from mmpsvit.engine import AdamW


def network(device: str = 'cpu') -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Linear(3, 8), nn.LayerNorm(8), nn.ReLU(), nn.Linear(8, 1)]
    return nn.Sequential(*layers).to(device)


def groups(model: nn.Module) -> list[dict]:
    """A group of each parameter, with two learning rates and two decays."""
    return [
        dict(params=[p], lr=0.01 if 'weight' in n else 0.1, weight_decay=0.1 * p.ndim)
        for n, p in model.named_parameters()
    ]


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> None:
    device = next(model.parameters()).device
    for step in range(steps):
        inputs = torch.rand(4, 3, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        model(inputs.to(device)).square().mean().backward()
        optimizer.step()
        for group in optimizer.param_groups:  # as schedules do
            group['lr'] *= 0.9


def assert_equal(one: nn.Module, other: nn.Module) -> None:
    for value, expected in zip(one.parameters(), other.parameters(), strict=True):
        assert torch.equal(value, expected)


class OnCuda(nn.Parameter):
    """A parameter that says it is on CUDA."""

    is_cuda = True


def on_cuda(model: nn.Module) -> nn.Module:
    for module in model.modules():
        for name, parameter in module._parameters.items():
            module._parameters[name] = OnCuda(parameter.data)
    return model


@pytest.mark.parametrize(
    'settings',
    [{}, dict(amsgrad=True), dict(betas=[0.8, 0.9]), dict(maximize=True)],
    ids=str,
)
def test_same_bits_as_pytorch_on_the_cpu(settings):
    model, reference = network(), network()
    optimizer = AdamW(groups(model), **settings)
    expected = torch.optim.AdamW(groups(reference), **settings)
    train(model, optimizer, 5)
    train(reference, expected, 5)
    assert_equal(model, reference)
    state, other = optimizer.state_dict(), expected.state_dict()
    assert state['param_groups'] == other['param_groups']
    for index, values in other['state'].items():
        for name, value in values.items():
            assert torch.equal(state['state'][index][name], value)


@pytest.mark.parametrize(
    'setting',
    [dict(betas=(0.5, 0.9)), dict(eps=0.1), dict(amsgrad=True), dict(maximize=True)],
    ids=str,
)
def test_groups_of_other_settings(setting):
    def split(model: nn.Module) -> list[dict]:
        return [
            dict(params=[p], **(setting if p.ndim > 1 else {}))
            for p in model.parameters()
        ]

    ours, expected = network(), network()
    train(ours, AdamW(split(ours), lr=0.01), 3)
    train(expected, torch.optim.AdamW(split(expected), lr=0.01), 3)
    assert_equal(ours, expected)


def test_equal_groups_step_together():
    """Rates and decays in three combinations."""
    counts = []
    for kind in (AdamW, torch.optim.AdamW):
        model = network()
        optimizer = kind(groups(model), foreach=True)
        train(model, optimizer, 1)
        with Operators() as operators:
            optimizer.step()
        counts.append(operators.names.count('_foreach_lerp_'))
        assert len(optimizer.param_groups) == 6
    assert counts == [3, 6]


def test_groups_survive_a_step_that_fails():
    model = network()
    optimizer = AdamW(groups(model))

    def fail() -> float:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        optimizer.step(fail)
    assert len(optimizer.param_groups) == 6
    assert optimizer.step(lambda: 2.0) == 2.0


@needs_new_torch
def test_in_a_compiled_iteration():
    """MMEngine's ``compile`` compiles the step of the optimizer with the rest."""
    ours, expected = network(), network()
    optimizer = AdamW(groups(ours), lr=0.01)
    torch._dynamo.reset()
    torch.compile(train, backend='eager')(ours, optimizer, 3)
    train(expected, torch.optim.AdamW(groups(expected), lr=0.01), 3)
    assert_equal(ours, expected)


def test_step_hooks_run_once():
    """Also where PyTorch's own AdamW has got its hooks, and with the compiler there."""
    import torch._dynamo

    torch.optim.AdamW(network().parameters())
    optimizer = AdamW(network().parameters())
    calls = []
    optimizer.register_step_pre_hook(lambda *_: calls.append('before'))
    optimizer.register_step_post_hook(lambda *_: calls.append('after'))
    optimizer.step()
    assert calls == ['before', 'after']


def test_fused_where_all_parameters_are_on_cuda():
    assert AdamW(network().parameters()).defaults['fused'] is None
    model = on_cuda(network())
    optimizer = AdamW(groups(model))
    assert all(group['fused'] for group in optimizer.param_groups)
    assert optimizer._step_supports_amp_scaling
    mixed = [*model.parameters(), nn.Parameter(torch.ones(1))]
    assert AdamW(mixed).defaults['fused'] is None
    numbers = [*model.parameters(), OnCuda(torch.ones(1, dtype=torch.complex64))]
    assert AdamW(numbers).defaults['fused'] is None
    for chosen in ('foreach', 'fused', 'capturable', 'differentiable'):
        optimizer = AdamW(model.parameters(), **{chosen: False})
        assert not optimizer.defaults['fused']
        assert not getattr(optimizer, '_step_supports_amp_scaling', False)


def test_state_of_another_device():
    """From CUDA to the CPU and back; the kernel is what the device has."""
    model, reference = network(), network()
    optimizer = AdamW(groups(model))
    expected = torch.optim.AdamW(groups(reference))
    train(model, optimizer, 2)
    train(reference, expected, 2)

    there = AdamW(groups(on_cuda(deepcopy(model))))
    there.load_state_dict(optimizer.state_dict())
    assert all(group['fused'] for group in there.param_groups)
    here = AdamW(groups(model))
    here.load_state_dict(there.state_dict())
    assert all(group['fused'] is None for group in here.param_groups)
    train(model, here, 2)
    train(reference, expected, 2)
    assert_equal(model, reference)


def test_state_to_and_from_pytorch():
    model, reference = network(), network()
    ours, theirs = AdamW(groups(model)), torch.optim.AdamW(groups(reference))
    train(model, ours, 2)
    train(reference, theirs, 2)
    state, other = deepcopy(ours.state_dict()), deepcopy(theirs.state_dict())
    ours.load_state_dict(other)
    theirs.load_state_dict(state)
    train(model, ours, 2)
    train(reference, theirs, 2)
    assert_equal(model, reference)
    # The settings are the state's, as in PyTorch.
    state['param_groups'][0]['eps'] = 1.0
    ours.load_state_dict(state)
    assert ours.param_groups[0]['eps'] == 1.0


def test_config_of_mmengine():
    """A group of each parameter, as MMEngine makes them of ``paramwise_cfg``."""
    model, reference = network(), network()
    cfg = ConfigDict(optimizer=dict(type='mmpsvit.AdamW', lr=0.01, weight_decay=0.1))
    cfg['paramwise_cfg'] = dict(norm_decay_mult=0.0, bias_decay_mult=0.0)
    wrapper = build_optim_wrapper(model, cfg)
    assert type(wrapper.optimizer) is AdamW
    # No ConfigDicts, which are slow.
    assert {type(group) for group in wrapper.optimizer.param_groups} == {dict}
    cfg['optimizer']['type'] = 'AdamW'
    expected = build_optim_wrapper(reference, cfg)
    assert type(expected.optimizer) is torch.optim.AdamW
    for _ in range(3):
        for network_, wrapper_ in ((model, wrapper), (reference, expected)):
            wrapper_.update_params(network_(torch.ones(2, 3)).square().mean())
    assert_equal(model, reference)
    assert len(wrapper.get_lr()['lr']) == len(expected.get_lr()['lr'])


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs CUDA')
@pytest.mark.parametrize('scale', [None, 2.0, float('inf')])
def test_fused_on_cuda(scale):
    """The values are PyTorch's; a scaler that sees infinity skips the step."""
    model, reference = network('cuda'), network('cuda')
    ours = AdamW(groups(model))
    assert all(group['fused'] for group in ours.param_groups)
    theirs = torch.optim.AdamW(groups(reference), foreach=False)
    before = deepcopy(model)
    for network_, optimizer in ((model, ours), (reference, theirs)):
        if scale is None:
            train(network_, optimizer, 3)
            continue
        scaler = torch.cuda.amp.GradScaler(init_scale=scale)
        loss = network_(torch.ones(2, 3, device='cuda')).square().mean()
        scaler.scale(loss).backward()
        if network_ is model:
            torch.cuda.set_sync_debug_mode('error')
        try:
            scaler.step(optimizer)
            scaler.update()
        finally:
            torch.cuda.set_sync_debug_mode('default')
        optimizer.zero_grad()
    pairs = zip(model.parameters(), reference.parameters(), strict=True)
    for value, expected in pairs:
        torch.testing.assert_close(value, expected, rtol=1e-4, atol=1e-6)
    if scale == float('inf'):
        assert_equal(model, before)

    # On to the CPU, and back.
    here = network('cpu')
    here.load_state_dict(model.state_dict())
    on_cpu = AdamW(groups(here))
    # PyTorch would let both count the steps in the same tensor.
    on_cpu.load_state_dict(deepcopy(ours.state_dict()))
    ours.load_state_dict(deepcopy(on_cpu.state_dict()))
    train(here, on_cpu, 1)
    train(model, ours, 1)
    for value, expected in zip(model.parameters(), here.parameters(), strict=True):
        torch.testing.assert_close(value.cpu(), expected, rtol=1e-4, atol=1e-5)
