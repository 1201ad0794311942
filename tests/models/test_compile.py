# Copyright (c) mmpsvit contributors.
"""``torch.compile`` takes the backbone in one graph, and changes no value."""

import pytest
import torch
from small import move_points, small_arch
from stack import needs_new_torch

from mmpsvit import PSViT

pytestmark = needs_new_torch


@pytest.mark.parametrize(
    'kwargs',
    [
        dict(sampler=dict(num_points=4, num_iters=2)),
        dict(sampler=dict(point_stride=16, num_iters=2), out_type='featmap'),
        dict(sampler=dict(num_points=4, num_iters=2), with_cp=True),
    ],
    ids=['classifier', 'featmap', 'with_cp'],
)
@pytest.mark.parametrize('train', [False, True])
def test_one_graph(kwargs, train):
    """Without the code generation, which takes minutes on a CPU."""
    torch._dynamo.reset()
    torch.manual_seed(0)
    model = PSViT(small_arch(), **kwargs).double()
    move_points(model.sampler)
    model.train(train)
    images = torch.rand(2, 3, 64, 64, dtype=torch.float64)
    compiled = torch.compile(model, backend='aot_eager', fullgraph=True)

    results = []
    for network in (model, compiled):
        with torch.set_grad_enabled(train):
            outs = network(images)
        if train:
            sum(out.square().mean() for out in outs).backward()
        gradients = [p.grad for p in model.parameters() if train]
        assert all(grad is not None for grad in gradients)
        results.append([*outs, *gradients])
        model.zero_grad()
    for plain, ours in zip(*results, strict=True):
        torch.testing.assert_close(ours, plain, atol=1e-9, rtol=1e-7)
