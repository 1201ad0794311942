# Copyright (c) mmpsvit contributors.
"""Draw where a network looks on images.

    python tools/visualization/vis_sampling.py CONFIG CHECKPOINT IMAGE --out points.png

The picture shows the network's input (after resizing and cropping), the start grid
(faint), the paths of the points (thin lines) and the points of the last iteration.
Without IMAGE, images of the config's test data set are drawn.
"""

# isort: off
import mmpsvit  # noqa: F401  First: it says what to install if something is missing.
# isort: on

import argparse
import glob
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from matplotlib.backend_bases import FigureCanvasBase
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.registry import DATASETS
from mmengine.runner import CheckpointLoader

from mmpsvit.cli import add_cfg_options, check_file, read_config, run_main
from mmpsvit.guard import write_atomically
from mmpsvit.visualization import (
    FilePipeline,
    build_trained,
    in_channels,
    movement_shares,
    sample_images,
    sampling_figure,
    spread_indices,
    testing_dataset,
    without_drift,
)

IMAGE_SUFFIXES = ('.jpg', '.jpeg', '.png', '.bmp', '.ppm', '.tif', '.tiff', '.webp')


class InputError(Exception):
    """A mistake of the user, told in one line."""


def build_parser(description: str) -> argparse.ArgumentParser:
    """A parser with the arguments of the tools that draw images."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument('config', help='config file')
    parser.add_argument('checkpoint', help='checkpoint file')
    parser.add_argument(
        'images',
        nargs='?',
        help="an image, or a folder of images (recursive); by default the config's "
        'test data set',
    )
    parser.add_argument('--out', required=True, help='file of the picture, e.g. .png')
    parser.add_argument(
        '--num-images', type=int, default=8, help='how many images (default: 8)'
    )
    parser.add_argument(
        '--columns', type=int, default=4, help='images per row (default: 4)'
    )
    parser.add_argument('--device', default='cpu', help='device (default: cpu)')
    add_cfg_options(parser)
    return parser


def parse_args(
    parser: argparse.ArgumentParser,
) -> tuple[argparse.Namespace, Config]:
    """Parse the command line and return it with the config."""
    args = parser.parse_args()
    for option in ('num-images', 'columns'):
        if (value := getattr(args, option.replace('-', '_'))) < 1:
            parser.error(f'argument --{option}: must be at least 1, got {value}')
    check_file(parser, 'checkpoint', args.checkpoint)
    if args.images is not None:
        check_file(parser, 'images', args.images)
    formats = FigureCanvasBase.get_supported_filetypes()
    if Path(args.out).suffix.lower()[1:] not in formats:
        parser.error(f'argument --out: must end in one of {", ".join(formats)}')
    return args, read_config(parser, args.config, args.cfg_options)


def list_images(path: Path, count: int) -> list[Path]:
    """The image itself, or images of a folder, evenly spread over the sorted ones."""
    if path.is_file():
        return [path]
    # Through links to folders, as data sets do, and without what is hidden, such as
    # .ipynb_checkpoints and what macOS leaves beside files.
    found = sorted(
        path / name
        for name in glob.iglob('**', root_dir=path, recursive=True)
        if Path(name).suffix.lower() in IMAGE_SUFFIXES
    )
    if not found:
        raise InputError(f'argument images: no images below {path}')
    return [found[index] for index in spread_indices(len(found), count)]


def load_images(paths: list[Path], pipeline: FilePipeline) -> Iterator[dict]:
    """The images as the pipeline packs them."""
    for path in paths:
        try:
            yield pipeline(path)
        except Exception as error:
            raise InputError(
                f'argument images: {path} cannot be read as an image ({error})'
            ) from error


def load_dataset(cfg: Config, count: int) -> list[dict]:
    """Images of the test data set, evenly spread over it."""
    try:
        dataset = DATASETS.build(testing_dataset(cfg))
        if not len(dataset):
            raise InputError('it is empty')
        return [dataset[index] for index in spread_indices(len(dataset), count)]
    except Exception as error:
        raise InputError(
            f'the test data set cannot be read ({error}); name an image or a folder'
        ) from error


def load(args: argparse.Namespace, cfg: Config) -> tuple:
    """Load the network and find the images: the arguments of `sample_images`."""
    if args.images is not None:
        paths = list_images(Path(args.images).expanduser(), args.num_images)
    # Otherwise the library's remarks on the model hide the tool's own lines.
    MMLogger.get_instance('visualization', log_level='WARNING')
    checkpoint = CheckpointLoader.load_checkpoint(args.checkpoint, 'cpu', 'silent')
    model, classes = build_trained(cfg, checkpoint, args.checkpoint)
    pipeline = FilePipeline(cfg, in_channels(model))
    if args.images is not None:
        items = load_images(paths, pipeline)
    else:
        items = load_dataset(cfg, args.num_images)
    return model.to(args.device), items, pipeline.channels, classes


def draw(args: argparse.Namespace, cfg: Config) -> None:
    """Run the model on the images and write the picture."""
    sampled = sample_images(*load(args, cfg))
    trajectories = [each.trajectory for each in sampled]
    shares = movement_shares(trajectories)
    if args.without_drift:
        trajectories = without_drift(trajectories)
    panels = [
        (each.image, trajectory, each.title)
        for each, trajectory in zip(sampled, trajectories, strict=True)
    ]
    with write_atomically(args.out) as temporary:
        sampling_figure(panels, args.columns).savefig(temporary)
    print(f'{len(sampled)} images drawn: {args.out}')
    if shares:
        drift, follows = shares
        print(f'movement: {drift:.0%} is common to all points', end='')
        print(
            '' if follows is None else f' and images, {follows:.0%} follows the image'
        )


def draw_or_exit(
    draw: Callable[[argparse.Namespace, Config], None], parser: argparse.ArgumentParser
) -> None:
    """Draw, with one line for every mistake of the user."""
    args, cfg = parse_args(parser)
    try:
        draw(args, cfg)
    except (ImportError, InputError, OSError, RuntimeError, ValueError) as error:
        sys.exit(f'{Path(sys.argv[0]).name}: error: {error}')


def main() -> None:
    """Draw where the network looks."""
    parser = build_parser('Draw where a network looks')
    parser.add_argument(
        '--without-drift',
        action='store_true',
        help='draw points without the movement that all of them have in common',
    )
    draw_or_exit(draw, parser)


if __name__ == '__main__':
    run_main(main)
