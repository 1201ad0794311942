# Copyright (c) mmpsvit contributors.
"""Make a small image data set of digits among clutter, to classify or to detect.

Each image shows one handwritten digit, with ``--coco`` several (from scikit-learn's
bundled 8x8 digits, so nothing is downloaded) at random places on a larger noisy RGB
canvas, among fragments of other digits. No source digit is used in both splits. On
disk::

    OUT/settings.json            the settings, written first
    OUT/train/3/000123.png       image 123 of the split, class '3'
    OUT/train/boxes.json         written last
    OUT/val/...                  the same

``boxes.json`` holds ``{"settings": {...}, "images": [{"file": "3/000123.png",
"label": 3, "box": [x1, y1, x2, y2]}, ...]}``: the pixel box around the digit's
strokes, ``x2`` and ``y2`` exclusive. Loaders that scan class folders ignore it.

With ``--coco``, images show 1 to ``--max-digits`` digits of random classes (fewer,
but at least one, where there is no room), whose boxes do not overlap::

    OUT/settings.json            the settings, written first
    OUT/train/000123.png         image 123 of the split, image_id 123
    OUT/annotations/train.json   COCO instances, written last
    OUT/val/..., OUT/annotations/val.json

Categories 1 to 10 are called '0' to '9'. ``bbox`` is the box around the digit's
strokes, ``segmentation`` the strokes themselves (as uncompressed RLE, since digits have
holes; not for ``poly2mask=False``) and ``area`` the number of their pixels: with the
default sizes, all digits are "small" in COCO's terms. Fragments are not annotated. For
MMDetection::

    dict(
        type='CocoDataset',
        data_root='data/cluttered_coco',
        ann_file='annotations/train.json',
        data_prefix=dict(img='train/'),
        metainfo=dict(classes=tuple('0123456789')),
    )

The same command continues an interrupted run. Examples::

    python tools/dataset_converters/make_cluttered_digits.py data/cluttered_digits
    python tools/dataset_converters/make_cluttered_digits.py data/cluttered_coco --coco
"""

import argparse
import io
import json
import math
import os
import sys
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from tqdm import tqdm

NUM_CLASSES = 10
SPLITS = ('train', 'val')
MIN_DIGIT_SIZE = 16  # smaller digits are hard to read
SCALES = (0.8, 1.2)  # of the digit size
FRAGMENT_SCALES = (0.3, 0.4)  # of the digit size; at most half of any digit
BORDERED = 10 / 8  # side of a source image with its border, in sides without
VISIBLE = 0.15  # opacity from which a stroke is seen
MARGIN = 2  # pixels between digits and fragments

Box = tuple[int, int, int, int]
Rng = np.random.Generator


@dataclass(frozen=True)
class Settings:
    """Everything that decides the content of a data set."""

    size: int = 96
    digit_size: int = 28
    num_train: int = 12800
    num_val: int = 1000
    num_clutter: int = 16
    noise: float = 0.08
    seed: int = 0
    generator: str = 'make_cluttered_digits'
    version: int = 1  # to be raised when the same settings give other images


@dataclass(frozen=True)
class CocoSettings(Settings):
    """Everything that decides the content of a data set in COCO's format."""

    coco: bool = True
    max_digits: int = 3


class Sources(NamedTuple):
    """Source digits: images (N, 10, 10) in [0, 1] and labels (N,)."""

    images: np.ndarray
    labels: np.ndarray


class Digit(NamedTuple):
    """A digit of a scene: its source, class, box and the box's opacity mask."""

    source: int
    label: int
    box: Box
    mask: np.ndarray


Scenes = Iterable[tuple[str, list[Digit]]]  # file and digits of each image


def split_indices(labels: np.ndarray) -> dict[str, np.ndarray]:
    """Return the source digits of each split: of each class, a fifth is for val."""
    classes = [np.flatnonzero(labels == label) for label in range(NUM_CLASSES)]
    val = np.sort(np.concatenate([indices[::5] for indices in classes]))
    return {'train': np.setdiff1d(np.arange(len(labels)), val), 'val': val}


def load_sources(split: str) -> Sources:
    """Load the source digits of a split."""
    # Imported here: it takes a second, which a finished data set need not wait for.
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    images = (images.reshape(-1, 8, 8) / 16).astype(np.float32)
    # Digits fill their 8x8 pixels: a border keeps the ends of the strokes round.
    images = np.pad(images, ((0, 0), (1, 1), (1, 1)))
    indices = split_indices(labels)[split]
    return Sources(images[indices], labels[indices])


def enlarge(image: np.ndarray, settings: Settings, rng: Rng) -> np.ndarray:
    """Scale a source digit to a random size; return its opacity mask."""
    side = round(settings.digit_size * BORDERED * rng.uniform(*SCALES))
    smooth = Image.fromarray(image).resize((side, side), Image.Resampling.BICUBIC)
    # A steeper ramp turns the blur of the interpolation into clear strokes.
    return ((np.asarray(smooth) - 0.45) / 0.3).clip(0, 1)


def cut_fragment(image: np.ndarray, settings: Settings, rng: Rng) -> np.ndarray:
    """Cut a small random rectangle out of the mask of an enlarged source digit."""
    mask = enlarge(image, settings, rng)
    shape = settings.digit_size * rng.uniform(*FRAGMENT_SCALES, 2)
    height, width = map(round, shape.tolist())
    # Around a pixel of a stroke, so that no fragment is blank.
    strokes = np.flatnonzero(mask > 0.5)
    y, x = divmod(int(strokes[rng.integers(len(strokes))]), len(mask))
    top = min(max(y - height // 2, 0), len(mask) - height)
    left = min(max(x - width // 2, 0), len(mask) - width)
    return mask[top : top + height, left : left + width]


def take_place(mask: np.ndarray, free: np.ndarray, rng: Rng) -> Box | None:
    """Find a random box in the free pixels, if there is room, and mark it as taken."""
    height, width = mask.shape
    for _ in range(50):
        y1 = int(rng.integers(len(free) - height + 1))
        x1 = int(rng.integers(len(free) - width + 1))
        y2, x2 = y1 + height, x1 + width
        if free[y1:y2, x1:x2].all():
            top, left = max(y1 - MARGIN, 0), max(x1 - MARGIN, 0)
            free[top : y2 + MARGIN, left : x2 + MARGIN] = False
            return x1, y1, x2, y2
    return None


def place_digits(
    labels: Iterable[int], sources: Sources, settings: Settings, rng: Rng
) -> tuple[list[Digit], np.ndarray]:
    """Choose the digits of a scene and their places; this draws nothing.

    Args:
        labels: Class of each digit. A digit that finds no room is left out.
        sources: Source digits of the split.
        settings: Settings of the data set.
        rng: Random generator of the scene.

    Returns:
        The digits, and a (size, size) mask of the pixels that are still free.
    """
    digits = []
    free = np.ones((settings.size, settings.size), bool)
    for label in labels:
        source = int(rng.choice(np.flatnonzero(sources.labels == label)))
        mask = enlarge(sources.images[source], settings, rng)
        left, top, right, bottom = Image.fromarray(mask > VISIBLE).getbbox()
        mask = mask[top:bottom, left:right]
        if box := take_place(mask, free, rng):
            digits.append(Digit(source, label, box, mask))
    return digits, free


def paint(canvas: np.ndarray, box: Box, mask: np.ndarray, rng: Rng) -> None:
    """Paint a mask onto the canvas in a random bright colour."""
    region = canvas[box[1] : box[3], box[0] : box[2]]
    region += mask[..., None] * (rng.uniform(0.5, 1, 3) - region)


def draw_scene(
    labels: Iterable[int], sources: Sources, settings: Settings, rng: Rng
) -> tuple[np.ndarray, list[Digit]]:
    """Draw digits among clutter and noise; the arguments are as in place_digits.

    Returns:
        The image (size, size, 3) in uint8, and the digits in it.
    """
    # Placed first, so that place_digits alone finds the same boxes.
    digits, free = place_digits(labels, sources, settings, rng)
    canvas = np.full((*free.shape, 3), rng.uniform(0, 0.3, 3), np.float32)
    for digit in digits:
        paint(canvas, digit.box, digit.mask, rng)

    # Fragments touch nothing: one beside a 1 could make it a 7, and two could make
    # a digit. They come from all classes: a missing one would give the answer away.
    others = np.delete(sources.images, [digit.source for digit in digits], axis=0)
    for index in rng.integers(len(others), size=settings.num_clutter):
        mask = cut_fragment(others[index], settings, rng)
        if box := take_place(mask, free, rng):
            paint(canvas, box, mask, rng)

    canvas += settings.noise * rng.standard_normal(canvas.shape, np.float32)
    return (canvas.clip(0, 1) * 255).round().astype(np.uint8), digits


def write_atomic(path: Path, data: bytes) -> None:
    """Write a file under a temporary name and rename it.

    The temporary name is fixed: what a killed run left is reused by the next run.
    """
    temporary = path.with_name(f'.{path.name}.tmp')
    temporary.write_bytes(data)
    os.replace(temporary, path)


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object; an absent or broken file gives an empty one."""
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def claim_folder(out: Path, settings: dict[str, Any]) -> None:
    """Write the settings to a new folder; exit if the folder is something else."""
    old = read_json(out / 'settings.json')
    if old.get('generator') == settings['generator']:
        # A data set for the other task has settings that this one lacks.
        names = {**settings, **old}
        values = {k: (old.get(k, 'unset'), settings.get(k, 'unset')) for k in names}
        texts = [f'{k} was {a}, now {b}' for k, (a, b) in values.items() if a != b]
        if texts:
            sys.exit(f'error: {out} has other settings: {"; ".join(texts)}')
    elif out.is_file() or {p.name for p in out.glob('*')} - {'.settings.json.tmp'}:
        sys.exit(f'error: {out} is not empty and not a data set of this tool')
    else:
        out.mkdir(parents=True, exist_ok=True)
        write_atomic(out / 'settings.json', json.dumps(settings).encode())


def choose_labels(index: int, settings: Settings, rng: Rng) -> list[int]:
    """Choose the classes of the digits of a scene."""
    if isinstance(settings, CocoSettings):
        count = int(rng.integers(1, settings.max_digits + 1))
        return rng.integers(NUM_CLASSES, size=count).tolist()
    return [index % NUM_CLASSES]


def class_folder_record(settings: Settings, scenes: Scenes) -> dict[str, Any]:
    """Return the content of boxes.json."""
    images = [
        {'file': name, 'label': digit.label, 'box': digit.box}
        for name, (digit,) in scenes
    ]
    return {'settings': asdict(settings), 'images': images}


def coco_record(settings: Settings, scenes: Scenes) -> dict[str, Any]:
    """Return the content of a COCO annotation file; its loaders ignore 'settings'."""
    size = settings.size
    images, annotations = [], []
    for image_id, (name, digits) in enumerate(scenes):
        images.append(
            {'id': image_id, 'file_name': name, 'width': size, 'height': size}
        )
        for digit in digits:
            x1, y1, x2, y2 = digit.box
            counts = run_lengths(digit, size)
            annotations.append(
                {
                    'id': len(annotations) + 1,  # pycocotools takes 0 for no match
                    'image_id': image_id,
                    'category_id': digit.label + 1,
                    'bbox': [x1, y1, x2 - x1, y2 - y1],
                    'area': sum(counts[1::2]),
                    'iscrowd': 0,
                    'segmentation': {'size': [size, size], 'counts': counts},
                }
            )
    return {
        'settings': asdict(settings),
        'info': {'description': 'Digits among clutter'},
        'licenses': [],
        'images': images,
        'annotations': annotations,
        'categories': [
            {'id': label + 1, 'name': str(label), 'supercategory': 'digit'}
            for label in range(NUM_CLASSES)
        ],
    }


def run_lengths(digit: Digit, size: int) -> list[int]:
    """Return COCO's run lengths, column by column: others, digit, others, ..."""
    pixels = np.zeros((size, size), bool)
    x1, y1, x2, y2 = digit.box
    pixels[y1:y2, x1:x2] = digit.mask > VISIBLE
    changes = np.flatnonzero(np.diff(pixels.ravel('F'), prepend=False))
    return np.diff(changes, prepend=0, append=pixels.size).tolist()


def draw_missing(
    folder: Path, names: list[str], missing: set[str], settings: Settings
) -> Scenes:
    """Go through the scenes of a split, and write those images that are missing."""
    sources = load_sources(folder.name)
    for index, name in enumerate(tqdm(names, folder.name, unit='img', disable=None)):
        rng = np.random.default_rng([settings.seed, SPLITS.index(folder.name), index])
        labels = choose_labels(index, settings, rng)
        if name in missing:
            pixels, digits = draw_scene(labels, sources, settings, rng)
            buffer = io.BytesIO()
            # Noise hardly compresses, so spend little time on it.
            Image.fromarray(pixels).save(buffer, 'PNG', compress_level=1)
            write_atomic(folder / name, buffer.getvalue())
        else:
            digits, _ = place_digits(labels, sources, settings, rng)
        yield name, digits


def make_split(folder: Path, count: int, settings: Settings) -> bool:
    """Write what is missing of a split, boxes last; return whether anything was."""
    names = [f'{index:06d}.png' for index in range(count)]
    if isinstance(settings, CocoSettings):
        path = folder.parent / 'annotations' / f'{folder.name}.json'
        folders, make_record = [folder, path.parent], coco_record
    else:
        path = folder / 'boxes.json'
        names = [f'{index % NUM_CLASSES}/{name}' for index, name in enumerate(names)]
        folders = [folder / str(label) for label in range(NUM_CLASSES)]
        make_record = class_folder_record
    missing = {name for name in names if not (folder / name).exists()}
    if not missing and read_json(path).get('settings') == asdict(settings):
        return False

    for each in folders:
        each.mkdir(parents=True, exist_ok=True)
    record = make_record(settings, draw_missing(folder, names, missing, settings))
    write_atomic(path, json.dumps(record).encode())
    return True


def parse_args() -> tuple[Path, Settings]:
    """Parse and check the command line."""
    parser = argparse.ArgumentParser(
        description='Make a data set of digits among clutter, one per image, in class '
        'folders, or with --coco several, to detect.',
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument('out', type=Path, help='folder to write the data set to')
    parser.add_argument(
        '--coco', action='store_true', help="several digits per image, in COCO's format"
    )
    table = (
        ('digit_size', MIN_DIGIT_SIZE, math.inf, 'mean height of a digit in pixels'),
        ('size', 1, math.inf, 'side of the images in pixels'),
        ('num_train', 1, math.inf, 'number of training images'),
        ('num_val', 1, math.inf, 'number of validation images'),
        ('num_clutter', 0, math.inf, 'fragments per image, if there is room'),
        ('noise', 0, 1, 'standard deviation of the pixel noise; white is 1'),
        ('seed', 0, math.inf, 'random seed of the data set'),
        ('max_digits', 1, math.inf, 'digits per image, at most; needs --coco'),
    )
    for name, _, _, text in table:
        flag, default = f'--{name.replace("_", "-")}', getattr(CocoSettings, name)
        parser.add_argument(flag, type=type(default), default=default, help=text)
    args = vars(parser.parse_args())
    for name, low, high, _ in table:
        if name == 'size':  # the largest digit must fit; digit_size was checked
            low = math.ceil(args['digit_size'] * SCALES[1] * BORDERED)
        if not low <= args[name] <= high:
            flag = f'--{name.replace("_", "-")}'
            allowed = f'at least {low}' if high == math.inf else f'from {low} to {high}'
            parser.error(f'argument {flag}: must be {allowed}, got {args[name]}')
    out = args.pop('out')
    if args['coco']:
        return out, CocoSettings(**args)
    if args.pop('max_digits') != CocoSettings.max_digits:
        parser.error('argument --max-digits: needs --coco')
    del args['coco']
    return out, Settings(**args)


def main() -> None:
    """Make the data set, or what is missing of it."""
    out, settings = parse_args()
    claim_folder(out, asdict(settings))
    counts = {'train': settings.num_train, 'val': settings.num_val}
    changed = [make_split(out / split, counts[split], settings) for split in SPLITS]
    state = 'is complete' if any(changed) else 'was complete already'
    print(f'{out} {state}: {settings.num_train} train, {settings.num_val} val images')


if __name__ == '__main__':
    main()
