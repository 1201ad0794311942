# Copyright (c) mmpsvit contributors.
"""Convert a checkpoint of the authors' PS-ViT code to one of ours.

    python tools/model_converters/psvit_to_mmpretrain.py SRC DST

SRC is a plain state dict, also as `.safetensors`, or a training checkpoint that holds
one under `state_dict`, `model` or `state_dict_ema` (where others are there too: by
`--ema`), with or without `module.` before the names. DST loads into
`configs/psvit/{ti14,b14,...}.py`: no weight depends on the number of points.
"""

# isort: off
import mmpsvit
# isort: on

import argparse
import hashlib
import re
import sys
from pathlib import Path

import torch
from torch import Tensor

from mmpsvit import PSViT
from mmpsvit.guard import CheckpointError, load_checkpoint, write_atomically

# The authors' names and ours, first of the parts of a transformer layer.
BLOCK_NAMES = {
    'norm1': 'ln1',
    'norm2': 'ln2',
    'attn': 'attn',
    'mlp.fc1': 'ffn.layers.0.0',
    'mlp.fc2': 'ffn.layers.1',
}
RENAMES = [
    (r'cls_token', 'backbone.cls_token'),
    (r'pos_layer\.(\w+)', r'backbone.sampler.position_layer.\1'),
    (r'stem\.0\.(\w+)', r'backbone.stem.conv1.\1'),
    (r'stem\.1\.(\w+)', r'backbone.stem.bn1.\1'),
    (r'stem\.4\.(.+)', r'backbone.stem.blocks.0.\1'),
    (r'stem\.5\.(.+)', r'backbone.stem.blocks.1.\1'),
    (r'ps_layers\.(\d+)\.offset_layer\.(\w+)', r'backbone.sampler.offset_layers.\1.\2'),
    *(
        (rf'{theirs}\.{re.escape(name)}\.(.+)', rf'{ours}.\1.{new}.\2')
        for theirs, ours in (
            (r'ps_layers\.(\d+)\.transformer_layer', 'backbone.sampler.layers'),
            (r'trans_layers\.(\d+)', 'backbone.layers'),
        )
        for name, new in BLOCK_NAMES.items()
    ),
    (r'norm\.(\w+)', r'backbone.norm.\1'),
    (r'head\.(\w+)', r'head.layers.head.\1'),
]
# What the architecture is read from.
REQUIRED = (
    'cls_token',
    'stem.0.weight',
    'stem.4.conv3.weight',
    'stem.5.conv3.weight',
    'ps_layers.0.transformer_layer.norm1.weight',
    'trans_layers.0.mlp.fc1.weight',
)
# Derived from the size of the map, and copies of the one shared layer.
DROPPED = (r'point_coord', r'ps_layers\.\d+\.position_layer\.(weight|bias)')


class ConversionError(ValueError):
    """A checkpoint is not one of the authors' PS-ViT."""


def pick_state_dict(
    checkpoint: dict, ema: bool
) -> tuple[dict[str, Tensor], str | None]:
    """Find the weights in what a file holds, and the key they are under, if any."""
    if ema and 'state_dict_ema' not in checkpoint:
        raise ConversionError(
            f'argument --ema: no state_dict_ema among {sorted(checkpoint)[:9]}'
        )
    keys = ('state_dict_ema',) if ema else ('state_dict', 'model', 'state_dict_ema')
    found = next((key for key in keys if key in checkpoint), None)
    state = checkpoint if found is None else checkpoint[found]
    if not isinstance(state, dict) or not state:
        raise ConversionError('the file holds no state dict')
    strange = [key for key, value in state.items() if not isinstance(value, Tensor)]
    if strange:
        raise ConversionError(f'these entries are no tensors: {strange[:9]}')
    return {key.removeprefix('module.'): value for key, value in state.items()}, found


def convert_name(key: str) -> str | None:
    """Our name of one of their weights; None if there is no such weight in PS-ViT."""
    matches = ((re.fullmatch(pattern, key), new) for pattern, new in RENAMES)
    return next((match.expand(new) for match, new in matches if match), None)


def swap_axes(key: str, value: Tensor) -> Tensor:
    """(y, x) to (x, y) in the layers that read or write points."""
    if '.offset_layer.' in key:
        return value.flip(0)
    return value.flip(1) if key == 'pos_layer.weight' else value


def arch_of(state: dict[str, Tensor]) -> tuple[dict, int]:
    """Read architecture and number of iterations from the shapes of the weights."""
    counts = {
        room: 1 + max(int(key.split('.')[1]) for key in state if key.startswith(room))
        for room in ('ps_layers.', 'trans_layers.')
    }
    embed_dims = state['cls_token'].shape[-1]
    return {
        'embed_dims': embed_dims,
        'num_layers': sum(counts.values()),
        # No shape tells the heads; the published ones have 64 channels.
        'num_heads': max(1, embed_dims // 64),
        'feedforward_channels': len(state['trans_layers.0.mlp.fc1.weight']),
        'stem_base_channels': len(state['stem.0.weight']),
        'stem_channels': tuple(len(state[f'stem.{i}.conv3.weight']) for i in (4, 5)),
    }, counts['ps_layers.']


def convert(state: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict]:
    """Convert a state dict of the authors' network.

    Args:
        state (dict[str, Tensor]): Their weights, without `module.` prefixes.

    Returns:
        tuple[dict, dict]: The weights of an ImageClassifier with our backbone and head,
        and the arguments of the backbone that they are for.

    Raises:
        ConversionError: If keys are missing or odd, or shapes do not fit together.
    """
    needed = [
        key for key in state if not any(re.fullmatch(drop, key) for drop in DROPPED)
    ]
    odd = [key for key in needed if convert_name(key) is None]
    # The position layer is one of all iterations.
    odd += [
        key
        for key, value in state.items()
        if '.position_layer.' in key
        and not torch.equal(value, state.get(f'pos_layer.{key.split(".")[-1]}', value))
    ]
    converted = {
        convert_name(key): swap_axes(key, state[key]).contiguous()
        for key in needed
        if key not in odd
    }
    absent = [key for key in REQUIRED if key not in state]
    if absent:
        raise ConversionError(f'this is no PS-ViT: missing: {absent}; odd: {odd[:9]}')
    arch, num_iters = arch_of(state)
    try:
        with torch.device('meta'):
            network = PSViT(arch, sampler=dict(num_iters=num_iters))
    except ValueError as error:
        raise ConversionError(f'this is no PS-ViT: {error}') from None

    expected = {f'backbone.{k}': v.shape for k, v in network.state_dict().items()}
    classes = len(converted.get('head.layers.head.bias', ()))
    expected['head.layers.head.weight'] = (classes, arch['embed_dims'])
    expected['head.layers.head.bias'] = (classes,)
    missing = sorted(set(expected) - set(converted))
    odd += sorted(set(converted) - set(expected))
    odd += [
        f'{key} {tuple(converted[key].shape)}'
        for key, shape in expected.items()
        if key in converted and tuple(converted[key].shape) != tuple(shape)
    ]
    if missing or odd:
        raise ConversionError(
            f'this is no PS-ViT: missing (our names): {missing[:9]}; odd: {odd[:9]}'
        )
    with torch.device('meta'):
        names = [name for name in PSViT.arch_zoo if PSViT(name).arch == arch]
    backbone = dict(arch=names[0] if names else arch)
    if num_iters != 4:
        backbone['sampler'] = dict(num_iters=num_iters)
    return converted, backbone


def main() -> None:
    """Convert, with one line for every mistake of the user."""
    parser = argparse.ArgumentParser(description='Convert a checkpoint of the authors')
    parser.add_argument('src', help="checkpoint of the authors' code")
    parser.add_argument('dst', help='file to write')
    parser.add_argument(
        '--ema', action='store_true', help='take the averaged weights (state_dict_ema)'
    )
    args = parser.parse_args()
    source, target = Path(args.src), Path(args.dst)
    if not source.is_file():
        parser.error(f'argument src: {source} does not exist')
    if target.exists():
        parser.error(f'argument dst: {target} exists and is not overwritten')
    if target.suffix == '.safetensors':
        parser.error(f'argument dst: a file of PyTorch, such as .pth, got {target}')
    try:
        # Their trainer stores its command line in the checkpoint.
        checkpoint = load_checkpoint(source, 'cpu', allowed=(argparse.Namespace,))
        state, found = pick_state_dict(checkpoint, args.ema)
        weights, backbone = convert(state)
    except (CheckpointError, ConversionError) as error:
        sys.exit(f'psvit_to_mmpretrain.py: error: {source}: {error}')

    meta = dict(
        source=source.name,
        source_sha256=hashlib.sha256(source.read_bytes()).hexdigest(),
        averaged=found == 'state_dict_ema',
        converted_by=f'mmpsvit {mmpsvit.__version__}',
        backbone=backbone,
    )
    with write_atomically(target) as temporary:
        torch.save(dict(state_dict=weights, meta=meta), temporary)
    classes = len(weights['head.layers.head.bias'])
    where = f'{found} of {source.name}' if found else source.name
    settings = ', '.join(f'{key}={value!r}' for key, value in backbone.items())
    print(
        f'{target}: PSViT({settings}), {classes} classes; {len(weights)} weights '
        f'from {where}, {len(state) - len(weights)} left out (start points, copies)'
    )
    if isinstance(backbone['arch'], dict):
        print('num_heads is for 64 channels a head, as theirs have: no weight tells it')
    if found != 'state_dict_ema' and 'state_dict_ema' in checkpoint:
        print(f'{source.name} also holds averaged weights, which --ema takes')


if __name__ == '__main__':
    main()
