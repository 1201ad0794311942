# Copyright (c) mmpsvit contributors.
"""The transformer layer, and the last one that encodes the class token only."""

import subprocess
import sys

import pytest
import torch
from mmpretrain.models.backbones.vision_transformer import TransformerEncoderLayer
from small import small_arch
from stack import NEW_TORCH
from torch import Tensor

from mmpsvit import PSViT
from mmpsvit.models.encoder_layer import DropPath, EncoderLayer

ARCH = small_arch(num_layers=5, stem_channels=(16, 24))


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


@pytest.mark.parametrize('kind', ['drop_rate', 'attn_drop_rate', 'drop_path_rate'])
def test_each_kind_of_dropout(kind):
    layer = EncoderLayer(24, 3, 48, **{kind: 0.5})
    x = torch.randn(8, 7, 24)
    for count in (None, 1):
        layer.train()
        assert not torch.equal(layer(x, num_outputs=count), layer(x, num_outputs=count))
        layer.eval()
        torch.testing.assert_close(layer(x, num_outputs=count), layer(x)[:, :count])


@pytest.mark.parametrize('rate', [0.005, 0.3])
@pytest.mark.parametrize('dtype', [torch.float64, torch.bfloat16])
def test_stochastic_depth(rate, dtype):
    """At the rate that was asked for; in bfloat16, mmcv's is 0.0039 for 0.005."""
    torch.manual_seed(0)
    count = 200_000
    x = torch.ones(count, 1, 2, dtype=dtype, requires_grad=True)
    identity = torch.full((count, 1, 2), 3.0, dtype=dtype, requires_grad=True)
    out = DropPath(rate)(x, identity)
    out.sum().backward()
    left_out = (out == identity).flatten(1).all(dim=1)
    deviation = (rate * (1 - rate) / count) ** 0.5
    assert abs(left_out.double().mean() - rate) < 4 * deviation
    kept = out[~left_out].detach()
    torch.testing.assert_close(kept, torch.full_like(kept, 3 + 1 / (1 - rate)))
    gradient = torch.where(left_out, 0.0, 1 / (1 - rate)).to(dtype)
    torch.testing.assert_close(x.grad, gradient[:, None, None].expand_as(x))
    assert torch.equal(identity.grad, torch.ones_like(x))


@pytest.mark.parametrize(
    'kwargs',
    [
        {},
        dict(qkv_bias=True, num_fcs=3, layer_scale_init_value=0.1),
        dict(ffn_type='swiglu_fused', norm_cfg=dict(type='LN', eps=1e-3)),
        dict(act_cfg=dict(type='ReLU')),
        dict(norm_cfg=dict(type='LN', elementwise_affine=False)),
    ],
)
def test_against_the_layer_of_mmpretrain(kwargs):
    """The same names of weights, and the same values of them."""
    torch.manual_seed(0)
    defaults = dict(qkv_bias=False, norm_cfg=dict(type='LN', eps=1e-5))
    theirs = TransformerEncoderLayer(24, 3, 48, **{**defaults, **kwargs}).double()
    ours = EncoderLayer(24, 3, 48, **kwargs).double()
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(2, 7, 24, dtype=torch.float64)
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-12, atol=1e-12)


def test_unknown_mlp():
    with pytest.raises(ValueError, match=r"ffn_type must be .* got 'swiglu'"):
        EncoderLayer(24, 3, 48, ffn_type='swiglu')


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


@pytest.mark.skipif(NEW_TORCH, reason='only PyTorch 2.1 damages memory')
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
