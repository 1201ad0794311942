# Copyright (c) mmpsvit contributors.
"""The stem as the patch embedding of a plain ViT."""

import pytest
import torch
from mmengine.registry import MODELS, init_default_scope

from mmpsvit.models import StemPatchEmbedding

SMALL = dict(base_channels=8, stem_channels=(16,))


def test_in_a_plain_vit():
    init_default_scope('mmpretrain')
    torch.manual_seed(0)
    vit = MODELS.build(
        dict(
            type='VisionTransformer',
            arch=dict(
                embed_dims=24, num_layers=2, num_heads=3, feedforward_channels=48
            ),
            img_size=64,
            patch_size=16,
            out_type='raw',
            patch_cfg=dict(conv_type='mmpsvit.StemPatchEmbedding'),
        )
    )
    (out,) = vit(torch.rand(2, 3, 64, 64))
    assert out.shape == (2, 17, 24)
    (out * torch.randn_like(out)).sum().backward()
    for name, parameter in vit.named_parameters():
        assert parameter.grad.abs().sum() > 0, name
    # Padded to whole patches.
    assert vit(torch.rand(1, 3, 33, 47))[0].shape == (1, 10, 24)


def test_patches_against_matrix_products():
    torch.manual_seed(0)
    embedding = StemPatchEmbedding(3, 6, kernel_size=(8, 16), stride=8, **SMALL).eval()
    images = torch.rand(2, 3, 32, 48)
    out = embedding(images)
    assert out.shape == (2, 6, 4, 5)
    feat = embedding.stem(images)
    weight, bias = embedding.projection.weight, embedding.projection.bias
    patch = feat[:, :, 2:4, 6:10].flatten(1)
    torch.testing.assert_close(out[:, :, 1, 3], patch @ weight.flatten(1).T + bias)
    assert StemPatchEmbedding(3, 6, 8, 8, bias=False).projection.bias is None


@pytest.mark.parametrize(
    'kwargs', [dict(kernel_size=14), dict(stride=6), dict(padding=1), dict(dilation=2)]
)
def test_bad_arguments(kwargs):
    with pytest.raises(ValueError, match='kernel_size and stride must be multiples'):
        StemPatchEmbedding(3, 6, **{**dict(kernel_size=8, stride=8), **kwargs})
