# Copyright (c) mmpsvit contributors.
"""Draws method.png, the figure of the method: an image on its way through a network.

    python docs/images/method.py CONFIG CHECKPOINT IMAGE --out docs/images/method.png

Image, map, points and class are those of the network, a classifier with four sampling
iterations.
"""

import argparse

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch
from mmengine.config import Config
from PIL import Image

from mmpsvit.guard import load_checkpoint
from mmpsvit.visualization import (
    FilePipeline,
    SampledImage,
    build_trained,
    class_name,
    draw_sampling,
    figure_to_rgb,
    sample_images,
)

# In inches, from the lower left corner.
WIDTH, HEIGHT = 8.4, 3.9
PANEL, GAP = 1.06, 0.38
LEFT, COLUMNS, RIGHT = 0.1, [1.56 + t * (PANEL + GAP) for t in range(4)], 7.32
ENCODER, SUM, SAMPLING, PANELS, BUS = 0.47, 1.05, 1.63, 2.22, 3.62
HALF = 0.13  # of a box's height

INK, MAP, TOKENS, OFFSETS = '#1c2733', '#2b7a78', '#2f5fb3', '#d81b60'
FILLS = {INK: '#eef0f2', MAP: '#e0f1f0', TOKENS: '#e4ecfa', OFFSETS: '#fde4ee'}


def run(
    config: str, checkpoint: str, path: str
) -> tuple[SampledImage, np.ndarray, str]:
    """What a network makes of an image: the points, the map (C, H, W), the class."""
    cfg = Config.fromfile(config)
    model, classes = build_trained(cfg, load_checkpoint(checkpoint, 'cpu'), checkpoint)
    pipeline, maps = FilePipeline(cfg), []
    model.backbone.stem.register_forward_hook(lambda *args: maps.append(args[-1]))
    (sampled,) = sample_images(model, [pipeline(path)], pipeline.channels)
    name = class_name(int(sampled.prediction.pred_label), classes)
    return sampled, maps[0][0].numpy(), name


def box(
    canvas: Axes, x: float, y: float, width: float, height: float, text: str, color: str
) -> None:
    """A box with a text in its middle, upright in a narrow one."""
    style = 'round,pad=0,rounding_size=0.06'
    look = dict(facecolor=FILLS[color], edgecolor=color, zorder=3)
    canvas.add_patch(FancyBboxPatch((x, y), width, height, boxstyle=style, **look))
    canvas.text(
        x + width / 2,
        y + height / 2,
        text,
        ha='center',
        va='center',
        rotation=90 if width < height / 2 else 0,
        zorder=4,
    )


def arrow(canvas: Axes, color: str, *corners: tuple[float, float]) -> None:
    """A line through corners, with a head at the last one."""
    canvas.plot(*zip(*corners[:-1], strict=True), color=color, lw=1.3)
    head = dict(arrowstyle='-|>', color=color, lw=1.3, shrinkA=0, shrinkB=0)
    canvas.annotate('', corners[-1], corners[-2], arrowprops=head)


def picture(canvas: Axes, pixels: np.ndarray, x: float, y: float, side: float) -> None:
    """Pixels in a frame."""
    extent = (x, x + side, y, y + side)
    canvas.imshow(pixels, extent=extent, cmap='viridis', zorder=2)
    canvas.plot(
        [x, x + side, x + side, x, x], [y, y, y + side, y + side, y], color=INK, lw=0.8
    )


def draw_stem(canvas: Axes, image: np.ndarray, feat: np.ndarray) -> None:
    """The image, the stem and its map, of which three varied channels are shown."""
    middle = LEFT + PANEL / 2
    picture(canvas, image, LEFT + 0.03, 0.34, PANEL - 0.06)
    canvas.text(middle, 0.16, 'image', ha='center')
    arrow(canvas, INK, (middle, 0.34 + PANEL - 0.06), (middle, SAMPLING - HALF))
    box(canvas, LEFT, SAMPLING - HALF, PANEL, 2 * HALF, 'CNN stem', INK)
    arrow(canvas, MAP, (middle, SAMPLING + HALF), (middle, PANELS))
    for place, channel in enumerate(np.argsort(feat.var(axis=(1, 2)))[-3:]):
        shift = 0.08 * (2 - place)
        picture(canvas, feat[channel], LEFT + shift, PANELS + shift, PANEL - 0.16)
    # A bus takes the map to all iterations.
    canvas.plot([middle, middle], [PANELS + PANEL, BUS], color=MAP, lw=1.3)
    canvas.plot([middle, COLUMNS[-1] + 0.75 * PANEL], [BUS, BUS], color=MAP, lw=1.3)
    size = r'map $F$, $C \times H/4 \times W/4$'
    canvas.text(middle + 0.1, BUS + 0.08, size, color=MAP)


def draw_iteration(canvas: Axes, t: int, sampled: SampledImage) -> None:
    """Iteration t: the map at the points becomes tokens."""
    left, middle = COLUMNS[t - 1], COLUMNS[t - 1] + PANEL / 2
    over = left + 0.75 * PANEL
    arrow(canvas, MAP, (over, BUS), (over, PANELS + PANEL))
    canvas.text(left, PANELS + PANEL + 0.08, f'points $P_{t}$', color=OFFSETS)
    place = (left / WIDTH, PANELS / HEIGHT, PANEL / WIDTH, PANEL / HEIGHT)
    axes = canvas.figure.add_axes(place)
    draw_sampling(axes, sampled.image, sampled.trajectory[:t])

    tokens = f' + $T_{t - 1}$' if t > 1 else ''
    above = PANELS
    for height, step in (
        (SAMPLING, 'bilinear sampling'),
        (SUM, f'+ position{tokens}'),
        (ENCODER, 'encoder layer'),
    ):
        arrow(canvas, TOKENS, (middle, above), (middle, height + HALF))
        box(canvas, left, height - HALF, PANEL, 2 * HALF, step, TOKENS)
        above = height - HALF


def draw_way_on(canvas: Axes, t: int, target: float) -> float:
    """The tokens of iteration t go on to ``target``; where they turn."""
    start = COLUMNS[t - 1] + PANEL
    turn = start + GAP / 2
    arrow(canvas, TOKENS, (start, ENCODER), (turn, ENCODER), (turn, SUM), (target, SUM))
    canvas.text(turn, 0.16, f'tokens $T_{t}$', ha='center', color=TOKENS)
    return turn


def draw_offsets(canvas: Axes, t: int, turn: float) -> None:
    """From the tokens of iteration t to the points of the next one."""
    low, length, target = SUM + 0.27, 0.84, PANELS + 0.6 * PANEL
    arrow(canvas, TOKENS, (turn, SUM), (turn, low))
    box(canvas, turn - HALF, low, 2 * HALF, length, 'offset layer', OFFSETS)
    corners = (turn, low + length), (turn, target), (COLUMNS[t], target)
    arrow(canvas, OFFSETS, *corners)
    canvas.text(turn, target + 0.07, f'$O_{t}$', ha='center', color=OFFSETS)


def draw_encoder(canvas: Axes, name: str) -> None:
    """From the last tokens to the class."""
    side = WIDTH - RIGHT - 0.1
    middle = RIGHT + side / 2
    box(canvas, RIGHT, ENCODER - HALF, side, 2 * HALF, 'class token', INK)
    arrow(canvas, INK, (middle, ENCODER + HALF), (middle, SUM - HALF))
    top = SAMPLING + HALF
    box(canvas, RIGHT, SUM - HALF, side, top - SUM + HALF, 'transformer\nencoder', INK)
    arrow(canvas, INK, (middle, top), (middle, PANELS + 0.2))
    canvas.text(middle + 0.06, (top + PANELS + 0.2) / 2, 'class\ntoken', va='center')
    box(canvas, RIGHT, PANELS + 0.2, side, 2 * HALF, 'head', INK)
    arrow(canvas, INK, (middle, PANELS + 0.2 + 2 * HALF), (middle, PANELS + 0.75))
    canvas.text(middle, PANELS + 0.82, f'“{name}”', ha='center', fontsize=14)


def main() -> None:
    """Draw the figure."""
    parser = argparse.ArgumentParser(description='Draw the figure of the method')
    for name in ('config', 'checkpoint', 'image'):
        parser.add_argument(name)
    parser.add_argument('--out', required=True, help='file of the picture')
    args = parser.parse_args()
    sampled, feat, name = run(args.config, args.checkpoint, args.image)

    with rc_context({'font.size': 8, 'text.color': INK}):
        figure = Figure(figsize=(WIDTH, HEIGHT), dpi=200, facecolor='white')
        canvas = figure.add_axes((0, 0, 1, 1))
        draw_stem(canvas, sampled.image, feat)
        last = len(sampled.trajectory)
        for t in range(1, last + 1):
            draw_iteration(canvas, t, sampled)
            turn = draw_way_on(canvas, t, COLUMNS[t] if t < last else RIGHT)
            if t < last:
                draw_offsets(canvas, t, turn)
        draw_encoder(canvas, name)
        canvas.set(xlim=(0, WIDTH), ylim=(0, HEIGHT), aspect='equal')
        canvas.set_axis_off()
        pixels = figure_to_rgb(figure)
    # A palette makes the file smaller.
    Image.fromarray(pixels).quantize(dither=Image.Dither.NONE).save(args.out)


if __name__ == '__main__':
    main()
