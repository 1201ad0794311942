# Copyright (c) mmpsvit contributors.
"""MMPretrain's data preprocessor in fewer launches."""

import torch
import torch.nn.functional as F
from mmpretrain.models.utils import ClsDataPreprocessor as MMPretrainDataPreprocessor
from mmpretrain.structures import DataSample

from mmpsvit.registry import MODELS


@MODELS.register_module()
class ClsDataPreprocessor(MMPretrainDataPreprocessor):
    """MMPretrain's, which sums up the one-hot labels of a batch image by image.

    Where each image has one label, as in all our configs, they are made at once: 128
    launches less for 128 images. The values are the same.

    Args:
        *args: As for ``mmpretrain.models.ClsDataPreprocessor``.
        **kwargs: Likewise.
    """

    def forward(self, data: dict, training: bool = False) -> dict:
        """Prepare a batch.

        Args:
            data (dict): As the data loader gives it, with ``inputs`` and, if there are
                labels, ``data_samples``.
            training (bool): Whether to mix images. Defaults to False.

        Returns:
            dict: The same on the device: ``inputs``, (B, C, H, W), and the samples.
        """
        samples, count = data.get('data_samples'), self.num_classes
        if samples and self.to_onehot and count and all(map(_has_one_label, samples)):
            labels = torch.cat([sample.gt_label for sample in samples]).to(self.device)
            for sample, row in zip(samples, F.one_hot(labels, count), strict=True):
                sample.set_gt_score(row)
        return super().forward(data, training)


def _has_one_label(sample: object) -> bool:
    """Whether a sample has one label, and no score that would count instead."""
    return (
        isinstance(sample, DataSample)
        and 'gt_score' not in sample
        and len(sample.get('gt_label', ())) == 1
    )
