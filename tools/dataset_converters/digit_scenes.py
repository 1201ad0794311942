# Copyright (c) mmpsvit contributors.
"""Draws digits among clutter; make_cluttered_digits.py writes data sets of them."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from PIL import Image

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


def paint(canvas: np.ndarray, box: Box, mask: np.ndarray, rng: Rng) -> None:
    """Paint a mask onto the canvas in a random bright colour."""
    region = canvas[box[1] : box[3], box[0] : box[2]]
    region += mask[..., None] * (rng.uniform(0.5, 1, 3) - region)


def draw_scene(
    labels: Iterable[int], sources: Sources, settings: Settings, rng: Rng
) -> tuple[np.ndarray, list[Digit]]:
    """Draw digits among clutter and noise.

    Args:
        labels: Class of each digit. A digit that finds no room is left out.
        sources: Source digits of the split.
        settings: Settings of the data set.
        rng: Random generator of the scene.

    Returns:
        The image (size, size, 3) in uint8, and the digits in it.
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
