# Copyright (c) mmpsvit contributors.
"""Runs make_cluttered_digits.py on small settings, and reads what it writes."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image

TOOL = Path(__file__).parents[2] / 'tools/dataset_converters/make_cluttered_digits.py'
SMALL = ('--size', '64', '--num-train', '30', '--num-val', '20')


def run(out, *args):
    return subprocess.run(
        [sys.executable, TOOL, out, *SMALL, *args], capture_output=True, text=True
    )


def make(out, *args):
    result = run(out, *args)
    assert result.returncode == 0, result.stderr
    assert result.stderr == ''  # no progress bar outside a terminal
    return out


def read_tree(out):
    files = sorted(path for path in out.rglob('*') if path.is_file())
    return {str(path.relative_to(out)): path.read_bytes() for path in files}


def read_boxes(out, split='train'):
    return json.loads((out / split / 'boxes.json').read_text())


def read_image(out, split, entry):
    name = entry.get('file') or entry['file_name']
    return np.asarray(Image.open(out / split / name)).astype(int)


def read_coco(out, split='train'):
    """The annotation file, and the annotations of each image."""
    record = json.loads((out / f'annotations/{split}.json').read_text())
    by_image = {image['id']: [] for image in record['images']}
    for annotation in record['annotations']:
        by_image[annotation['image_id']].append(annotation)
    return record, by_image


def decode(segmentation):
    """The mask of run lengths, column by column."""
    counts = segmentation['counts']
    values = np.arange(len(counts)) % 2 == 1
    return np.repeat(values, counts).reshape(segmentation['size'], order='F')
