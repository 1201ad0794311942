# Copyright (c) mmpsvit contributors.
"""PS-ViT as plainly as PyTorch allows: the baseline of the benchmarks.

The paper's equations one by one on the parameters of a :class:`mmpsvit.PSViT`: the map
in NCHW, ``F.grid_sample`` at the points, attention as two matrix products and a
softmax, every operation on its own.
"""

import torch
from mmpretrain.models import ImageClassifier
from torch import Tensor, nn
from torch.nn import functional as F

from mmpsvit import ProgressiveSampling, PSViT


class PlainPSViT(nn.Module):
    """Images (B, 3, H, W) to logits (B, num_classes).

    Args:
        model (ImageClassifier): A classifier with a PSViT that has unshared layers,
            ``num_points`` and no settings beyond those of the paper. Its modules are
            taken over.

    Raises:
        ValueError: If it is something else.
    """

    def __init__(self, model: ImageClassifier) -> None:
        super().__init__()
        backbone = getattr(model, 'backbone', None)
        sampler = getattr(backbone, 'sampler', None)
        if not (
            isinstance(backbone, PSViT)
            and isinstance(sampler, ProgressiveSampling)
            and backbone.out_type == 'cls_token'
            and sampler.num_points is not None
            and not sampler.share_weights
            and sampler.offset_scale == 1
            and not sampler.center_offsets
        ):
            raise ValueError('only the networks of the paper can be restated')
        self.backbone, self.head = backbone, model.head

    def forward(self, x: Tensor) -> Tensor:
        stem = self.backbone.stem
        x = F.max_pool2d(F.relu(stem.bn1(stem.conv1(x))), 3, 2, 1)
        for block in stem.blocks:  # stock bottlenecks of a ResNet
            x = block(x)
        x = self.sample(x)
        x = torch.cat((self.backbone.cls_token.expand(len(x), -1, -1), x), dim=1)
        for layer in self.backbone.layers:
            x = encode(layer, x)
        return self.head((self.backbone.norm(x)[:, 0],))

    def sample(self, feat: Tensor) -> Tensor:
        """A map (B, C, H, W) to tokens (B, N, C)."""
        sampler = self.backbone.sampler
        size = torch.tensor(feat.shape[:1:-1], device=feat.device)  # (W, H)
        y, x = (
            (torch.arange(count, device=feat.device) + 0.5) / count
            for count in sampler.num_points
        )
        y, x = torch.meshgrid(y, x, indexing='ij')
        points = torch.stack((x, y), dim=-1).view(1, -1, 2) * size
        points = points.expand(len(feat), -1, -1)
        tokens, dtype = 0, self.backbone.cls_token.dtype
        for index, layer in enumerate(sampler.layers):
            # grid_sample wants the outer edges of the map at -1 and 1.
            grid = (2 * points + 1) / size - 1
            samples = F.grid_sample(feat.float(), grid[:, None], align_corners=False)
            position = sampler.position_layer((points.detach() / size).to(dtype))
            # (B, C, 1, N) -> (B, N, C)
            samples = samples[:, :, 0].transpose(1, 2).to(dtype)
            tokens = encode(layer, samples + position + tokens)
            if index < len(sampler.offset_layers):
                offsets = sampler.offset_layers[index](tokens)
                points = points.detach() + offsets.float()
        return tokens


def encode(layer: nn.Module, x: Tensor) -> Tensor:
    """A pre-LN transformer layer on tokens (B, L, C)."""
    attn = layer.attn
    batch, length, channels = x.shape
    qkv = attn.qkv(layer.ln1(x)).view(batch, length, 3, attn.num_heads, -1)
    q, k, v = qkv.permute(2, 0, 3, 1, 4)  # each (B, heads, L, d)
    weights = torch.matmul(q, k.transpose(-2, -1)) * q.shape[-1] ** -0.5
    out = torch.matmul(weights.softmax(dim=-1), v)
    out = attn.proj(out.transpose(1, 2).reshape(batch, length, channels))
    x = attn.out_drop(attn.proj_drop(out), identity=x)
    return layer.ffn(layer.ln2(x), identity=x)
