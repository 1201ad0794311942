# Copyright (c) mmpsvit contributors.
"""The head: pooling and losses."""

import pytest
import torch
from mmengine.registry import init_default_scope
from mmpretrain.registry import MODELS
from mmpretrain.structures import DataSample

from mmpsvit import ProgressiveSampling, PSViTClsHead


def test_pooling():
    tokens = torch.randn(2, 5, 8)
    for pool, expected in [('cls_token', tokens[:, 0]), ('mean', tokens.mean(1))]:
        head = PSViTClsHead(3, 8, pool=pool)
        assert torch.equal(head.pre_logits((tokens,)), expected)
        assert torch.equal(head.pre_logits((expected,)), expected)
        assert head((tokens,)).shape == (2, 3)


def test_last_of_several_outputs():
    first, last = torch.randn(2, 2, 8)
    assert torch.equal(PSViTClsHead(3, 8).pre_logits((first, last)), last)


def test_hidden_layer():
    head = PSViTClsHead(3, 8, pool='mean', hidden_dim=5, act_cfg=dict(type='ReLU'))
    tokens = torch.randn(2, 5, 8)
    hidden = head.layers.pre_logits(tokens.mean(1)).relu()
    assert hidden.shape == (2, 5)
    assert torch.equal(head((tokens,)), head.layers.head(hidden))


def test_bad_arguments():
    with pytest.raises(ValueError, match=r"pool must be one of .* got 'max'"):
        PSViTClsHead(3, 8, pool='max')
    sampled = ProgressiveSampling(24, 3, 48)(torch.randn(1, 24, 8, 8))
    with pytest.raises(ValueError, match='no class token'):
        PSViTClsHead(3, 24).pre_logits(sampled)


@pytest.mark.parametrize('soft', [False, True])
def test_label_smoothing_and_soft_labels(soft):
    """Against the smoothed cross entropy, written out."""
    init_default_scope('mmpretrain')
    head = MODELS.build(
        dict(
            type='mmpsvit.PSViTClsHead',
            num_classes=4,
            in_channels=8,
            loss=dict(type='LabelSmoothLoss', label_smooth_val=0.1, mode='original'),
        )
    )
    head.init_weights()
    feats = torch.randn(2, 8)
    target = torch.eye(4)[[1, 3]]
    samples = [DataSample().set_gt_label(1), DataSample().set_gt_label(3)]
    if soft:
        target = torch.tensor([[0.3, 0.7, 0, 0], [0, 0, 0.5, 0.5]])
        for sample, score in zip(samples, target, strict=True):
            sample.set_gt_score(score)
    loss = head.loss((feats,), samples)['loss']
    smooth = 0.9 * target + 0.1 / 4
    expected = -(smooth * head((feats,)).log_softmax(-1)).sum(-1).mean()
    torch.testing.assert_close(loss, expected)
