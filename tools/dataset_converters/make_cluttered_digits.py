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

The same command goes on, with the split that was interrupted. Examples::

    python tools/dataset_converters/make_cluttered_digits.py data/cluttered_digits
    python tools/dataset_converters/make_cluttered_digits.py data/cluttered_coco --coco
"""

import argparse
import json
import math
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from digit_scenes import (
    BORDERED,
    MIN_DIGIT_SIZE,
    NUM_CLASSES,
    SCALES,
    SPLITS,
    VISIBLE,
    CocoSettings,
    Digit,
    Rng,
    Scenes,
    Settings,
    draw_scene,
    load_sources,
)
from PIL import Image
from tqdm import tqdm


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Write a JSON file in full or not at all."""
    # Imported here: it takes seconds, which a finished data set need not wait for.
    from mmpsvit.guard import write_atomically

    with write_atomically(path) as temporary:
        temporary.write_text(json.dumps(value))


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
    # A killed run may have left a temporary file.
    elif out.is_file() or set(out.glob('*')) - set(out.glob('.settings.*.tmp.json')):
        sys.exit(f'error: {out} is not empty and not a data set of this tool')
    else:
        write_json(out / 'settings.json', settings)


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


def draw_split(folder: Path, names: list[str], settings: Settings) -> Scenes:
    """Draw the scenes of a split, and write their images."""
    sources = load_sources(folder.name)
    for index, name in enumerate(tqdm(names, folder.name, unit='img', disable=None)):
        rng = np.random.default_rng([settings.seed, SPLITS.index(folder.name), index])
        labels = choose_labels(index, settings, rng)
        pixels, digits = draw_scene(labels, sources, settings, rng)
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        # Noise hardly compresses, so spend little time on it.
        Image.fromarray(pixels).save(path, compress_level=1)
        yield name, digits


def make_split(folder: Path, count: int, settings: Settings) -> bool:
    """Write a split, boxes last, unless it is there; return whether it was not."""
    names = [f'{index:06d}.png' for index in range(count)]
    path, make_record = folder / 'boxes.json', class_folder_record
    if isinstance(settings, CocoSettings):
        path = folder.parent / 'annotations' / f'{folder.name}.json'
        make_record = coco_record
    else:
        names = [f'{index % NUM_CLASSES}/{name}' for index, name in enumerate(names)]
    if read_json(path).get('settings') == asdict(settings):
        return False
    write_json(path, make_record(settings, draw_split(folder, names, settings)))
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
    """Make the data set, or those splits that are missing.

    The images of a split that has been made are not looked at.
    """
    out, settings = parse_args()
    claim_folder(out, asdict(settings))
    counts = {'train': settings.num_train, 'val': settings.num_val}
    changed = [make_split(out / split, counts[split], settings) for split in SPLITS]
    state = 'is complete' if any(changed) else 'was made already'
    print(f'{out} {state}: {settings.num_train} train, {settings.num_val} val images')


if __name__ == '__main__':
    main()
