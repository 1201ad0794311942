# Copyright (c) mmpsvit contributors.
"""Runs make_cluttered_digits.py on small settings, and reads what it writes."""

import json

import numpy as np
from PIL import Image
from scripts import run_in_process

TOOL = 'tools/dataset_converters/make_cluttered_digits.py'
SMALL = ('--size', '64', '--num-train', '30', '--num-val', '20')


def run(out, *args, code=0):
    return run_in_process(TOOL, out, *SMALL, *args, code=code)


def make(out, *args):
    # One line: no progress bar outside a terminal.
    assert run(out, *args).count('\n') == 1
    return out


def refused(out, *args):
    """What the tool says to a folder, in one line."""
    output = run(out, *args, code=1)
    assert output.count('\n') == 1
    return output


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
