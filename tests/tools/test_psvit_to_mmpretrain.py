# Copyright (c) mmpsvit contributors.
"""Converting the authors' checkpoints."""

import argparse

import pytest
import torch
from mmengine.config import Config
from mmpretrain.apis import get_model
from scripts import load_script

from mmpsvit import PSViT
from mmpsvit.guard import load_checkpoint

TOOL = 'tools/model_converters/psvit_to_mmpretrain.py'


@pytest.fixture(scope='module')
def state(figures):
    prefix = 'state/'
    return {k.removeprefix(prefix): v for k, v in figures.items() if prefix in k}


def logits_of(checkpoint, images) -> torch.Tensor:
    """Logits of a classifier that MMPretrain builds and loads."""
    cfg = Config(
        dict(
            model=dict(
                type='ImageClassifier',
                backbone=dict(
                    type='mmpsvit.PSViT',
                    arch=dict(
                        embed_dims=48,
                        num_layers=6,
                        num_heads=3,
                        feedforward_channels=144,
                        stem_channels=(64, 48),
                    ),
                    sampler=dict(type='mmpsvit.ProgressiveSampling', num_points=7),
                ),
                head=dict(type='mmpsvit.PSViTClsHead', num_classes=10, in_channels=48),
            ),
            data_preprocessor=dict(mean=[0, 0, 0], std=[1, 1, 1]),
        )
    )
    # Built in float64: loading would otherwise round the weights.
    torch.set_default_dtype(torch.float64)
    try:
        model = get_model(cfg, pretrained=str(checkpoint)).eval()
        with torch.no_grad():
            return model.head(model.backbone(images))
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize(
    'form', ['plain', 'wrapped', 'model', 'trainer', 'ema', 'both']
)
def test_logits_of_the_reference(form, figures, state, run_tool, run_here, tmp_path):
    other = {key: torch.zeros_like(value) for key, value in state.items()}
    wrapped = {f'module.{key}': value for key, value in state.items()}
    namespace = argparse.Namespace(lr=5e-4, model='vit')
    content, options, found = {
        'plain': (state, [], ''),
        'wrapped': (wrapped, [], ''),
        'model': (dict(model=wrapped), [], 'model of '),
        'trainer': (
            dict(state_dict=wrapped, state_dict_ema=other, args=namespace, epoch=3),
            [],
            'state_dict of ',
        ),
        'ema': (dict(state_dict_ema=state), [], 'state_dict_ema of '),
        'both': (
            dict(state_dict=other, state_dict_ema=wrapped, epoch=3),
            ['--ema'],
            'state_dict_ema of ',
        ),
    }[form]
    torch.save(content, tmp_path / 'theirs.pth')
    # One of them as users run it.
    run = run_tool if form == 'trainer' else run_here
    output = run(TOOL, 'theirs.pth', 'out/ours.pth', *options)
    said = f'10 classes; {len(state) - 9} weights from {found}theirs.pth, 9 left out'
    assert said in output
    assert ('also holds averaged weights' in output) == (form == 'trainer')

    logits = logits_of(tmp_path / 'out' / 'ours.pth', figures['in/images'])
    assert (logits - figures['out/logits']).abs().max() < 1e-9
    meta = load_checkpoint(tmp_path / 'out' / 'ours.pth')['meta']
    assert meta['source'] == 'theirs.pth'
    assert meta['averaged'] == (form in ('ema', 'both'))
    assert len(meta['source_sha256']) == 64
    assert [path.name for path in (tmp_path / 'out').iterdir()] == ['ours.pth']


def test_refusals(state, run_here, tmp_path):
    def refused(content, *options) -> str:
        torch.save(content, tmp_path / 'theirs.pth')
        output = run_here(TOOL, 'theirs.pth', 'ours.pth', *options, code=1)
        assert not (tmp_path / 'ours.pth').exists()
        return output

    lacking = {key: value for key, value in state.items() if key != 'norm.bias'}
    assert 'backbone.norm.bias' in refused(lacking)
    assert "odd: ['fc.weight']" in refused({**state, 'fc.weight': torch.ones(1)})
    resnet = {'conv1.weight': torch.ones(64, 3, 7, 7), 'fc.bias': torch.ones(10)}
    output = refused(resnet)
    assert 'this is no PS-ViT' in output and 'conv1.weight' in output
    wrong = {**state, 'norm.bias': torch.ones(7)}
    assert 'backbone.norm.bias (7,)' in refused(wrong)
    assert 'argument --ema: no state_dict_ema' in refused(state, '--ema')
    assert 'no tensors' in refused(dict(model=dict(a=1)))
    refused(dict(model={}))

    (tmp_path / 'ours.pth').write_text('mine')
    output = run_here(TOOL, 'theirs.pth', 'ours.pth', code=2)
    assert 'ours.pth exists and is not overwritten' in output
    assert (tmp_path / 'ours.pth').read_text() == 'mine'
    assert 'none.pth does not exist' in run_here(TOOL, 'none.pth', 'x.pth', code=2)


@pytest.mark.parametrize('name', ['tiny', 'base'])
def test_published_sizes_are_recognised(name):
    """Their names of a published network's weights, made from ours."""
    converter = load_script(TOOL)
    back = [
        (r'sampler.position_layer', 'pos_layer'),
        (r'sampler.offset_layers.', 'ps_layers.'),
        (r'sampler.layers.', 'ps_layers.'),
        (r'stem.conv1', 'stem.0'),
        (r'stem.bn1', 'stem.1'),
        (r'stem.blocks.0', 'stem.4'),
        (r'stem.blocks.1', 'stem.5'),
        ('ffn.layers.0.0', 'mlp.fc1'),
        ('ffn.layers.1', 'mlp.fc2'),
        ('.ln', '.norm'),
    ]
    theirs = {}
    network = PSViT(name)
    for key, value in network.state_dict().items():
        new = key if not key.startswith('layers.') else f'trans_{key}'
        for ours, their in back:
            new = new.replace(ours, their)
        if 'sampler.layers' in key:
            index = key.split('.')[2]
            new = new.replace(f'.{index}.', f'.{index}.transformer_layer.', 1)
        if 'offset_layers' in key:
            index, kind = key.split('.')[-2:]
            new = f'ps_layers.{index}.offset_layer.{kind}'
        theirs[new] = value
    theirs['head.weight'] = torch.zeros(1000, network.embed_dims)
    theirs['head.bias'] = torch.zeros(1000)
    weights, backbone = converter.convert(theirs)
    assert backbone == dict(arch=name)
    assert len(weights) == len(theirs)
    # A fifth iteration, whose position layer is not a copy
    for key in [*theirs]:
        if key.startswith('ps_layers.3.'):
            theirs[key.replace('.3.', '.4.', 1)] = theirs[key]
    for index in (3, 4):
        for kind in ('weight', 'bias'):
            value = getattr(network.sampler.offset_layers[0], kind)
            theirs[f'ps_layers.{index}.offset_layer.{kind}'] = value
            copy = theirs[f'pos_layer.{kind}']
            theirs[f'ps_layers.{index}.position_layer.{kind}'] = copy.clone()
    del (
        theirs['ps_layers.4.offset_layer.weight'],
        theirs['ps_layers.4.offset_layer.bias'],
    )
    _, backbone = converter.convert(theirs)
    assert backbone['sampler'] == dict(num_iters=5)
    assert backbone['arch']['num_layers'] == network.num_layers + 1
    theirs['ps_layers.4.position_layer.bias'] += 1
    with pytest.raises(converter.ConversionError, match=r'4\.position_layer\.bias'):
        converter.convert(theirs)


def test_safetensors(figures, state, run_here, tmp_path):
    safetensors = pytest.importorskip('safetensors.torch')
    safetensors.save_file(
        {key: value.contiguous() for key, value in state.items()},
        tmp_path / 'theirs.safetensors',
    )
    run_here(TOOL, 'theirs.safetensors', 'ours.pth')
    logits = logits_of(tmp_path / 'ours.pth', figures['in/images'])
    assert (logits - figures['out/logits']).abs().max() < 1e-9

    (tmp_path / 'damaged.safetensors').write_bytes(b'damaged')
    output = run_here(TOOL, 'damaged.safetensors', 'no.pth', code=1)
    assert 'cannot be read' in output
