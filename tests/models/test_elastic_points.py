# Copyright (c) mmpsvit contributors.
"""One network, several numbers of points: choices, draws, evaluation, compilation."""

from collections import Counter
from types import SimpleNamespace

import pytest
import torch
from small import small_arch
from stack import needs_new_torch
from torch import nn

from mmpsvit import ProgressiveSampling, PSViT
from mmpsvit.engine import ElasticPointsHook, elastic_hook

CHOICES = [2, 3, 4]


def make_backbone(num_points=CHOICES, **kwargs) -> PSViT:
    torch.manual_seed(0)
    sampler = dict(num_points=num_points, num_iters=2)
    return PSViT(small_arch(num_layers=3), sampler=sampler, **kwargs)


@pytest.mark.parametrize(
    ('num_points', 'choices', 'middle'),
    [
        (5, (), (5, 5)),
        ((4, 6), (), (4, 6)),
        ([10, 18, 14], ((10, 10), (14, 14), (18, 18)), (14, 14)),
        ([(4, 9), (2, 2)], ((2, 2), (4, 9)), (4, 9)),
        ([[2, 2], [3, 4], [4, 3]], ((2, 2), (3, 4), (4, 3)), (3, 4)),
    ],
)
def test_choices(num_points, choices, middle):
    sampler = ProgressiveSampling(24, 3, 48, num_points=num_points)
    assert sampler.choices == choices
    assert sampler.num_points == sampler.grid_size((16, 16)) == middle


def test_set_for_evaluation():
    """Any of them equals a network of that number with the same weights."""
    backbone = make_backbone().eval()
    images = torch.rand(2, 3, 32, 32)
    for count in (2, 3, 4, 5):
        fixed = make_backbone(count).eval()
        fixed.load_state_dict(backbone.state_dict())
        backbone.sampler.num_points = count
        assert torch.equal(backbone(images)[0], fixed(images)[0])
    # Training goes on with the choices.
    assert backbone.sampler.choices == ((2, 2), (3, 3), (4, 4))
    with pytest.raises(ValueError, match=r'num_points must be .* got 0'):
        backbone.sampler.num_points = 0


def test_point_stride_has_no_number():
    sampler = ProgressiveSampling(24, 3, 48, point_stride=16)
    assert sampler.num_points is None and sampler.choices == ()
    with pytest.raises(ValueError, match='point_stride = 16 gives the points'):
        sampler.num_points = 7


def test_draws():
    """The same for the same seed, all choices, in training only."""
    sampler = make_backbone().sampler.train()
    drawn = []
    for seed in range(60):
        sampler.draw_points(seed)
        drawn.append(sampler.grid_size((8, 8)))
        sampler.eval()
        assert sampler.grid_size((8, 8)) == (3, 3)
        sampler.train()
    sampler.num_points = 4
    assert sampler.grid_size((8, 8)) == (4, 4)
    sampler.num_points = CHOICES
    assert set(drawn) == set(sampler.choices)
    assert min(Counter(drawn).values()) >= 10
    for seed, grid in enumerate(drawn):
        sampler.draw_points(seed)
        assert sampler.grid_size((8, 8)) == grid
    # Of one number there is nothing to draw.
    single = make_backbone(3).sampler.train()
    single.draw_points(0)
    assert single.grid_size((8, 8)) == (3, 3)


def test_hook(monkeypatch):
    """All processes of a training draw the same, and so does one that resumes."""
    runners = []
    for _ in range(2):
        model = nn.Sequential(make_backbone())
        runners.append(SimpleNamespace(model=model, seed=7, iter=0))

    def draw(runner: SimpleNamespace, start: int = 0) -> list:
        hook = ElasticPointsHook()
        hook.before_train(runner)
        drawn = []
        for runner.iter in range(start, 20):
            hook.before_train_iter(runner, 0)
            drawn.append(runner.model[0].sampler.grid_size((8, 8)))
        return drawn

    grids = draw(runners[0])
    assert len(set(grids)) == 3 and draw(runners[1]) == grids
    assert draw(runners[1], start=10) == grids[10:]
    runners[1].seed = 8
    assert draw(runners[1]) != grids

    # A process whose seed is another one takes that of the first.
    def broadcast(seeds: list) -> None:
        seeds[0] = 7

    monkeypatch.setattr(elastic_hook, 'broadcast_object_list', broadcast)
    assert draw(runners[1]) == grids


def test_hook_without_choices():
    runner = SimpleNamespace(model=nn.Sequential(make_backbone(3)), seed=0)
    with pytest.raises(ValueError, match='no sampler of Sequential has several'):
        ElasticPointsHook().before_train(runner)


@pytest.mark.parametrize('with_cp', [False, True])
def test_every_choice_trains(with_cp):
    backbone = make_backbone(with_cp=with_cp).train()
    for seed in range(6):
        backbone.sampler.draw_points(seed)
        with torch.autocast('cpu', torch.bfloat16):
            (out,) = backbone(torch.rand(2, 3, 32, 32))
        out.float().square().sum().backward()
        for name, parameter in backbone.named_parameters():
            # The points of the first iteration do not move; see the offsets' zeros.
            if 'offset' not in name:
                assert parameter.grad.abs().sum() > 0, name
        backbone.zero_grad()


@needs_new_torch
def test_one_graph_for_each_choice():
    """Drawing again compiles nothing again."""
    torch._dynamo.reset()
    graphs = []

    def backend(graph, _):
        graphs.append(graph)
        return graph

    backbone = make_backbone().train()
    backbone.compile(backend=backend, fullgraph=True)
    images = torch.rand(2, 3, 32, 32)
    for seed in range(15):
        backbone.sampler.draw_points(seed)
        backbone(images)
    assert len(graphs) == 3


def test_draws_depend_on_the_seed_alone():
    """Not on a salt of the process: ranks and resumes would diverge."""
    sampler = ProgressiveSampling(24, 3, 48, num_points=CHOICES)
    drawn = []
    for step in range(8):
        sampler.draw_points(f'7 {step}')
        drawn.append(sampler.grid_size((8, 8))[0])
    assert drawn == [3, 4, 3, 3, 3, 3, 2, 3]
