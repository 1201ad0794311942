# Copyright (c) mmpsvit contributors.
"""What the demo page knows of networks: finds them, loads them, runs them on images."""

# isort: off
import mmpsvit  # noqa: F401  First: it says what to install if something is missing.
# isort: on

import threading
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import numpy as np
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.model import BaseModel
from PIL import Image, ImageOps

from mmpsvit.guard import CheckpointError, CheckpointMisfitError, load_checkpoint
from mmpsvit.visualization import (
    FilePipeline,
    SampledImage,
    build_trained,
    class_name,
    explain,
    find_sampler,
    heat_map,
    in_channels,
    sample_images,
    spread_indices,
)

ROOT = Path(__file__).resolve().parent.parent
DEMO_CONFIG = 'configs/cluttered_digits/psvit.py'
DEMO_WORK_DIR = 'work_dirs/demo'
DEMO_IMAGES = 'data/cluttered_digits/val'
NO_CHECKPOINT = (
    'There is no checkpoint: run `make demo` first, or give --config and --checkpoint.'
)
TOP = 5
MAX_POINTS = 24  # per side, to choose
# Without a resize in the config, a photo would fill the memory with feature maps.
MAX_SIDE = 1024
# Where the short side is resized, a thin image would fill it too.
MAX_SIDE_RATIO = 100
# What a file of 20 MB may unpack to. Formats are those that Pillow decodes at the size
# that it announces: its TIFF decoder has a mind of its own, and others run programs.
MAX_PIXELS = 50_000_000
FORMATS = ('JPEG', 'PNG', 'WEBP', 'BMP')


class LookError(Exception):
    """A mistake of the user, told in one sentence."""


class Look(NamedTuple):
    """What the page shows of an image.

    Attributes:
        image (np.ndarray): The network's input, RGB, (H, W, 3), uint8.
        trajectory (np.ndarray): The points of every iteration, (num_iters, N, 2),
            (x, y) in pixels.
        scores (dict[str, float]): The best classes, by name, best first.
        heat (np.ndarray, optional): The attention of the class token at the points of
            the last iteration, (H, W). None without a class token.
        num_points (int, optional): Points per side. None if they cannot be chosen.
    """

    image: np.ndarray
    trajectory: np.ndarray
    scores: dict[str, float]
    heat: np.ndarray | None
    num_points: int | None


class Network(NamedTuple):
    """A loaded network with what surrounds it."""

    model: BaseModel
    classes: list[str]
    pipeline: FilePipeline
    num_points: int | None  # per side, of its config, if they can be chosen


class Looker:
    """Runs networks of a checkout on images, one at a time.

    A config is a program, and the page may be open to others. So only configs below
    ``configs/`` and checkpoints below ``work_dirs/`` are read, and those given here.

    Args:
        config (str, optional): A config file of any folder. Defaults to that of
            ``make demo``.
        checkpoint (str, optional): A checkpoint of any folder. Defaults to what
            ``make demo`` left, if the config is its config.
        device (str): Where the networks run. Defaults to 'cpu'.
        root (Path): The checkout.
    """

    def __init__(
        self,
        config: str | None = None,
        checkpoint: str | None = None,
        device: str = 'cpu',
        root: Path = ROOT,
    ) -> None:
        self.root = root.resolve()
        self.device = device
        self.config = self._name(config) if config else DEMO_CONFIG
        self._given = self._name(checkpoint) if checkpoint else None
        self._lock = threading.Lock()
        self._loaded: tuple[tuple, Network] | None = None

    @property
    def checkpoint(self) -> str | None:
        """The checkpoint to start with, if there is one."""
        if self._given or self.config != DEMO_CONFIG:
            return self._given
        pointer = self.root / DEMO_WORK_DIR / 'last_checkpoint'
        if not pointer.is_file():
            return None
        # Only the name, since the checkout may have moved.
        path = pointer.parent / Path(pointer.read_text().strip()).name
        return self._name(path) if path.is_file() else None

    def configs(self) -> list[str]:
        """The config to start with, and the classifiers' configs of the checkout."""
        found = (
            self._name(path)
            for path in find_files(self.root / 'configs', '*.py')
            if not {'_base_', 'mmdet', 'mmseg'} & set(path.parts)
        )
        return list(dict.fromkeys([self.config, *found]))

    def checkpoints(self) -> list[str]:
        """The checkpoint to start with, and all below ``work_dirs/``."""
        found = map(self._name, find_files(self.root / 'work_dirs', '*.pth'))
        first = [self.checkpoint] if self.checkpoint else []
        return list(dict.fromkeys([*first, *found]))

    def examples(self) -> list[str]:
        """Images of the generated digits, if there are any."""
        found = find_files(self.root / DEMO_IMAGES, '*.png')
        return [str(found[index]) for index in spread_indices(len(found), 6)]

    def look(
        self,
        image: str,
        config: str,
        checkpoint: str | None,
        num_points: int | None = None,
    ) -> Look:
        """Run a network on an image.

        Args:
            image (str): An image file.
            config (str): The config, as listed or as a path.
            checkpoint (str, optional): The checkpoint, as listed or as a path.
            num_points (int, optional): Points per side, where they can be chosen.
                Defaults to those of the config.

        Returns:
            Look: What to show.

        Raises:
            LookError: If a file is missing, damaged, or does not fit.
        """
        # One at a time: the model is shared, and its points are recorded by a hook.
        with self._lock:
            network = self._network(config, checkpoint)
            item = pack_image(network, image)
            num_points = network.num_points and (num_points or network.num_points)
            if num_points:
                find_sampler(network.model).num_points = num_points
            sampled = run(network, item, config)
            heat = heat_of(network.model, item, sampled.image.shape[:2])
        scores = best_classes(network, sampled)
        return Look(sampled.image, sampled.trajectory, scores, heat, num_points)

    def _name(self, path: str | Path) -> str:
        """A path as the page shows it: relative to the checkout, if it is in there."""
        path = Path(path).expanduser().resolve()
        inside = path.is_relative_to(self.root)
        return str(path.relative_to(self.root) if inside else path)

    def _find(self, name: str, kind: str, folder: str, given: str | None) -> Path:
        """The file that the page names, if the page may name it."""
        try:
            path = (self.root / Path(name.strip()).expanduser()).resolve()
        # An unknown home folder, or a character that no path has.
        except (RuntimeError, ValueError) as error:
            raise LookError(f'The {kind} {name!r} is no path.') from error
        inside = path.is_relative_to((self.root / folder).resolve())
        if not inside and self._name(path) != given:
            raise LookError(
                f'The {kind} {name} is not below {folder}/; start the page with '
                f'--{kind} to use it.'
            )
        if not path.is_file():
            raise LookError(f'The {kind} {name} does not exist.')
        return path

    def _network(self, config: str, checkpoint: str | None) -> Network:
        """Load a network, or take the last one if it is the same."""
        if not checkpoint:
            raise LookError(NO_CHECKPOINT)
        paths = (
            self._find(config or '', 'config', 'configs', self.config),
            self._find(checkpoint, 'checkpoint', 'work_dirs', self._given),
        )
        key = tuple((path, path.stat().st_mtime_ns) for path in paths)
        if self._loaded is None or self._loaded[0] != key:
            self._loaded = (key, load_network(*paths, checkpoint, self.device))
        return self._loaded[1]


def find_files(folder: Path, pattern: str) -> list[Path]:
    """Files below a folder, sorted; none that are hidden, such as half-written ones."""
    return sorted(
        path
        for path in folder.rglob(pattern)
        if not any(part.startswith('.') for part in path.relative_to(folder).parts)
    )


def load_network(config: Path, checkpoint: Path, name: str, device: str) -> Network:
    """Load a network safely.

    Raises:
        LookError: If the files cannot be read, or do not fit each other.
    """
    try:
        cfg = Config.fromfile(config)
    # A config is a program and can raise anything.
    except Exception as error:
        raise LookError(
            f'The config {config.name} cannot be used: {one_line(error)}.'
        ) from error
    try:
        model, classes = build_trained(cfg, load_checkpoint(checkpoint, 'cpu'), name)
        grid = find_sampler(model).num_points
        pipeline = FilePipeline(cfg, in_channels(model))
    except (CheckpointError, CheckpointMisfitError) as error:
        raise LookError(f'The {one_line(error)}.') from error
    except Exception as error:
        raise LookError(
            f'The network of {config.name} cannot be shown: {one_line(error)}.'
        ) from error
    # Without a grid of its own, a network of `point_stride` has as many as fit.
    choosable = grid is not None and grid[0] == grid[1] <= MAX_POINTS
    return Network(model.to(device), classes, pipeline, grid[0] if choosable else None)


def decode(path: str) -> Image.Image:
    """Decode an uploaded file, once, turned as its camera says.

    Raises:
        LookError: If the file is no image, or a very large or thin one.
    """
    name = Path(path).name
    try:
        with Image.open(path, formats=FORMATS) as opened:
            width, height = opened.size
            if width * height <= MAX_PIXELS:
                opened.thumbnail((MAX_SIDE, MAX_SIDE))
                image = ImageOps.exif_transpose(opened)
                if image.mode == 'I;16':  # which Pillow would cut off at 255
                    image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
                elif image.mode not in ('L', 'RGB', 'RGBA'):
                    image = image.convert('RGB')
    # What a damaged file makes the decoders raise can be anything.
    except Exception as error:
        raise LookError(
            f'{name} cannot be read as an image ({", ".join(FORMATS)}).'
        ) from error
    if width * height > MAX_PIXELS:
        raise LookError(
            f'{name} has {width} x {height} pixels, allowed are {MAX_PIXELS:,}.'
        )
    if max(width, height) > MAX_SIDE_RATIO * min(width, height):
        raise LookError(
            f'{name} is too narrow: one side must be at most {MAX_SIDE_RATIO} times as '
            'long as the other.'
        )
    return image


def pack_image(network: Network, path: str) -> dict:
    """Read an image file and pass it through the pipeline of the config.

    The pipeline reads a file that was written here: no second decoder, which might see
    something else in it, gets the upload.

    Raises:
        LookError: If the file is no image, or the pipeline refuses it.
    """
    image = decode(path)
    with TemporaryDirectory() as folder:
        copy = Path(folder) / 'image.png'
        image.save(copy)
        try:
            return network.pipeline(copy)
        except Exception as error:
            raise LookError(
                f'The pipeline of the config refuses {Path(path).name}: '
                f'{one_line(error)}.'
            ) from error


def run(network: Network, item: dict, config: str) -> SampledImage:
    """Run a network on a packed image.

    Raises:
        LookError: If the network does not take the image, or is no classifier.
    """
    height, width = item['inputs'].shape[-2:]
    channels = network.pipeline.channels
    try:
        (sampled,) = sample_images(network.model, [item], channels)
    # Such as an image that is too small for it.
    except Exception as error:
        raise LookError(
            f'The network does not take an image of {width} x {height} pixels: '
            f'{one_line(error)}.'
        ) from error
    if 'pred_score' not in sampled.prediction:
        raise LookError(
            f'{config} is no classifier; tools/visualization/vis_sampling.py draws the '
            'points of detectors.'
        )
    return sampled


def heat_of(model: BaseModel, item: dict, size: tuple[int, int]) -> np.ndarray | None:
    """The heat map of a packed image of size (H, W), if there is a class token."""
    if getattr(getattr(model, 'backbone', None), 'cls_token', None) is None:
        return None
    data = model.data_preprocessor(pseudo_collate([item]), False)
    heat, trajectory, grid_size = explain(model, data['inputs'], 'attention')
    return heat_map(heat, trajectory[:, -1], size, grid_size)[0].cpu().numpy()


def best_classes(network: Network, sampled: SampledImage) -> dict[str, float]:
    """The best classes with their scores, best first."""
    scores = sampled.prediction.pred_score
    best = scores.topk(min(TOP, len(scores)))
    return dict(
        zip(
            distinct(best.indices.tolist(), network.classes),
            best.values.tolist(),
            strict=True,
        )
    )


def distinct(labels: list[int], classes: list[str]) -> Iterator[str]:
    """Names of classes, with their numbers where names repeat, as ImageNet's do."""
    names = [class_name(label, classes) for label in labels]
    for label, name in zip(labels, names, strict=True):
        yield f'{name} ({label})' if names.count(name) > 1 else name


def one_line(error: Exception) -> str:
    """An error's text on one line, without the full stop at its end."""
    text = ' '.join(str(error).split()) or type(error).__name__
    return text[:300].rstrip('.')
