# Copyright (c) mmpsvit contributors.
"""The backbone."""

import pytest
import torch
from mmengine.model import BaseModule
from small import small_arch
from small import small_backbone as small
from stack import skip_without_autocast
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from mmpsvit import PSViT, PSViTClsHead, SampledTokens
from mmpsvit.registry import MODELS

ARCH = small_arch(num_layers=6, stem_channels=(16, 24))


@pytest.mark.parametrize('arch', ['tiny', 'base'])
def test_published_architectures(arch):
    backbone = PSViT(arch)
    depth, channels, heads = {'tiny': (8, 192, 3), 'base': (10, 384, 6)}[arch]
    assert len(backbone.layers) == depth
    assert backbone.sampler.num_iters == 4
    assert backbone.embed_dims == channels
    assert backbone.layers[0].attn.num_heads == heads
    # Linear stochastic depth over iterations and encoder layers
    backbone = PSViT(arch, drop_path_rate=0.1, drop_rate=0.2)
    layers = [*backbone.sampler.layers, *backbone.layers]
    expected = torch.linspace(0, 0.1, depth + 4)[1:].tolist()
    for rates in (
        [layer.attn.out_drop.drop_prob for layer in layers[1:]],
        [layer.ffn.dropout_layer.drop_prob for layer in layers[1:]],
    ):
        assert rates == pytest.approx(expected)
    for layer in layers:
        dropouts = [m.p for m in layer.modules() if isinstance(m, torch.nn.Dropout)]
        assert dropouts == [0.2] * 3
    assert all(layer.attn.qkv.bias is None for layer in layers)
    assert all(layer.ln1.eps == layer.ln2.eps == 1e-5 for layer in layers)


def test_out_types():
    images = torch.randn(2, 3, 64, 64)

    def out(out_type: str, **kwargs) -> torch.Tensor:
        outs = small(out_type=out_type, **kwargs).eval()(images)
        assert isinstance(outs, tuple) and len(outs) == 1
        return outs[0]

    raw = out('raw')
    assert raw.shape == (2, 17, 24)
    torch.testing.assert_close(out('cls_token'), raw[:, 0])
    torch.testing.assert_close(out('avg_featmap'), raw[:, 1:].mean(1))
    points = out('raw', with_cls_token=False)
    assert points.shape == (2, 16, 24)
    mean = out('avg_featmap', with_cls_token=False)
    torch.testing.assert_close(mean, points.mean(1))


def test_out_indices():
    images = torch.randn(1, 3, 48, 48)
    backbone = small(out_type='raw', out_indices=(0, -1)).eval()
    first, last = backbone(images)
    assert torch.equal(last, small(out_type='raw').eval()(images)[0])
    # Only the last layer's output is normalised.
    assert last.mean(-1).abs().max() < 1e-5 < first.mean(-1).abs().max()


def test_point_stride_pads_right_and_bottom():
    backbone = small(sampler=dict(point_stride=16), out_type='raw').eval()
    image = torch.randn(1, 3, 40, 56)
    padded = torch.nn.functional.pad(image, (0, 8, 0, 8))
    assert torch.equal(backbone(image)[0], backbone(padded)[0])


def test_layout_of_images_and_maps():
    """Points are sampled from a channels_last map, without another copy."""
    images = torch.randn(2, 3, 64, 64)
    backbone = small().eval()
    maps = [backbone.stem(images)]
    backbone.stem.register_forward_hook(lambda *args: maps.append(args[-1]))
    (out,) = backbone(images)
    assert torch.equal(out, backbone(images.to(memory_format=torch.channels_last))[0])
    backbone.switch_to_deploy()
    backbone(images)
    for feat in maps:
        assert feat.shape == (2, 24, 16, 16)
        assert feat.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_autocast(device, dtype):
    """A training step under autocast; points in float32, gradients finite."""
    skip_without_autocast(dtype, device)
    backbone = small().to(device).train()
    sampled = []
    backbone.sampler.register_forward_hook(lambda *args: sampled.append(args[-1]))
    with torch.autocast(device, dtype):
        (out,) = backbone(torch.randn(2, 3, 64, 64, device=device))
    # The sum that runs through the layers is not rounded to half precision.
    assert sampled[0].tokens.dtype == torch.float32
    out.float().square().mean().backward()
    assert out.isfinite().all()
    assert sampled[0].points.dtype == torch.float32
    for name, parameter in backbone.named_parameters():
        assert parameter.grad.isfinite().all(), name


@pytest.mark.parametrize('share_weights', [False, True])
@pytest.mark.parametrize('out_type', ['cls_token', 'avg_featmap'])
def test_every_parameter_gets_a_gradient(share_weights, out_type):
    backbone = small(
        sampler=dict(num_points=4, share_weights=share_weights), out_type=out_type
    )
    head = PSViTClsHead(3, 24)
    head.init_weights()
    logits = head(backbone(torch.randn(4, 3, 64, 64)))
    torch.nn.functional.cross_entropy(logits, torch.tensor([0, 1, 2, 0])).backward()
    for name, parameter in [*backbone.named_parameters(), *head.named_parameters()]:
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


def test_initial_values():
    default = PSViT('tiny').state_dict()
    backbone = PSViT('tiny')
    conv = backbone.stem.conv1.weight.clone()
    backbone.init_weights()
    # Convolutions keep PyTorch's default.
    assert torch.equal(backbone.stem.conv1.weight, conv)
    checked = 0
    for name, module in backbone.named_modules():
        if isinstance(module, torch.nn.Linear):
            checked += 1
            if 'offset_layers' in name:
                assert (module.weight == 0).all()
            else:
                tolerance = 0.1 if module.weight.numel() > 1000 else 0.3
                assert module.weight.std().item() == pytest.approx(
                    0.02, rel=tolerance
                ), name
                assert module.weight.abs().max() < 0.12
            if module.bias is not None:
                assert (module.bias == 0).all()
        elif isinstance(module, (torch.nn.LayerNorm, _BatchNorm)):
            assert (module.weight == 1).all()
            assert (module.bias == 0).all()
    assert checked == 12 * 4 + 3 + 1
    assert backbone.cls_token.std().item() == pytest.approx(0.02, rel=0.3)
    assert default.keys() == backbone.state_dict().keys()

    head = PSViTClsHead(1000, 192)
    head.init_weights()
    assert head.layers.head.weight.std().item() == pytest.approx(0.02, rel=0.1)
    assert (head.layers.head.bias == 0).all()


@pytest.mark.parametrize('frozen_stages', [-1, 0, 1, 2, 3])
def test_frozen_stages(frozen_stages):
    backbone = small(frozen_stages=frozen_stages, drop_rate=0.1)
    assert backbone.train() is backbone
    expected = {
        'stem': 0,
        'sampler': 1,
        'cls_token': 2,
        'layers.0': 2,
        'layers.1': 3,
        'norm': 3,
    }
    for name, parameter in backbone.named_parameters():
        room = name.split('.')[0]
        key = '.'.join(name.split('.')[:2]) if room == 'layers' else room
        assert parameter.requires_grad == (frozen_stages < expected[key]), name
    # Frozen modules stay in eval mode: no dropout, no new statistics.
    assert backbone.stem.training == (frozen_stages < 0)
    assert backbone.sampler.training == (frozen_stages < 1)
    assert [layer.training for layer in backbone.layers] == [
        frozen_stages < 2,
        frozen_stages < 3,
    ]
    before = backbone.stem.bn1.running_mean.clone()
    backbone(torch.randn(2, 3, 32, 32))
    assert torch.equal(before, backbone.stem.bn1.running_mean) == (frozen_stages >= 0)


def test_norm_eval_and_mode_switches():
    backbone = small(norm_eval=True)
    assert backbone.train() is backbone
    norms = [m for m in backbone.modules() if isinstance(m, _BatchNorm)]
    assert norms
    assert not any(norm.training for norm in norms)
    assert backbone.layers[0].training
    assert backbone.eval() is backbone
    assert not any(module.training for module in backbone.modules())
    assert all(m.training for m in small().train().modules())


@pytest.mark.parametrize('norm_eval', [False, True])
def test_checkpointing_changes_nothing(norm_eval):
    """The same gradients and the same BatchNorm statistics, dropout included."""
    images = torch.randn(2, 3, 64, 64)
    options = dict(norm_eval=norm_eval, drop_rate=0.1, drop_path_rate=0.1)
    results = []
    for with_cp in (False, True):
        backbone = small(with_cp=with_cp, **options).train()
        torch.manual_seed(3)
        backbone(images)[0].square().sum().backward()
        gradients = {name: p.grad for name, p in backbone.named_parameters()}
        results.append({**gradients, **dict(backbone.named_buffers())})
    for name, plain in results[0].items():
        torch.testing.assert_close(results[1][name], plain, msg=name)


def test_checkpointing_saves_memory():
    """By stem, sampler and encoder, of which each keeps a fifth at least."""

    def kept_bytes(with_cp: bool) -> int:
        torch.manual_seed(0)
        backbone = PSViT('tiny', sampler=dict(point_stride=16), with_cp=with_cp)
        weights = {p.untyped_storage().data_ptr() for p in backbone.parameters()}
        kept = {}

        def note(tensor: torch.Tensor) -> torch.Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in weights:
                kept[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            outs = backbone(torch.rand(1, 3, 160, 224))
        assert outs[0].requires_grad
        return sum(kept.values())

    assert kept_bytes(with_cp=True) <= kept_bytes(with_cp=False) / 6


@pytest.mark.parametrize('stem_channels', [(16, 24), (24, 24)])
def test_switch_to_deploy(stem_channels):
    """With BatchNorms that do something; the second bottleneck may not project."""
    torch.manual_seed(0)
    arch = dict(ARCH, stem_channels=stem_channels)
    backbone = PSViT(arch, sampler=dict(num_points=4)).double().eval()
    backbone.init_weights()
    for norm in backbone.modules():
        if isinstance(norm, _BatchNorm):
            torch.nn.init.normal_(norm.running_mean)
            torch.nn.init.uniform_(norm.running_var, 0.5, 2)
            torch.nn.init.normal_(norm.weight)
            torch.nn.init.normal_(norm.bias)
    images = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    with torch.no_grad():
        expected = backbone(images)[0]
        backbone.switch_to_deploy()
        assert not any(isinstance(m, _BatchNorm) for m in backbone.modules())
        torch.testing.assert_close(backbone(images)[0], expected, atol=1e-10, rtol=0)
        backbone.switch_to_deploy()  # a second time does nothing


def test_layer_depth():
    backbone = PSViT('tiny', sampler=dict(num_points=4))
    depth = {
        name: backbone.get_layer_depth(f'backbone.{name}', 'backbone.')
        for name, _ in backbone.named_parameters()
    }
    assert {total for _, total in depth.values()} == {14}
    assert depth['stem.conv1.weight'][0] == 0
    assert depth['sampler.position_layer.weight'][0] == 1
    assert depth['sampler.layers.0.ln1.weight'][0] == 1
    assert depth['sampler.offset_layers.2.bias'][0] == 3
    assert depth['sampler.layers.3.ln1.weight'][0] == 4
    assert depth['cls_token'][0] == 4
    assert depth['layers.0.ln1.weight'][0] == 5
    assert depth['layers.7.ln1.weight'][0] == 12
    assert depth['norm.weight'][0] == 13
    assert backbone.get_layer_depth('head.layers.head.weight', 'backbone.') == (13, 14)
    shared = PSViT('tiny', sampler=dict(share_weights=True))
    assert shared.get_layer_depth('sampler.layers.0.ln1.weight')[0] == 1
    assert shared.get_layer_depth('layers.0.ln1.weight')[0] == 5


@pytest.mark.parametrize(
    ('kwargs', 'message'),
    [
        (dict(arch='small'), r"arch must be one of \['tiny', 'base'\].* got 'small'"),
        (dict(arch={**ARCH, 'depth': 3}), r"unknown keys \['depth'\].*embed_dims"),
        (dict(arch=dict(embed_dims=24)), r"lacks the keys \['num_layers', 'num_heads'"),
        (dict(arch={**ARCH, 'stem_channels': (24, 16)}), 'that ends with .* = 24'),
        (dict(arch={**ARCH, 'stem_channels': 24}), 'must be a list .*, got 24'),
        (dict(arch={**ARCH, 'stem_channels': ()}), r'that ends with .*, got \(\)'),
        (dict(arch={**ARCH, 'num_heads': 5}), 'multiple of arch.num_heads, got 24'),
        (dict(out_type='tokens'), "out_type must be one of .* got 'tokens'"),
        (dict(with_cls_token=False), 'needs with_cls_token = True'),
        (dict(out_indices=2), r'the 2 encoder layers \(in \[-2, 1\]\), got 2'),
        (dict(out_indices=-3), r'in \[-2, 1\]\), got -3'),
        (dict(out_indices=()), 'out_indices must be'),
        (dict(out_indices=(1, 0)), 'out_indices must be increasing'),
        (dict(out_indices=(1, 1)), 'out_indices must be increasing'),
        (dict(frozen_stages=4), r'frozen_stages must be in \[-1, 3\], got 4'),
        (dict(frozen_stages=-2), 'frozen_stages must be .* got -2'),
        (dict(arch={**ARCH, 'num_layers': 1}), r'sampler.num_iters must be .*\[1, 0\]'),
        (
            dict(sampler=dict(num_iters=6)),
            r'sampler.num_iters must be .*\[1, 5\], got 6',
        ),
        (dict(sampler=dict(num_iters=0)), 'sampler.num_iters must be .* got 0'),
        (dict(sampler=dict(embed_dims=12)), 'sampler.embed_dims must be .* got 12'),
    ],
)
def test_bad_arguments(kwargs, message):
    with pytest.raises(ValueError, match=message):
        PSViT(**{'arch': ARCH, **kwargs})


def test_configs_of_the_caller_are_not_changed():
    arch, sampler = dict(ARCH), dict(num_points=4)
    PSViT(arch, sampler=sampler)
    assert (arch, sampler) == (ARCH, dict(num_points=4))


@MODELS.register_module()
class OneLook(BaseModule):
    """Somebody else's sampler: the mean of each quarter of the map."""

    def __init__(self, embed_dims: int, num_iters: int, feat_stride: int, **_) -> None:
        super().__init__()
        self.embed_dims, self.num_iters = embed_dims, num_iters
        self.feat_stride = feat_stride

    def forward(self, feat: torch.Tensor) -> SampledTokens:
        tokens = F.adaptive_avg_pool2d(feat, 2).flatten(2).mT
        points = tokens.new_zeros(len(tokens), 4, 2)
        return SampledTokens(tokens, points, points[:, None], (2, 2))


@pytest.mark.parametrize('out_type', PSViT.OUT_TYPES)
def test_sampler_of_others(out_type):
    sampler = dict(type='mmpsvit.OneLook', num_iters=1)
    backbone = PSViT(ARCH, sampler=sampler, out_type=out_type)
    assert len(backbone.layers) == 5
    assert all(out.isfinite().all() for out in backbone(torch.randn(2, 3, 40, 56)))
    assert backbone.get_layer_depth('layers.0.ln1.weight') == (2, 8)
    # Whatever is numbered in it, it has as many depths as iterations.
    assert backbone.get_layer_depth('sampler.parts.3.weight') == (1, 8)
