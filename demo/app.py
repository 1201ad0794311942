# Copyright (c) mmpsvit contributors.
"""A page that shows where a network looks: drop an image, watch the points move.

    python demo/app.py
    python demo/app.py --config CONFIG --checkpoint CHECKPOINT --port 8000

It starts with the network of ``make demo``, listens on this machine only, and asks
nothing of the internet. Others can reach it with ``--host 0.0.0.0``; there is no
password.
"""

import argparse
import html
import os
import sys
from pathlib import Path

# Before Gradio is imported: it asks for this when it is.
os.environ['GRADIO_ANALYTICS_ENABLED'] = 'False'

import gradio as gr
import torch
from looker import MAX_POINTS, NO_CHECKPOINT, TOP, Look, Looker, LookError
from mmengine.logging import MMLogger

from mmpsvit.guard import use_safe_loading
from mmpsvit.visualization import (
    blend_heat,
    movement_shares,
    sampling_picture,
    without_drift,
)

TITLE = 'Where does it look?'
INTRO = f"""# {TITLE}
PS-ViT samples its tokens at points that it moves, iteration by iteration: drop an
image, and move the sliders."""
LEGEND = """<p class="legend"><span style="color:#98a1ab">●</span> start grid&emsp;
<span style="color:#c9a400">━</span> path&emsp;
<span style="color:#ff2d78">●</span> where this iteration looks</p>"""
HINT = 'Drop an image, or click an example.'
CSS = """
.gradio-container {max-width: 1120px !important; margin: auto}
.message {padding: .5em .9em; border-radius: 6px; background: #eef2f6; color: #253040}
.message.bad {background: #fde8ec; color: #8c1231}
.legend {text-align: center}
#status, #status > * {padding: 0 !important}
"""
# Gradio's own fonts are fetched by name; those of the system are there.
FONTS = dict(
    font=[gr.themes.Font('system-ui'), gr.themes.Font('sans-serif')],
    font_mono=[gr.themes.Font('ui-monospace'), gr.themes.Font('monospace')],
)


def message(text: str, bad: bool = False) -> str:
    """A line for the page; the text may hold names of other people's files."""
    return f'<p class="message{" bad" * bad}" role="status">{html.escape(text)}</p>'


def draw(
    look: Look | None,
    iteration: int,
    paths: bool,
    heat: bool = False,
    relative: bool = False,
):
    """Draw the points up to an iteration, 0 draws none, on the image or its heat."""
    if look is None:
        return None
    hot = heat and look.heat is not None
    image = blend_heat(look.image, look.heat) if hot else look.image
    # The heat lies where the points are.
    moved = relative and not hot
    (points,) = without_drift([look.trajectory]) if moved else [look.trajectory]
    return sampling_picture(image, points[: int(iteration)], paths)


def build_page(looker: Looker) -> gr.Blocks:
    """Build the page of a looker.

    Args:
        looker (Looker): What finds, loads and runs the networks. What it returns for
            an image is kept per browser window: slider and paths only redraw.

    Returns:
        gr.Blocks: The page, to be launched.
    """
    examples = looker.examples()

    def show(
        image: str | None,
        config: str,
        checkpoint: str | None,
        paths: bool,
        heat: bool,
        relative: bool,
        num_points: int | None = None,
        before: Look | None = None,
    ):
        """Look at an image; the values are for `shown` below."""
        hide = gr.update(visible=False)
        still = gr.update(interactive=False)
        nothing = (image, None, still, hide, hide, None, None)
        if before is None:  # the slider is hidden, and has chosen nothing
            num_points = None
        if image is None:
            bad = not checkpoint
            return *nothing, message(NO_CHECKPOINT if bad else HINT, bad)
        try:
            look = looker.look(image, config, checkpoint, num_points)
        except LookError as error:
            return *nothing, message(str(error), bad=True)
        count = len(look.trajectory)
        height, width = look.image.shape[:2]
        text = (
            f'{Path(image).name}: {look.trajectory.shape[1]} points on {width} x '
            f'{height} pixels, {count} iterations.'
        )
        if shares := movement_shares([look.trajectory]):
            text += f' {shares[0]:.0%} of the movement is common to all.'
        iteration = gr.update(maximum=count, value=count, interactive=True)
        # What the user has chosen is there already, and may have moved on.
        value = dict(value=look.num_points) if num_points is None else {}
        side = gr.update(visible=look.num_points is not None, **value)
        layer = gr.update(visible=look.heat is not None)
        picture = draw(look, count, paths, heat, relative)
        return image, look, iteration, side, layer, picture, look.scores, message(text)

    def start(*layers: bool):
        """List the files anew, and look at the first example if there is a network."""
        config, checkpoint = looker.config, looker.checkpoint
        image = examples[0] if checkpoint and examples else None
        return (
            gr.update(choices=looker.configs(), value=config),
            gr.update(choices=looker.checkpoints(), value=checkpoint),
            *show(image, config, checkpoint, *layers),
        )

    def show_example(chosen: gr.SelectData, *network):
        return show(examples[chosen.index], *network)

    with gr.Blocks(
        title=TITLE, analytics_enabled=False, delete_cache=(3600, 86400)
    ) as page:
        image, look = gr.State(None), gr.State(None)
        gr.Markdown(INTRO)
        status = gr.HTML(elem_id='status')
        with gr.Row():
            with gr.Column(scale=5, min_width=340):
                upload = gr.File(
                    label='Image', file_types=['image'], height=170, elem_id='upload'
                )
                gallery = gr.Gallery(
                    examples,
                    show_label=False,
                    columns=3,
                    height=250,
                    object_fit='contain',
                    allow_preview=False,
                    interactive=False,
                    buttons=[],
                    visible=bool(examples),
                    elem_id='examples',
                )
                scores = gr.Label(
                    label=f'Top {TOP} classes', show_heading=False, elem_id='scores'
                )
            with gr.Column(scale=8, min_width=340):
                picture = gr.Image(
                    label='Where it looks',
                    show_label=False,
                    format='png',
                    height=560,
                    interactive=False,
                    buttons=['download', 'fullscreen'],
                    elem_id='picture',
                )
                gr.HTML(LEGEND)
                iteration = gr.Slider(
                    0,
                    4,
                    value=4,
                    step=1,
                    label='Iteration',
                    info='0: the image alone. 1: the start grid.',
                    interactive=False,
                    buttons=[],
                    elem_id='iteration',
                )
                num_points = gr.Slider(
                    1,
                    MAX_POINTS,
                    step=1,
                    label='Points per side',
                    info='The same weights take any number.',
                    visible=False,
                    buttons=[],
                    elem_id='num-points',
                )
                with gr.Row():
                    paths = gr.Checkbox(
                        True,
                        label='Paths',
                        container=False,
                        elem_id='paths',
                    )
                    heat = gr.Checkbox(
                        False,
                        label="Class token's attention",
                        container=False,
                        visible=False,
                        elem_id='heat',
                    )
                    relative = gr.Checkbox(
                        False,
                        label='Without the drift',
                        container=False,
                        elem_id='relative',
                    )
        with gr.Row():
            config = gr.Dropdown(
                label='Config', allow_custom_value=True, elem_id='config'
            )
            checkpoint = gr.Dropdown(
                label='Checkpoint', allow_custom_value=True, elem_id='checkpoint'
            )

        shown = [image, look, iteration, num_points, heat, picture, scores, status]
        layers = [paths, heat, relative]
        network = [config, checkpoint, *layers]
        hidden = dict(api_visibility='private')
        redraw = dict(show_progress='hidden', trigger_mode='always_last', **hidden)
        page.load(start, layers, [config, checkpoint, *shown], **hidden)
        # Emptied afterwards: the next image can be dropped at once.
        upload.upload(show, [upload, *network, num_points, look], shown, **hidden).then(
            lambda: None, None, upload, **hidden
        )
        gallery.select(show_example, [*network, num_points, look], shown, **hidden)
        # Another network starts with its own number of points.
        for field in (config, checkpoint):
            field.input(show, [image, *network], shown, **hidden)
        num_points.input(show, [image, *network, num_points, look], shown, **redraw)
        for field in (iteration, *layers):
            field.input(draw, [look, iteration, *layers], picture, **redraw)
    return page


def parse_args() -> argparse.Namespace:
    """Parse and check the command line."""
    parser = argparse.ArgumentParser(description='Show where a network looks')
    parser.add_argument('--config', help='config file (default: that of make demo)')
    parser.add_argument(
        '--checkpoint', help='checkpoint file (default: what make demo left)'
    )
    parser.add_argument(
        '--host',
        default='127.0.0.1',
        help='address to listen on (default: 127.0.0.1, this machine only)',
    )
    parser.add_argument(
        '--port', type=int, default=7860, help='port to listen on (default: 7860)'
    )
    parser.add_argument('--device', default='cpu', help='device (default: cpu)')
    args = parser.parse_args()
    for name in ('config', 'checkpoint'):
        path = getattr(args, name)
        if path is not None and not Path(path).expanduser().is_file():
            parser.error(f'argument --{name}: {path} does not exist')
    if not 0 < args.port < 65536:
        parser.error(f'argument --port: must be from 1 to 65535, got {args.port}')
    try:
        torch.empty(0, device=args.device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).split('\n')[0]
        parser.error(f'argument --device: {args.device} cannot be used ({reason})')
    return args


def main() -> None:
    """Serve the page until it is interrupted."""
    args = parse_args()
    use_safe_loading()
    # Otherwise the library's remarks on every network fill the terminal.
    MMLogger.get_instance('demo', log_level='WARNING')
    looker = Looker(args.config, args.checkpoint, args.device)
    if looker.checkpoint is None:
        print(NO_CHECKPOINT, file=sys.stderr)
    page = build_page(looker)
    try:
        _, url, _ = page.launch(
            server_name=args.host,
            server_port=args.port,
            share=False,
            ssr_mode=False,
            mcp_server=False,
            run_history=False,
            footer_links=[],
            max_file_size='20mb',
            theme=gr.themes.Default(primary_hue='pink', **FONTS),
            css=CSS,
            quiet=True,
            prevent_thread_lock=True,
        )
    except OSError as error:
        reason = ' '.join(str(error).split())
        sys.exit(f'app.py: error: cannot listen on {args.host}:{args.port} ({reason})')
    print(f'Open {url} in a browser; Ctrl+C ends this.', flush=True)
    page.block_thread()


if __name__ == '__main__':
    main()
