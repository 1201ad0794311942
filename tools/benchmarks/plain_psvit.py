# Copyright (c) mmpsvit contributors.
"""PS-ViT restated as plainly as PyTorch allows: the baseline of the benchmarks.

The paper's equations one by one: attention as two matrix products and a softmax, the
map in NCHW, ``F.grid_sample`` at the points, every operation on its own. The same
parameters and, to rounding, the same logits as :class:`mmpsvit.PSViT` with its head.
"""

import torch
from mmengine.config import ConfigDict
from torch import Tensor, nn
from torch.nn import functional as F

from mmpsvit import PSViT
from mmpsvit.models.backbones.arch import resolve_arch

# What the state dict of an ImageClassifier calls it, and what it is called here.
RENAMES = (
    ('backbone.', ''),
    ('stem.', ''),
    ('sampler.layers.', 'sampling_layers.'),
    ('sampler.', ''),
    ('ffn.layers.0.0.', 'fc1.'),
    ('ffn.layers.1.', 'fc2.'),
    ('head.layers.head.', 'head.'),
)


class PlainBottleneck(nn.Module):
    """A bottleneck of the stem."""

    def __init__(self, in_channels: int, channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv3 = nn.Conv2d(channels, out_channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out_channels)
        self.downsample = nn.Sequential()
        if in_channels != out_channels:
            projection = nn.Conv2d(in_channels, out_channels, 1, bias=False)
            self.downsample.extend((projection, nn.BatchNorm2d(out_channels)))

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = F.relu(self.bn2(self.conv2(out)))
        return F.relu(self.bn3(self.conv3(out)) + self.downsample(x))


class PlainAttention(nn.Module):
    """Multi-head attention: softmax(q k^T / sqrt(d)) v."""

    def __init__(self, channels: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(channels, 3 * channels, bias=False)
        self.proj = nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, channels = x.shape
        qkv = self.qkv(x).view(batch, length, 3, self.num_heads, -1)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # each (B, heads, L, d)
        weights = torch.matmul(q, k.transpose(-2, -1)) * q.shape[-1] ** -0.5
        x = torch.matmul(weights.softmax(dim=-1), v)
        return self.proj(x.transpose(1, 2).reshape(batch, length, channels))


class PlainLayer(nn.Module):
    """A pre-LN transformer layer with dropout and stochastic depth."""

    def __init__(
        self,
        channels: int,
        num_heads: int,
        hidden_channels: int,
        drop_rate: float,
        drop_path_rate: float,
    ) -> None:
        super().__init__()
        self.ln1 = nn.LayerNorm(channels, eps=1e-5)
        self.attn = PlainAttention(channels, num_heads)
        self.ln2 = nn.LayerNorm(channels, eps=1e-5)
        self.fc1 = nn.Linear(channels, hidden_channels)
        self.fc2 = nn.Linear(hidden_channels, channels)
        self.dropout = nn.Dropout(drop_rate)
        self.drop_prob = drop_path_rate

    def forward(self, x: Tensor) -> Tensor:
        x = x + self._drop_path(self.dropout(self.attn(self.ln1(x))))
        hidden = self.dropout(F.gelu(self.fc1(self.ln2(x))))
        return x + self._drop_path(self.dropout(self.fc2(hidden)))

    def _drop_path(self, x: Tensor) -> Tensor:
        """Leave the branch out in some images, and scale it up in the others."""
        if not self.training or self.drop_prob == 0:
            return x
        kept = torch.rand(len(x), 1, 1, device=x.device) >= self.drop_prob
        return x * kept / (1 - self.drop_prob)


class PlainPSViT(nn.Module):
    """Images (B, 3, H, W) to logits (B, num_classes).

    Args:
        arch (str | dict): As of :class:`mmpsvit.PSViT`. Defaults to 'base'.
        num_points (int): Points per side. Defaults to 14.
        num_iters (int): Sampling iterations. Defaults to 4.
        num_classes (int): Number of classes. Defaults to 1000.
        drop_rate (float): Dropout after attention and in the MLPs. Defaults to 0.
        drop_path_rate (float): Stochastic depth of the last layer. Defaults to 0.
    """

    def __init__(
        self,
        arch: str | dict = 'base',
        num_points: int = 14,
        num_iters: int = 4,
        num_classes: int = 1000,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
    ) -> None:
        super().__init__()
        arch = resolve_arch(arch, PSViT.arch_zoo)
        self.num_points = num_points
        base = width = arch['stem_base_channels']
        channels, depth = arch['embed_dims'], arch['num_layers']
        self.conv1 = nn.Conv2d(3, base, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(base)
        self.blocks = nn.Sequential()
        for out in arch['stem_channels']:
            self.blocks.append(PlainBottleneck(width, base, out))
            width = out
        sizes = channels, arch['num_heads'], arch['feedforward_channels']
        layers = [
            PlainLayer(*sizes, drop_rate, drop_path_rate * i / max(1, depth - 1))
            for i in range(depth)
        ]
        self.position_layer = nn.Linear(2, channels)
        self.sampling_layers = nn.ModuleList(layers[:num_iters])
        offset_layers = (nn.Linear(channels, 2) for _ in range(num_iters - 1))
        self.offset_layers = nn.ModuleList(offset_layers)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, channels))
        self.layers = nn.ModuleList(layers[num_iters:])
        self.norm = nn.LayerNorm(channels, eps=1e-5)
        self.head = nn.Linear(channels, num_classes)

    @classmethod
    def from_config(cls, model: ConfigDict) -> 'PlainPSViT':
        """Build the plain network of a config's ``model``.

        Raises:
            ValueError: If it has settings that are not restated here.
        """
        backbone = dict(model.get('backbone', {}))
        sampler = dict(backbone.pop('sampler', {}))
        types = backbone.pop('type', None), sampler.pop('type', None)
        if types != ('mmpsvit.PSViT', 'mmpsvit.ProgressiveSampling'):
            raise ValueError('only a PSViT with ProgressiveSampling can be restated')
        try:
            return cls(**backbone, **sampler, num_classes=model.head.num_classes)
        except TypeError as error:  # a setting that __init__ does not have
            raise ValueError(f'the plain network cannot have that ({error})') from None

    def load_classifier(self, state: dict[str, Tensor]) -> None:
        """Take the weights over from the state dict of a PSViT classifier."""
        renamed = {}
        for key, value in state.items():
            for theirs, ours in RENAMES:
                key = key.replace(theirs, ours)
            renamed[key] = value
        self.load_state_dict(renamed)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(x))), 3, 2, 1)
        tokens = self.sample(self.blocks(x))
        x = torch.cat((self.cls_token.expand(len(x), -1, -1), tokens), dim=1)
        for layer in self.layers:
            x = layer(x)
        return self.head(self.norm(x)[:, 0])

    def sample(self, feat: Tensor) -> Tensor:
        """A map (B, C, H, W) to tokens (B, N, C)."""
        size = torch.tensor(feat.shape[:1:-1], device=feat.device)  # (W, H)
        steps = torch.arange(self.num_points, device=feat.device) + 0.5
        y, x = torch.meshgrid(steps, steps, indexing='ij')
        points = torch.stack((x, y), dim=-1).view(1, -1, 2) * size / self.num_points
        points = points.expand(len(feat), -1, -1)
        tokens = 0
        for index, layer in enumerate(self.sampling_layers):
            # grid_sample wants the outer edges of the map at -1 and 1.
            grid = (2 * points + 1) / size - 1
            samples = F.grid_sample(feat.float(), grid[:, None], align_corners=False)
            position = self.position_layer(points.detach() / size)
            # (B, C, 1, N) -> (B, N, C)
            tokens = layer(samples[:, :, 0].transpose(1, 2) + position + tokens)
            if index < len(self.offset_layers):
                points = points.detach() + self.offset_layers[index](tokens).float()
        return tokens
