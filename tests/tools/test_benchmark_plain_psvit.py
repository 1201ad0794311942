# Copyright (c) mmpsvit contributors.
"""The plain network of the benchmarks computes what PS-ViT computes."""

import mmpretrain
import pytest
import torch
from mmengine.config import Config
from torch import nn

# Of a small network, no drop rates: they draw random numbers in another order.
BACKBONE = dict(
    type='mmpsvit.PSViT',
    arch=dict(
        embed_dims=48,
        num_layers=6,
        num_heads=3,
        feedforward_channels=96,
        stem_channels=(64, 48),
    ),
    sampler=dict(type='mmpsvit.ProgressiveSampling', num_iters=3, num_points=5),
)


@pytest.fixture
def plain_psvit(import_benchmark):
    return import_benchmark('plain_psvit')


@pytest.fixture
def networks(plain_psvit):
    """Build both networks of a config with the same weights."""

    def build(model: dict) -> tuple[nn.Module, nn.Module]:
        torch.manual_seed(0)
        cfg = Config(dict(model=model))
        ours = mmpretrain.get_model(cfg)
        plain = plain_psvit.PlainPSViT.from_config(cfg.model)
        for parameter in ours.parameters():
            if parameter.ndim > 1:
                nn.init.trunc_normal_(parameter, std=0.1)
        for layer in ours.backbone.sampler.offset_layers:
            # Pixels: points move, and some out of the map.
            nn.init.normal_(layer.weight, std=0.5)
        for module in ours.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.1)
                module.running_var.uniform_(0.5, 1.5)
        plain.load_classifier(ours.state_dict())
        return ours, plain

    return build


@pytest.mark.parametrize('name', ['ti14', 'b14'])
def test_logits_of_the_papers_networks(name, networks, root):
    model = Config.fromfile(root / 'configs' / 'psvit' / f'{name}.py').model
    ours, plain = networks(model)
    sampled = []
    ours.backbone.sampler.register_forward_hook(lambda *args: sampled.append(args[-1]))
    images = torch.rand(2, 3, 96, 80)
    with torch.no_grad():
        expected = ours.eval()(images, mode='tensor')
        logits = plain.eval()(images)
    assert expected.abs().max() > 0.1
    assert (logits - expected).abs().max() < 1e-4
    # What makes the comparison worth something.
    (trajectory,) = {item.trajectory for item in sampled}
    assert (trajectory[:, -1] - trajectory[:, 0]).abs().mean() > 1
    assert (trajectory < 0).any()
    count, expected_count = (
        sum(p.numel() for p in network.parameters()) for network in (plain, ours)
    )
    assert count == expected_count
    rates = [layer.drop_prob for layer in plain.sampling_layers + plain.layers]
    steps = len(rates) - 1
    assert rates == pytest.approx([0.1 * i / steps for i in range(steps + 1)])
    dropouts = {m.p for m in ours.modules() if isinstance(m, nn.Dropout)}
    assert {m.p for m in plain.modules() if isinstance(m, nn.Dropout)} == dropouts


def test_gradients(networks):
    model = dict(
        type='ImageClassifier',
        backbone=BACKBONE,
        head=dict(type='mmpsvit.PSViTClsHead', num_classes=10, in_channels=48),
    )
    ours, plain = networks(model)
    images = torch.rand(2, 3, 64, 64)
    weight = torch.rand(2, 10)
    # In training mode the BatchNorms take the batch's statistics.
    (ours.train()(images, mode='tensor') * weight).sum().backward()
    (plain.train()(images) * weight).sum().backward()
    gradients = {name: p.grad for name, p in ours.named_parameters()}
    # Named as the weights are.
    plain.load_classifier({**ours.state_dict(), **gradients})
    for name, expected in plain.named_parameters():
        error = (expected.grad - expected).norm()
        assert error < 1e-3 * expected.norm() + 1e-5, name


def test_stochastic_depth(plain_psvit):
    """In training, a branch is left out in about as many images as the rate says."""
    layer = plain_psvit.PlainLayer(8, 2, 16, drop_rate=0.0, drop_path_rate=0.25).train()
    torch.manual_seed(0)
    ones = torch.ones(4000, 1, 1)
    dropped = layer._drop_path(ones)
    assert dropped.unique().tolist() == [0.0, pytest.approx(1 / 0.75)]
    assert dropped.mean() == pytest.approx(1, abs=0.05)
    assert torch.equal(layer.eval()._drop_path(ones), ones)


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (dict(type='ResNet'), 'only a PSViT with ProgressiveSampling'),
        (dict(out_type='raw'), 'cannot have that'),
        (dict(sampler=dict(BACKBONE['sampler'], share_weights=True)), 'cannot have'),
    ],
)
def test_what_cannot_be_restated(change, message, plain_psvit):
    model = dict(backbone={**BACKBONE, **change}, head=dict(num_classes=10))
    with pytest.raises(ValueError, match=message):
        plain_psvit.PlainPSViT.from_config(Config(dict(model=model)).model)
