# Copyright (c) mmpsvit contributors.
"""The data preprocessor: MMPretrain's values in fewer operations."""

import numpy as np
import pytest
import torch
from dispatch import Operators
from mmpretrain.models.utils import ClsDataPreprocessor as MMPretrainDataPreprocessor
from mmpretrain.structures import DataSample, MultiTaskDataSample

from mmpsvit.engine import ClsDataPreprocessor

CLASSES = 7
MIX = dict(augments=[dict(type='Mixup', alpha=0.2)])


def batch(labels: list, scores: bool = False) -> dict:
    """Images, and samples of these labels, which may be several for an image."""
    torch.manual_seed(0)
    samples = [DataSample().set_gt_label(label) for label in labels]
    for sample in samples if scores else ():
        sample.set_gt_score(torch.rand(CLASSES))
    images = torch.randint(256, (len(labels), 3, 8, 8), dtype=torch.uint8)
    return dict(inputs=images, data_samples=samples)


def prepare(kind: type, data: dict, training: bool, **settings) -> dict:
    settings = dict(mean=[1, 2, 3], std=[4, 5, 6], to_rgb=True, **settings)
    np.random.seed(0)
    torch.manual_seed(0)
    return kind(**settings)(data, training)


@pytest.mark.parametrize('training', [False, True])
@pytest.mark.parametrize(
    'settings',
    [
        dict(num_classes=CLASSES),
        dict(num_classes=CLASSES, to_onehot=True),
        dict(num_classes=CLASSES, batch_augments=MIX),
    ],
)
@pytest.mark.parametrize(
    ('labels', 'scores'),
    [([3, 0, 6], False), ([3, 0, 6], True), ([[3], [1, 5], [0]], False)],
)
def test_values_of_mmpretrain(labels, scores, settings, training):
    theirs, ours = (
        prepare(kind, batch(labels, scores), training, **settings)
        for kind in (MMPretrainDataPreprocessor, ClsDataPreprocessor)
    )
    assert torch.equal(ours['inputs'], theirs['inputs'])
    for one, other in zip(ours['data_samples'], theirs['data_samples'], strict=True):
        assert one.all_keys() == other.all_keys()
        for key, value in other.items():
            assert one.get(key).dtype == value.dtype
            assert torch.equal(one.get(key), value)


@pytest.mark.parametrize('samples', [None, [], [DataSample()], [MultiTaskDataSample()]])
def test_samples_without_labels(samples):
    images = torch.zeros(len(samples or ()), 3, 8, 8)
    data = dict(inputs=images, data_samples=samples)
    if samples == []:
        del data['data_samples']
    prepare(ClsDataPreprocessor, data, True, num_classes=CLASSES, to_onehot=True)


def test_no_sum_for_each_image():
    with Operators() as operators:
        prepare(
            ClsDataPreprocessor, batch([*range(7)]), True, num_classes=7, to_onehot=True
        )
    assert 'sum' not in operators.names
