# Copyright (c) mmpsvit contributors.
"""Runs make_cluttered_digits.py on small settings, and reads what it writes."""

import contextlib
import importlib
import io
import json
import subprocess
import sys
from pathlib import Path
from unittest import mock

import numpy as np
from PIL import Image

FOLDER = Path(__file__).parents[2] / 'tools' / 'dataset_converters'
SMALL = ('--size', '64', '--num-train', '30', '--num-val', '20')


def run(out, *args):
    """Run the tool in this process, which has imported what it needs."""
    with mock.patch.object(sys, 'path', [str(FOLDER), *sys.path]):
        tool = importlib.import_module('make_cluttered_digits')
    argv = ['make_cluttered_digits.py', str(out), *SMALL, *args]
    code, stdout, stderr = 0, io.StringIO(), io.StringIO()
    with (
        mock.patch.object(sys, 'argv', argv),
        contextlib.redirect_stdout(stdout),
        contextlib.redirect_stderr(stderr),
    ):
        try:
            tool.main()
        except SystemExit as stopped:
            # As Python does it: a text is the message of code 1.
            code = stopped.code
            if isinstance(code, str):
                print(code, file=sys.stderr)
                code = 1
    output = stdout.getvalue(), stderr.getvalue()
    return subprocess.CompletedProcess(argv, code, *output)


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
