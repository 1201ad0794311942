# Copyright (c) mmpsvit contributors.
"""Draw what a network's decision rests on, where it really looked.

    python tools/visualization/vis_cam.py CONFIG CHECKPOINT IMAGE --out cam.png

Grad-CAM of the predicted class (needs `pip install grad-cam`), or with
`--method attention` the attention of the class token, laid at the points of the last
iteration. `--at grid` lays it where the tokens began, as tools for ViTs do, `--at both`
draws the two side by side. Without IMAGE, images of the config's test data set are
drawn.
"""

# isort: off
import mmpsvit  # noqa: F401  First: it says what to install if something is missing.
# isort: on

import argparse

from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from vis_sampling import build_parser, draw_or_exit, load

from mmpsvit.cli import run_main
from mmpsvit.guard import write_atomically
from mmpsvit.visualization import (
    EXPLANATION_METHODS,
    blend_heat,
    explain,
    first_view,
    heat_map,
    sample_images,
    sampling_figure,
)

# The iteration whose points the heat is laid at.
PLACES = {'points': -1, 'grid': 0}


def draw(args: argparse.Namespace, cfg: Config) -> None:
    """Explain the images and write the picture."""
    model, items, *rest = load(args, cfg)
    items = [first_view(item) for item in items]
    sampled = sample_images(model, items, *rest)
    places = [args.at] if args.at in PLACES else [*PLACES]
    panels = []
    for item, (image, _, _, title) in zip(items, sampled, strict=True):
        inputs = model.data_preprocessor(pseudo_collate([item]), False)['inputs']
        heat, trajectory, grid_size = explain(model, inputs, args.method)
        for place in places:
            points = trajectory[:, PLACES[place]]
            (hot,) = heat_map(heat, points, image.shape[:2], grid_size).cpu().numpy()
            text = title if place == places[0] else 'the same on the start grid'
            panels.append((blend_heat(image, hot), points.cpu().numpy(), text))
    columns = args.columns * len(places)
    figure = sampling_figure(panels, columns, paths=False)
    with write_atomically(args.out) as temporary:
        figure.savefig(temporary)
    print(f'{len(items)} images drawn: {args.out}')


def main() -> None:
    """Draw what the decisions rest on."""
    parser = build_parser('Draw what a decision rests on')
    parser.add_argument(
        '--method',
        choices=EXPLANATION_METHODS,
        default='gradcam',
        help='Grad-CAM, or the attention of the class token (default: gradcam)',
    )
    parser.add_argument(
        '--at',
        choices=[*PLACES, 'both'],
        default='points',
        help='where the heat is laid: at the points that were sampled, or on the grid '
        'where they began (default: points)',
    )
    draw_or_exit(draw, parser)


if __name__ == '__main__':
    run_main(main)
