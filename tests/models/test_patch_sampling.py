# Copyright (c) mmpsvit contributors.
"""The sampler that cuts the map into patches."""

import pytest
import torch
from torch.nn import functional as F

from mmpsvit.models import PatchSampling, PSViT

ARCH = dict(
    embed_dims=24,
    num_layers=3,
    num_heads=3,
    feedforward_channels=48,
    stem_base_channels=8,
    stem_channels=(24,),
)


def build(**kwargs) -> PatchSampling:
    torch.manual_seed(0)
    sampler = PatchSampling(6, in_channels=5, num_points=(2, 3), **kwargs)
    sampler.init_weights()
    return sampler


def test_tokens_against_matrix_products():
    sampler = build()
    feat = torch.randn(2, 5, 8, 12)
    out = sampler(feat)
    weight = sampler.projection.weight
    for index, (row, column) in enumerate((i, j) for i in range(2) for j in range(3)):
        patch = feat[:, :, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4]
        expected = patch.flatten(1) @ weight.flatten(1).T + sampler.projection.bias
        expected = expected + sampler.pos_embed[0, index]
        torch.testing.assert_close(out.tokens[:, index], expected)
        centre = torch.tensor([4 * column + 1.5, 4 * row + 1.5])
        assert torch.equal(out.points[:, index], centre.expand(2, 2))
    assert out.grid_size == (2, 3)
    assert out.trajectory.shape == (2, 0, 6, 2)


def test_positions_follow_the_size_of_the_map():
    sampler = build()
    zeros = torch.zeros(1, 5, 17, 16)
    out = sampler((None, zeros))
    assert out.grid_size == (4, 4)
    grid = sampler.pos_embed.view(1, 2, 3, 6).permute(0, 3, 1, 2)
    expected = F.interpolate(grid, (4, 4), mode='bicubic').flatten(2).transpose(1, 2)
    torch.testing.assert_close(out.tokens, expected + sampler.projection.bias)


def test_as_sampler_of_the_backbone():
    sampler = dict(type='mmpsvit.PatchSampling', num_iters=0, num_points=4)
    backbone = PSViT(ARCH, sampler=sampler, out_type='raw', drop_path_rate=0.2)
    # All layers are encoder layers, and stochastic depth ramps over them.
    assert len(backbone.layers) == 3
    rates = [
        layer.attn.out_drop.__dict__.get('drop_prob', 0) for layer in backbone.layers
    ]
    assert rates == pytest.approx([0, 0.1, 0.2])
    assert backbone.eval()(torch.rand(2, 3, 64, 64))[0].shape == (2, 17, 24)
    # Padded to whole patches of 16 pixels.
    assert backbone(torch.rand(2, 3, 33, 47))[0].shape == (2, 10, 24)
    depths = [
        backbone.get_layer_depth(name)[0]
        for name in ('stem.conv1.weight', 'sampler.pos_embed', 'cls_token')
    ]
    assert depths == [0, 0, 0]
    assert backbone.get_layer_depth('layers.0.ln1.weight') == (1, 5)


@pytest.mark.parametrize(
    ('kwargs', 'message'),
    [
        (dict(num_iters=4), 'num_iters must be 0: .* got 4'),
        (dict(patch_size=0), 'patch_size must be at least 1, got 0'),
        (dict(num_points=0), 'num_points must be a positive int .* got 0'),
        (dict(num_points=(1, 2, 3)), r'num_points must be .* got \(1, 2, 3\)'),
    ],
)
def test_bad_arguments(kwargs, message):
    with pytest.raises(ValueError, match=message):
        PatchSampling(6, **kwargs)
