# Copyright (c) mmpsvit contributors.
"""What wraps, watches or replaces linear layers works on all of PS-ViT's."""

import pytest
import torch
from mmpretrain.models.peft import LoRAModel
from small import move_points, small_arch
from torch import nn

from mmpsvit import ProgressiveSampling, PSViT

SAMPLER = dict(num_points=3, num_iters=3)
# The layers that read or move points.
POINT_LAYERS = ['position_layer', 'offset_layers.0', 'offset_layers.1']


@pytest.fixture
def backbone() -> PSViT:
    torch.manual_seed(0)
    backbone = PSViT(small_arch(), sampler=SAMPLER)
    backbone.init_weights()
    move_points(backbone.sampler)
    return backbone.eval()


@pytest.fixture
def images() -> torch.Tensor:
    return torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def test_every_hook_fires(backbone, images):
    kinds = nn.Linear, nn.Conv2d
    layers = {n: m for n, m in backbone.named_modules() if isinstance(m, kinds)}
    assert {f'sampler.{name}' for name in POINT_LAYERS} < layers.keys()
    called = set()
    for name, layer in layers.items():
        layer.register_forward_hook(lambda *_, name=name: called.add(name))
    backbone(images)
    assert called == layers.keys()


@pytest.mark.parametrize('name', POINT_LAYERS)
def test_hook_moves_points(backbone, images, name):
    """What a hook returns is what the network goes on with."""
    before = backbone(images)[0]
    layer = backbone.sampler.get_submodule(name)
    layer.register_forward_hook(lambda module, args, output: output + 1)
    assert not torch.allclose(backbone(images)[0], before)


@pytest.mark.parametrize('target', ['.*qkv', *POINT_LAYERS])
def test_lora(images, target):
    cfg = dict(type='mmpsvit.PSViT', arch=small_arch(), sampler=SAMPLER)
    lora = LoRAModel(cfg, rank=2, targets=[dict(type=target)]).eval()
    # Points that have not moved lie so that moving them changes something.
    before = lora(images)[0]
    for name, parameter in lora.named_parameters():
        if 'lora_up' in name:
            nn.init.ones_(parameter)
    lora(images)[0].sum().backward()
    assert not torch.equal(lora(images)[0], before)
    trained = {n for n, p in lora.named_parameters() if p.grad is not None}
    assert trained and all('lora_' in name for name in trained)
    # The runner initialises again what was built.
    lora.init_weights()


def test_dynamic_quantisation(backbone, images):
    """Attention in int8; what reads or moves points stays as exact as it is."""
    torch.backends.quantized.engine = torch.backends.quantized.supported_engines[-1]
    small = torch.ao.quantization.quantize_dynamic(backbone, {nn.Linear})
    with torch.no_grad():
        expected, actual = backbone(images)[0], small(images)[0]
    assert type(small.layers[0].attn.qkv) is torch.ao.nn.quantized.dynamic.Linear
    assert isinstance(small.sampler.position_layer, nn.Linear)
    assert (actual - expected).norm() < 0.05 * expected.norm()


def test_dynamic_quantisation_of_a_neck():
    neck = ProgressiveSampling(24, 3, 48, in_channels=8, **SAMPLER).eval()
    small = torch.ao.quantization.quantize_dynamic(neck, {nn.Linear})
    feat = torch.rand(2, 8, 9, 9)
    with torch.no_grad():
        expected, actual = neck(feat).tokens, small(feat).tokens
    assert type(small.in_proj) is torch.ao.nn.quantized.dynamic.Linear
    assert (actual - expected).norm() < 0.05 * expected.norm()
