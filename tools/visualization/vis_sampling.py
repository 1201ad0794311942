# Copyright (c) mmpsvit contributors.
"""Draw where a network looks on images.

    python tools/visualization/vis_sampling.py CONFIG CHECKPOINT IMAGE --out points.png

The picture shows the network's input (after resizing and cropping), the start grid
(faint), the paths of the points (thin lines) and the points of the last iteration.
"""

# isort: off
import mmpsvit  # noqa: F401  First: it says what to install if something is missing.
# isort: on

import argparse
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from mmengine.config import Config, DictAction
from mmengine.dataset import Compose
from mmengine.logging import MMLogger

from mmpsvit.cli import read_config, run_main
from mmpsvit.guard import load_checkpoint
from mmpsvit.visualization import (
    build_trained,
    predict_sampling,
    sampling_figure,
    spread_indices,
)

IMAGE_SUFFIXES = ('.jpg', '.jpeg', '.png', '.bmp', '.ppm', '.tif', '.tiff', '.webp')


class InputError(Exception):
    """A mistake of the user, told in one line."""


def parse_args() -> tuple[argparse.Namespace, Config]:
    """Parse the command line and return it with the config."""
    parser = argparse.ArgumentParser(description='Draw where a network looks')
    parser.add_argument('config', help='config file')
    parser.add_argument('checkpoint', help='checkpoint file')
    parser.add_argument('images', help='an image, or a folder of images (recursive)')
    parser.add_argument('--out', required=True, help='file of the picture, e.g. .png')
    parser.add_argument(
        '--num-images', type=int, default=8, help='how many of a folder (default: 8)'
    )
    parser.add_argument(
        '--columns', type=int, default=4, help='images per row (default: 4)'
    )
    parser.add_argument('--device', default='cpu', help='device (default: cpu)')
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=DictAction,
        help='settings of the config to override, as key=value',
    )
    args = parser.parse_args()
    for name in ('num_images', 'columns'):
        if getattr(args, name) < 1:
            option = name.replace('_', '-')
            parser.error(
                f'argument --{option}: must be at least 1, got {getattr(args, name)}'
            )
    for name in ('checkpoint', 'images'):
        if not Path(getattr(args, name)).exists():
            parser.error(f'argument {name}: {getattr(args, name)} does not exist')
    return args, read_config(parser, args.config, args.cfg_options)


def list_images(path: str, count: int) -> list[Path]:
    """The image itself, or images of a folder, evenly spread over the sorted ones."""
    if Path(path).is_file():
        return [Path(path)]
    found = sorted(
        file for file in Path(path).rglob('*') if file.suffix.lower() in IMAGE_SUFFIXES
    )
    if not found:
        raise InputError(f'argument images: no images below {path}')
    return [found[index] for index in spread_indices(len(found), count)]


def load_images(paths: list[Path], pipeline: Compose) -> Iterator[dict]:
    """The images as the pipeline packs them."""
    for path in paths:
        try:
            yield pipeline(dict(img_path=str(path), img_id=0))
        except Exception as error:
            raise InputError(
                f'argument images: {path} cannot be read as an image ({error})'
            ) from error


def draw(args: argparse.Namespace, cfg: Config) -> None:
    """Run the model on the images and write the picture."""
    paths = list_images(args.images, args.num_images)
    # Otherwise the library's remarks on the model hide the tool's own lines.
    MMLogger.get_instance('vis_sampling', log_level='WARNING')
    model, classes = build_trained(
        cfg, load_checkpoint(args.checkpoint, 'cpu'), args.checkpoint
    )
    pipeline = Compose(
        [t for t in cfg.test_dataloader.dataset.pipeline if 'LoadAnn' not in t['type']]
    )
    sampled = predict_sampling(
        model.to(args.device), load_images(paths, pipeline), classes
    )

    figure = sampling_figure(*sampled, args.columns)
    target = Path(args.out)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f'.{os.getpid()}.{target.name}')
    figure.savefig(temporary)
    temporary.replace(target)
    print(f'{len(paths)} images drawn: {target}')


def main() -> None:
    """Draw, with one line for every mistake of the user."""
    args, cfg = parse_args()
    try:
        draw(args, cfg)
    except (InputError, RuntimeError, ValueError) as error:
        sys.exit(f'vis_sampling.py: error: {error}')


if __name__ == '__main__':
    run_main(main)
