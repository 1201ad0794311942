# Copyright (c) mmpsvit contributors.
"""Count parameters and multiply-adds of configs, one row each.

    python tools/analysis_tools/get_flops.py configs/psvit/*.py
    python tools/analysis_tools/get_flops.py configs/psvit/b14.py --shape 256 192

Counted are convolutions, linear layers, attention and the bilinear sampling;
BatchNorm, LayerNorm and activations are not, as in the literature. As there, all tokens
of PS-ViT's last layer count, though it leaves out all but the class token.
"""

# isort: off
import mmpsvit  # noqa: F401  First: it says what to install if something is missing.
# isort: on

import argparse
import math
import sys
from collections import Counter
from functools import partial

import torch
from mmengine.analysis import FlopAnalyzer
from mmengine.config import Config
from mmengine.logging import MMLogger

from mmpsvit import PSViT
from mmpsvit.cli import read_config, run_main
from mmpsvit.visualization import build_model, in_channels


def _shape(value) -> list[int]:
    return value.type().sizes()


def count_attention(inputs: list, outputs: list) -> Counter:
    """The two matrix products of attention; MMEngine's counter leaves them out."""
    query, key, value = (_shape(tensor) for tensor in inputs[:3])
    heads = math.prod(query[:-1])
    return Counter(attention=heads * key[-2] * (query[-1] + value[-1]))


def count_sampling(inputs: list, outputs: list) -> Counter:
    """Four multiply-adds for each sampled number, of the bag that samples points."""
    return Counter(sampling=4 * math.prod(_shape(outputs[0])))


def analyse(cfg: Config, shape: tuple[int, int]) -> tuple[int, int]:
    """Number of parameters, and of multiply-adds for one image of (H, W) pixels."""
    model = build_model(cfg).eval()
    if cfg.get('default_scope') == 'mmdet':
        # Some detectors ask for the size of the image.
        from mmdet.structures import DetDataSample

        names = ('img_shape', 'ori_shape', 'pad_shape', 'batch_input_shape')
        sizes = dict.fromkeys(names, shape)
        sample = DetDataSample(metainfo=dict(sizes, scale_factor=(1.0, 1.0)))
        model.forward = partial(model.forward, data_samples=[sample])
    for module in model.modules():
        if isinstance(module, PSViT):
            module.cls_token_only = False
    analyzer = FlopAnalyzer(model, torch.zeros(1, in_channels(model), *shape))
    analyzer.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    analyzer.set_op_handle(
        'aten::scaled_dot_product_attention',
        count_attention,
        'aten::embedding_bag',
        count_sampling,
        'aten::batch_norm',
        lambda inputs, outputs: Counter(),
        'aten::layer_norm',
        lambda inputs, outputs: Counter(),
    )
    with torch.no_grad():
        return sum(p.numel() for p in model.parameters()), analyzer.total()


def main() -> None:
    """Print a Markdown table."""
    parser = argparse.ArgumentParser(description='Count parameters and multiply-adds')
    parser.add_argument('configs', nargs='+', help='config files')
    parser.add_argument(
        '--shape',
        nargs='+',
        type=int,
        default=[224],
        help='size of the image: H W, or one number (default: 224)',
    )
    args = parser.parse_args()
    if len(args.shape) > 2 or min(args.shape) < 1:
        parser.error(f'argument --shape: H W or one number > 0, got {args.shape}')
    height, width = args.shape if len(args.shape) == 2 else args.shape * 2

    cfgs = {path: read_config(parser, path) for path in args.configs}
    # Otherwise MMPretrain's remarks stand between the rows.
    MMLogger.get_instance('get_flops', log_level='WARNING')
    print(f'| config ({height} x {width}) | parameters | GMACs |')
    print('| --- | ---: | ---: |')
    for path, cfg in cfgs.items():
        try:
            parameters, macs = analyse(cfg, (height, width))
        except ValueError as error:
            sys.exit(f'get_flops.py: error: {path}: {error}')
        print(f'| {path} | {parameters:,} | {macs / 1e9:.3f} |', flush=True)


if __name__ == '__main__':
    run_main(main)
