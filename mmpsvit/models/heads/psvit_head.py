# Copyright (c) mmpsvit contributors.
"""Classification head of PS-ViT."""

from collections.abc import Sequence

from mmpretrain.models.heads import VisionTransformerClsHead
from torch import Tensor

from mmpsvit.models.encoder_layer import LINEAR_INIT
from mmpsvit.models.necks import SampledTokens
from mmpsvit.registry import MODELS


@MODELS.register_module()
class PSViTClsHead(VisionTransformerClsHead):
    """Linear classifier over the class token or the mean of the tokens.

    It takes what the backbone's ``out_type`` gives: (B, C) features are classified
    as they are, (B, L, C) tokens (``out_type='raw'``, or a sampling neck) are pooled
    first. Label smoothing and soft labels are those of MMPretrain's losses.

    Args:
        num_classes (int): Number of classes.
        in_channels (int): Number of channels C of the features.
        pool (str): How (B, L, C) tokens are pooled: 'cls_token' takes the first
            one, 'mean' averages all. Defaults to 'cls_token'.
        init_cfg (dict): Initialisation config. Defaults to truncated normal weights
            of std 0.02: MMPretrain's zeros would make every gradient of the backbone
            zero in the first step.
        **kwargs: Other arguments of MMPretrain's ``VisionTransformerClsHead``:
            hidden_dim, act_cfg, loss, topk, cal_acc.

    Raises:
        ValueError: If ``pool`` is unknown, or asks for the class token of a sampling
            neck, which has none.
    """

    POOLS = ('cls_token', 'mean')

    def __init__(
        self,
        num_classes: int,
        in_channels: int,
        pool: str = 'cls_token',
        init_cfg: dict | None = None,
        **kwargs,
    ) -> None:
        if pool not in self.POOLS:
            raise ValueError(f'pool must be one of {self.POOLS}, got {pool!r}')
        if init_cfg is None:
            init_cfg = LINEAR_INIT
        super().__init__(num_classes, in_channels, init_cfg=init_cfg, **kwargs)
        self.pool = pool

    def pre_logits(self, feats: Sequence[Tensor] | SampledTokens) -> Tensor:
        """Pool the tokens to (B, C) and apply the hidden layer, if there is one."""
        if isinstance(feats, SampledTokens):
            if self.pool == 'cls_token':
                raise ValueError(
                    "sampled tokens have no class token: PSViTClsHead needs pool='mean'"
                )
            x = feats.tokens
        else:
            x = feats[-1]
        if x.ndim == 3:
            x = x[:, 0] if self.pool == 'cls_token' else x.mean(dim=1)
        return super().pre_logits((x,))
