# Copyright (c) mmpsvit contributors.
"""The transformer layer, and the last one that encodes the class token only."""

import subprocess
import sys

import pytest
import torch
from mmpretrain.models.peft import LoRAModel
from torch import Tensor

from mmpsvit import PSViT
from mmpsvit.models.encoder_layer import EncoderLayer

ARCH = dict(
    embed_dims=24,
    num_layers=5,
    num_heads=3,
    feedforward_channels=48,
    stem_base_channels=8,
    stem_channels=(16, 24),
)


def gradients(module: torch.nn.Module, out: Tensor) -> dict[str, Tensor]:
    """The gradients of all parameters for a fixed random gradient of ``out``."""
    torch.manual_seed(1)
    module.zero_grad()
    out.backward(torch.randn_like(out))
    return {name: parameter.grad for name, parameter in module.named_parameters()}


@pytest.mark.parametrize('with_cp', [False, True])
@pytest.mark.parametrize(
    'kwargs', [{}, dict(qkv_bias=True, layer_scale_init_value=0.5)]
)
def test_first_tokens_only(kwargs, with_cp):
    torch.manual_seed(0)
    layer = EncoderLayer(24, 3, 48, with_cp=with_cp, **kwargs).double()
    layer.init_weights()
    x = torch.randn(2, 7, 24, dtype=torch.float64, requires_grad=True)
    whole, first = layer(x), layer(x, num_outputs=2)
    assert first.shape == (2, 2, 24)
    torch.testing.assert_close(first, whole[:, :2], rtol=1e-12, atol=1e-12)
    expected, x.grad = gradients(layer, whole[:, :2]) | {'x': x.grad}, None
    actual = gradients(layer, first) | {'x': x.grad}
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10)


def test_dropout_of_the_first_tokens():
    layer = EncoderLayer(24, 3, 48, attn_drop_rate=0.5, drop_rate=0.5)
    x = torch.randn(2, 7, 24)
    layer.train()
    assert not torch.equal(layer(x, num_outputs=1), layer(x, num_outputs=1))
    layer.eval()
    torch.testing.assert_close(layer(x, num_outputs=1), layer(x)[:, :1])


@pytest.mark.parametrize('out_indices', [-1, (0, 2)])
def test_class_token_only_changes_nothing(out_indices):
    torch.manual_seed(0)
    backbone = PSViT(ARCH, sampler=dict(num_iters=2), out_indices=out_indices).double()
    backbone.init_weights()
    images = torch.randn(2, 3, 32, 48, dtype=torch.float64)
    assert backbone.cls_token_only
    few = torch.stack(backbone(images))
    few_gradients = gradients(backbone, few)
    backbone.cls_token_only = False
    # Statistics of the BatchNorms are of the batch, so that both passes see the same.
    every = torch.stack(backbone(images))
    torch.testing.assert_close(few, every, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(
        few_gradients, gradients(backbone, every), rtol=1e-8, atol=1e-10
    )


@pytest.mark.parametrize('out_type', ['avg_featmap', 'raw', 'featmap'])
def test_other_outputs_need_every_token(out_type):
    assert not PSViT(ARCH, out_type=out_type).cls_token_only


def test_wrapped_projections_are_called():
    # As LoRA wraps them: a wrapper has no weight of its own.
    lora = LoRAModel(
        dict(type='mmpsvit.PSViT', arch=ARCH), rank=2, targets=[dict(type='.*qkv')]
    ).eval()
    images = torch.randn(1, 3, 32, 32)
    before = lora(images)[0]
    layer = lora.module.layers[-1]
    torch.nn.init.ones_(layer.attn.qkv.lora_up.weight)
    assert not torch.allclose(lora(images)[0], before)


def test_bfloat16_damages_no_memory():
    """In a process of its own: PyTorch 2.1's fused attention ended it."""
    code = """
import torch
from mmpsvit.models.encoder_layer import EncoderLayer
layer = EncoderLayer(96, 3, 96)
for _ in range(20):
    with torch.autocast('cpu', torch.bfloat16):
        out = layer(torch.randn(2, 37, 96))
    out.float().square().mean().backward()
"""
    done = subprocess.run(
        [sys.executable, '-W', 'ignore', '-c', code],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
