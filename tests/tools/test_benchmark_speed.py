# Copyright (c) mmpsvit contributors.
"""The benchmark of networks: what is measured, and the plain network; no speeds."""

import argparse

import mmpretrain
import pytest
import torch
from mmengine.config import Config
from scripts import error_of
from torch import nn


@pytest.fixture
def rows_of(import_tool, monkeypatch, capsys, root, tmp_path):
    """Run the benchmark in this process; return its figures."""
    module = import_tool('benchmarks/benchmark_speed.py')
    common = import_tool('benchmarks/common.py')
    monkeypatch.chdir(tmp_path)

    def run(*args) -> list[dict]:
        tables = []
        monkeypatch.setattr(common, 'report', lambda *call: tables.append(call[-1]))
        fixed = ('--device', 'cpu', '--runs', 1, '--warmup', 1, '--batch-size', 1)
        monkeypatch.setattr('sys.argv', ['benchmark_speed.py', *map(str, args + fixed)])
        module.main()
        return tables[0]

    return run


def test_scaling(rows_of):
    """Images and points grow; a plain ViT has as many tokens, in whole patches."""
    rows = rows_of('ti14', 'deit-s', '--sizes', 32, 45, '--points', 2, 4, '--parts')
    assert [(row['model'], row['pixels'], row['points']) for row in rows] == [
        ('ti14', '32', 2), ('deit-s', '32', 2), ('ti14', '45', 4), ('deit-s', '44', 4),
    ]  # fmt: skip
    for row in rows:
        assert row['images_per_second'] == pytest.approx(1e3 / row['milliseconds'])
    for ours, theirs in (rows[:2], rows[2:]):
        # The first model is the baseline where there is no DeiT-B.
        assert theirs['to ti14'] == pytest.approx(
            ours['milliseconds'] / theirs['milliseconds']
        )
        assert ours['to ti14'] == 1
        assert {'attention', 'FFN'} <= set(theirs)
        parts = [ours[p] for p in ('attention', 'FFN', 'stem', 'sampling')]
        assert min(parts) > 0 and sum(parts) < 1.05


LAZY = """
from mmpretrain.models import ImageClassifier, VisionTransformer
from mmpsvit import PSViT, PSViTClsHead

ours = dict(type=PSViT, arch='tiny', sampler=dict(num_points=7))
vit = dict(type=VisionTransformer, arch='deit-tiny')
head = dict(type=PSViTClsHead, num_classes=2, in_channels=192)
model = dict(type=ImageClassifier, backbone={}, head=head)
"""


def test_lazy_configs(import_tool, tmp_path):
    """Types may be classes: options and suffixes act all the same."""
    build = import_tool('benchmarks/benchmark_speed.py').build_candidate
    options = {'model.backbone.norm_eval': True}
    args = argparse.Namespace(shape=(60, 60), cfg_options=options)
    networks = []
    for name, suffix in (('ours', '+cp'), ('ours', '+triton'), ('vit', '')):
        config = tmp_path / f'{name}.py'
        config.write_text(LAZY.format(name))
        candidate = build(None, args, f'{config}{suffix}', points=4)
        networks.append(candidate.model.backbone)
    with_cp, triton, vit = networks
    assert with_cp.stem.with_cp and with_cp.norm_eval and not triton.stem.with_cp
    assert triton.sampler.kernel == 'triton'
    assert with_cp.sampler.num_points == triton.sampler.num_points == (4, 4)
    assert vit.patch_embed.projection.kernel_size == (15, 15)


def test_memory_of_a_detectors_backbone(rows_of):
    rows = rows_of(
        'ti14', 'ti14+cp', '--train', '--backbone', '--shape', 160, 224,
        '--cfg-options', 'model.backbone.out_type=featmap',
        'model.backbone.sampler.num_points=None',
        'model.backbone.sampler.point_stride=16',
    )  # fmt: skip
    plain, with_cp = rows
    assert plain['pixels'] == '160 x 224'
    # The gradients of 4.6 M parameters are in both.
    assert 18 < with_cp['peak_MiB'] < 0.8 * plain['peak_MiB']


def test_peak_memory(import_tool):
    """Of tensors alive at the same time; what stays from before does not count."""
    peak_bytes_of = import_tool('benchmarks/common.py').peak_bytes_of
    kept = torch.zeros(10**6)

    def step() -> None:
        for size in (10**6, 3 * 10**6, 2 * 10**6):
            one = torch.ones(size)
            two = one + 1
            del one, two

    assert peak_bytes_of(step, torch.device('cpu')) == pytest.approx(24e6, rel=0.01)
    assert kept.sum() == 0


@pytest.fixture
def networks(import_tool):
    """A small PS-ViT whose points move, and the plain network on its parameters."""
    arch = dict(
        embed_dims=48,
        num_layers=6,
        num_heads=3,
        feedforward_channels=96,
        stem_channels=(64, 48),
    )
    sampler = dict(num_iters=3, num_points=(5, 4))
    model = dict(
        type='ImageClassifier',
        backbone=dict(type='mmpsvit.PSViT', arch=arch, sampler=sampler),
        head=dict(type='mmpsvit.PSViTClsHead', num_classes=10, in_channels=48),
    )
    torch.manual_seed(0)
    ours = mmpretrain.get_model(Config(dict(model=model)))
    for parameter in ours.parameters():
        if parameter.ndim > 1:
            nn.init.trunc_normal_(parameter, std=0.1)
    for layer in ours.backbone.sampler.offset_layers:
        # Pixels: points move, and some out of the map.
        nn.init.normal_(layer.weight, std=0.5)
    return ours, import_tool('benchmarks/plain_psvit.py').PlainPSViT(ours)


def test_plain_network(networks):
    """It computes what PS-ViT computes, and its gradients."""
    ours, plain = networks
    sampled = []
    ours.backbone.sampler.register_forward_hook(lambda *args: sampled.append(args[-1]))
    images = torch.rand(2, 3, 96, 80)
    weight = torch.rand(2, 10)
    results = []
    for forward in (lambda x: ours(x, mode='tensor'), plain):
        ours.train().zero_grad()
        logits = forward(images)
        (logits * weight).sum().backward()
        results.append([logits, *(parameter.grad for parameter in ours.parameters())])
    assert results[0][0].abs().max() > 0.1
    for value, expected in zip(*results, strict=True):
        assert (value - expected).norm() < 1e-3 * expected.norm() + 1e-5
    # What makes the comparison worth something.
    (trajectory,) = {item.trajectory for item in sampled}
    assert (trajectory[:, -1] - trajectory[:, 0]).abs().mean() > 1
    assert (trajectory < 0).any()


def test_size_of_images(import_tool):
    """MMCV names the width first."""
    pipeline = [dict(type='Resize', scale=(64, 32)), dict(type='PackInputs')]
    cfg = Config(dict(test_dataloader=dict(dataset=dict(pipeline=pipeline))))
    assert import_tool('benchmarks/common.py').input_size(cfg) == (32, 64)


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['nonsense'], "argument models: 'nonsense' is no config file, no name of"),
        (['nowhere.py'], 'argument config: nowhere.py does not exist'),
        (['plain-b10_shared'], 'only the networks of the paper can be restated'),
        (
            ['plain-configs/psvit/ablations/b14_centered.py'],
            'only the networks of the paper can be restated',
        ),
        (['ti14+tritn'], "'ti14+tritn': +cp and +triton are for PS-ViTs"),
        (['resnet18+cp'], "'resnet18+cp': +cp and +triton are for PS-ViTs"),
        (['resnet18', '--runs', '0'], 'argument --runs: must be at least 1, got 0'),
        (['resnet18', '--baseline', 'x'], "--baseline: 'x' is none of resnet18"),
        (['resnet18', '--device', 'x'], "argument --device: 'x' is no device"),
        (['--train', '--fuse'], 'argument --fuse: only for inference'),
        (['--device', 'cpu', '--cuda-graphs'], '--cuda-graphs: needs a CUDA device'),
        (['--sizes', '64', '96', '--points', '4', '5', '6'], 'as many as --sizes'),
    ],
)
def test_mistakes(arguments, message, root, monkeypatch):
    monkeypatch.chdir(root)
    assert message in error_of('tools/benchmarks/benchmark_speed.py', *arguments)
