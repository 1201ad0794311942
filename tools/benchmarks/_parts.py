# Copyright (c) mmpsvit contributors.
"""Parts of a network as steps of their own, on the inputs of one step of the whole.

A part that is timed alone needs no clock inside the network, which would wait for the
device in every layer.
"""

from collections.abc import Callable, Mapping, Sequence

import torch
from _measuring import Step, autocast
from torch import Tensor, nn

from mmpsvit import PSViT, SampledTokens
from mmpsvit.ops import SampledMap


def part_steps(
    model: nn.Module,
    modules: Mapping[str, Sequence[nn.Module]],
    images: Tensor,
    train: bool,
    amp: bool,
) -> dict[str, Step]:
    """One step for each group of modules: all of its calls in one pass of the model.

    Args:
        model (nn.Module): A classifier of MMPretrain.
        modules (Mapping[str, Sequence[nn.Module]]): Groups of modules by name. Every
            module returns one tensor.
        images (Tensor): Images (B, 3, H, W).
        train (bool): Whether a step includes the backward pass.
        amp (bool): Whether the model runs under autocast.

    Returns:
        dict[str, Step]: The steps. One named 'sampling' is added for a PS-ViT: all
        samplings of its map.
    """
    calls = {name: [] for name in modules}

    def recorder(name: str) -> Callable:
        def record(module: nn.Module, args: tuple, kwargs: dict) -> None:
            named = {key: _leaf(value) for key, value in kwargs.items()}
            calls[name].append((module, [_leaf(value) for value in args], named))

        return record

    handles = [
        module.register_forward_pre_hook(recorder(name), with_kwargs=True)
        for name, group in modules.items()
        for module in group
    ]
    sampled = []

    def keep(module: nn.Module, args: tuple, out: SampledTokens) -> None:
        sampled.append((args[0].detach(), out.trajectory))

    if isinstance(model.backbone, PSViT):
        handles.append(model.backbone.sampler.register_forward_hook(keep))
    with torch.set_grad_enabled(train), autocast(images.device, amp):
        model(images, mode='tensor')
    for handle in handles:
        handle.remove()

    steps = {
        name: _calls_step(group, images.device, train, amp)
        for name, group in calls.items()
    }
    for feat, trajectory in sampled:
        steps['sampling'] = sampling_step(feat, trajectory, train)
    return steps


def sampling_step(feat: Tensor, trajectory: Tensor, train: bool) -> Step:
    """All samplings of one map, and with ``train`` the gradients of map and points.

    Args:
        feat (Tensor): The map (B, C, H, W), as the stem returns it.
        trajectory (Tensor): The points (B, N_iters, N, 2).
        train (bool): Whether the step includes the backward pass.
    """

    batch, iterations, count, _ = trajectory.shape
    start, *moved = trajectory.unbind(1)
    # The start points have no gradient.
    calls = [start, *(points.clone().requires_grad_(train) for points in moved)]
    grad = torch.ones(batch, count, feat.shape[1], device=feat.device)

    def sample(source: Tensor) -> list[Tensor]:
        sampled = SampledMap(source, count, iterations)
        return [sampled.sample(points, call) for call, points in enumerate(calls)]

    def infer() -> None:
        with torch.inference_mode():
            sample(feat)

    def train_step() -> None:
        samples = sample(feat.detach().requires_grad_())
        torch.autograd.backward(samples, [grad] * iterations)
        for points in calls:
            points.grad = None

    return train_step if train else infer


def _calls_step(calls: list, device: torch.device, train: bool, amp: bool) -> Step:
    """Repeat recorded calls, each with its backward pass under ``train``."""
    if not calls:
        raise ValueError('the model calls none of the modules of a part')

    def infer() -> None:
        with torch.inference_mode(), autocast(device, amp):
            for module, args, kwargs in calls:
                module(*args, **kwargs)

    def train_step() -> None:
        for module, args, kwargs in calls:
            inputs = [_leaf(value) for value in args]
            named = {key: _leaf(value) for key, value in kwargs.items()}
            with autocast(device, amp):
                out = module(*inputs, **named)
            out.backward(torch.ones_like(out))
        for module, _, _ in calls:
            module.zero_grad(set_to_none=True)

    return train_step if train else infer


def _leaf(value):
    """A tensor with a gradient of its own if it has one in the network."""
    if not isinstance(value, Tensor):
        return value
    return value.detach().requires_grad_(value.requires_grad)
