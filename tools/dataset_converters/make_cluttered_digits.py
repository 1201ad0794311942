# Copyright (c) mmpsvit contributors.
"""Make a small image classification data set: one digit among clutter.

Each image shows one handwritten digit (from scikit-learn's bundled 8x8 digits,
so nothing is downloaded) at a random place on a larger noisy RGB canvas, among
fragments of other digits. No source digit is used in both splits. On disk::

    OUT/settings.json            the settings, written first
    OUT/train/3/000123.png       image 123 of the split, class '3'
    OUT/train/boxes.json         written last
    OUT/val/...                  the same

``boxes.json`` holds ``{"settings": {...}, "images": [{"file": "3/000123.png",
"label": 3, "box": [x1, y1, x2, y2]}, ...]}``: the pixel box around the digit's
strokes, ``x2`` and ``y2`` exclusive. Loaders that scan class folders ignore it.

The same command continues an interrupted run. Example::

    python tools/dataset_converters/make_cluttered_digits.py data/cluttered_digits
"""

import argparse
import io
import json
import math
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from tqdm import tqdm

GENERATOR = 'make_cluttered_digits'
VERSION = 1  # raise it when the same settings give other images
NUM_CLASSES = 10
SPLITS = ('train', 'val')
MIN_DIGIT_SIZE = 16  # smaller digits are hard to read
SCALES = (0.8, 1.2)  # of the digit size
FRAGMENT_SCALES = (0.28, 0.4)  # of the digit size: half of the smallest digit
VISIBLE = 0.15  # opacity from which a stroke is seen

Box = tuple[int, int, int, int]


@dataclass(frozen=True)
class Settings:
    """Everything that decides the content of a data set."""

    size: int = 96
    digit_size: int = 28
    num_train: int = 12800
    num_val: int = 1000
    num_clutter: int = 20
    noise: float = 0.08
    seed: int = 0

    def to_json(self) -> dict[str, Any]:
        """Return the settings as written to disk, with the generator's version."""
        return {'generator': GENERATOR, 'version': VERSION, **asdict(self)}


class Sources(NamedTuple):
    """Source digits: images (N, 8, 8) in [0, 1] and labels (N,)."""

    images: np.ndarray
    labels: np.ndarray


class Digit(NamedTuple):
    """A digit of a scene: its source, class, box and the box's opacity mask."""

    source: int
    label: int
    box: Box
    mask: np.ndarray


def split_indices(labels: np.ndarray) -> dict[str, np.ndarray]:
    """Return the source digits of each split: of each class, a fifth is for val."""
    val = np.concatenate(
        [np.flatnonzero(labels == label)[::5] for label in range(NUM_CLASSES)]
    )
    return {'train': np.setdiff1d(np.arange(len(labels)), val), 'val': np.sort(val)}


def load_sources() -> dict[str, Sources]:
    """Load the source digits of each split."""
    # Imported here: it takes a second, which a finished data set need not wait for.
    from sklearn.datasets import load_digits

    digits = load_digits()
    return {
        split: Sources(digits.images[indices] / 16, digits.target[indices])
        for split, indices in split_indices(digits.target).items()
    }


def enlarge(
    image: np.ndarray, settings: Settings, rng: np.random.Generator
) -> np.ndarray:
    """Scale a source digit to a random size; return its opacity mask."""
    side = round(settings.digit_size * rng.uniform(*SCALES))
    smooth = Image.fromarray(image.astype(np.float32)).resize(
        (side, side), Image.Resampling.BICUBIC
    )
    # A steeper ramp turns the blur of the interpolation into clear strokes.
    return ((np.asarray(smooth) - 0.25) / 0.4).clip(0, 1)


def find_place(
    shape: Sequence[int],
    taken: Iterable[Box],
    margin: int,
    size: int,
    rng: np.random.Generator,
) -> Box | None:
    """Find a random box of a (height, width) that keeps off the taken boxes.

    Returns:
        The box, or None if no room was found.
    """
    height, width = shape
    for _ in range(50):
        x1 = int(rng.integers(size - width + 1))
        y1 = int(rng.integers(size - height + 1))
        box = x1, y1, x1 + width, y1 + height
        if all(
            box[2] + margin <= other[0]
            or other[2] + margin <= box[0]
            or box[3] + margin <= other[1]
            or other[3] + margin <= box[1]
            for other in taken
        ):
            return box
    return None


def place_digits(
    labels: Iterable[int],
    sources: Sources,
    settings: Settings,
    rng: np.random.Generator,
) -> list[Digit]:
    """Choose the digits of a scene and their places; this draws nothing.

    Args:
        labels: Class of each digit. A digit that finds no room is left out.
        sources: Source digits of the split.
        settings: Settings of the data set.
        rng: Random generator of the scene.
    """
    digits: list[Digit] = []
    for label in labels:
        source = int(rng.choice(np.flatnonzero(sources.labels == label)))
        mask = enlarge(sources.images[source], settings, rng)
        rows = np.flatnonzero(mask.max(axis=1) > VISIBLE)
        columns = np.flatnonzero(mask.max(axis=0) > VISIBLE)
        mask = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        taken = [digit.box for digit in digits]
        box = find_place(mask.shape, taken, 1, settings.size, rng)
        if box is not None:
            digits.append(Digit(source, label, box, mask))
    return digits


def cut_fragment(
    image: np.ndarray, settings: Settings, rng: np.random.Generator
) -> np.ndarray:
    """Cut a small random rectangle out of the mask of an enlarged source digit."""
    mask = enlarge(image, settings, rng)
    shape = settings.digit_size * rng.uniform(*FRAGMENT_SCALES, 2)
    height, width = shape.round().astype(int).tolist()
    # Around a pixel of a stroke, so that no fragment is blank.
    y, x = rng.choice(np.argwhere(mask > 0.5)).tolist()
    top = min(max(y - height // 2, 0), len(mask) - height)
    left = min(max(x - width // 2, 0), len(mask) - width)
    return mask[top : top + height, left : left + width]


def paint(
    canvas: np.ndarray, box: Box, mask: np.ndarray, rng: np.random.Generator
) -> None:
    """Paint a mask onto the canvas in a random bright colour."""
    region = canvas[box[1] : box[3], box[0] : box[2]]
    region += mask[..., None] * (rng.uniform(0.5, 1, 3) - region)


def draw_scene(
    labels: Iterable[int],
    sources: Sources,
    settings: Settings,
    rng: np.random.Generator,
) -> tuple[np.ndarray, list[Digit]]:
    """Draw digits among clutter and noise; the arguments are as in place_digits.

    Returns:
        The image (size, size, 3) in uint8, and the digits in it.
    """
    # Placed first, so that place_digits alone finds the same boxes.
    digits = place_digits(labels, sources, settings, rng)
    canvas = np.tile(rng.uniform(0, 0.3, 3), (settings.size, settings.size, 1))
    for digit in digits:
        paint(canvas, digit.box, digit.mask, rng)

    # Fragments keep off the digits: one that touches a 1 could make it a 7. They
    # come from all classes: an absent class would give the answer away.
    taken = [digit.box for digit in digits]
    margin = settings.digit_size // 10
    others = np.setdiff1d(
        np.arange(len(sources.labels)), [digit.source for digit in digits]
    )
    for source in rng.choice(others, settings.num_clutter):
        mask = cut_fragment(sources.images[source], settings, rng)
        box = find_place(mask.shape, taken, margin, settings.size, rng)
        if box is not None:
            paint(canvas, box, mask, rng)

    canvas += settings.noise * rng.standard_normal(canvas.shape)
    return (canvas.clip(0, 1) * 255).round().astype(np.uint8), digits


def write_atomic(path: Path, data: bytes) -> None:
    """Write a file under a temporary name and rename it.

    The temporary name is fixed: what a killed run left is reused by the next run.
    """
    temporary = path.with_name(f'.{path.name}.tmp')
    temporary.write_bytes(data)
    os.replace(temporary, path)


def write_json(path: Path, value: Any) -> None:
    """Write a value as JSON, atomically."""
    write_atomic(path, (json.dumps(value) + '\n').encode())


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object; an absent or broken file gives an empty one."""
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def claim_folder(out: Path, settings: dict[str, Any]) -> None:
    """Write the settings to a new folder; exit if the folder has others."""
    path = out / 'settings.json'
    old = read_json(path)
    if old.get('generator') == GENERATOR:
        changes = [
            f'{name} is {old.get(name)} there, {value} here'
            for name, value in settings.items()
            if old.get(name) != value
        ]
        if changes:
            sys.exit(f'error: {out} has other settings: {", ".join(changes)}')
        return
    if out.exists() and not (
        out.is_dir() and {p.name for p in out.iterdir()} <= {'.settings.json.tmp'}
    ):
        sys.exit(f'error: {out} is not empty and not a data set of this tool')
    out.mkdir(parents=True, exist_ok=True)
    write_json(path, settings)


def image_name(index: int) -> str:
    """Return the file name of an image in its split; the classes take turns."""
    return f'{index % NUM_CLASSES}/{index:06d}.png'


def find_missing(folder: Path, count: int) -> set[str]:
    """Return the names of the images that a split lacks."""
    names = {image_name(index) for index in range(count)}
    return names - {f'{p.parent.name}/{p.name}' for p in folder.glob('*/*.png')}


def make_split(folder: Path, count: int, sources: Sources, settings: Settings) -> None:
    """Write the absent images of a split, then its boxes."""
    for label in range(NUM_CLASSES):
        (folder / str(label)).mkdir(parents=True, exist_ok=True)
    missing = find_missing(folder, count)
    images = []
    for index in tqdm(range(count), desc=folder.name, unit='img', disable=None):
        name, label = image_name(index), index % NUM_CLASSES
        rng = np.random.default_rng([settings.seed, SPLITS.index(folder.name), index])
        if name in missing:
            pixels, digits = draw_scene([label], sources, settings, rng)
            buffer = io.BytesIO()
            # Noise hardly compresses, so spend little time on it.
            Image.fromarray(pixels).save(buffer, 'PNG', compress_level=1)
            write_atomic(folder / name, buffer.getvalue())
        else:
            digits = place_digits([label], sources, settings, rng)
        images.append({'file': name, 'label': label, 'box': digits[0].box})
    write_json(folder / 'boxes.json', {'settings': settings.to_json(), 'images': images})


def number(
    kind: type, low: float, allowed: str, high: float = math.inf
) -> Callable[[str], Any]:
    """Return an argparse type for numbers in [low, high]."""

    def parse(text: str) -> Any:
        try:
            value = kind(text)
        except ValueError:
            value = math.nan
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f'must be {allowed}, got {text!r}')
        return value

    return parse


def parse_args() -> tuple[Path, Settings]:
    """Parse and check the command line."""
    parser = argparse.ArgumentParser(
        description='Make a classification data set of one digit among clutter.',
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    positive = number(int, 1, 'an integer of at least 1')
    natural = number(int, 0, 'an integer of at least 0')
    digit_size = number(int, MIN_DIGIT_SIZE, f'an integer of at least {MIN_DIGIT_SIZE}')
    noise = number(float, 0, 'a number from 0 to 1', 1)
    parser.add_argument('out', type=Path, help='folder to write the data set to')
    for name, kind, text in (
        ('size', positive, 'side of the images in pixels'),
        ('digit_size', digit_size, 'mean side of a digit in pixels'),
        ('num_train', positive, 'number of training images'),
        ('num_val', positive, 'number of validation images'),
        ('num_clutter', natural, 'fragments per image, as far as there is room'),
        ('noise', noise, 'standard deviation of the pixel noise; white is 1'),
        ('seed', natural, 'random seed of the data set'),
    ):
        flag = f'--{name.replace("_", "-")}'
        parser.add_argument(flag, type=kind, default=getattr(Settings, name), help=text)
    args = vars(parser.parse_args())
    out = args.pop('out')
    settings = Settings(**args)
    smallest = math.ceil(settings.digit_size * SCALES[1])
    if settings.size < smallest:
        parser.error(
            f'argument --size: must be at least {smallest} for a digit size of '
            f'{settings.digit_size}, got {settings.size}'
        )
    return out, settings


def main() -> None:
    """Make the data set, or what is absent of it."""
    out, settings = parse_args()
    claim_folder(out, settings.to_json())
    counts = {'train': settings.num_train, 'val': settings.num_val}
    unfinished = [
        split
        for split in SPLITS
        if read_json(out / split / 'boxes.json').get('settings') != settings.to_json()
        or find_missing(out / split, counts[split])
    ]
    if not unfinished:
        print(f'{out} is already complete')
        return
    sources = load_sources()
    for split in unfinished:
        make_split(out / split, counts[split], sources[split], settings)
    print(f'wrote {settings.num_train} train and {settings.num_val} val images to {out}')


if __name__ == '__main__':
    main()
