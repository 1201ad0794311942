# Copyright (c) mmpsvit contributors.
"""Export a classifier to ONNX, or as a program of torch.export.

    python tools/deployment/export_onnx.py CONFIG CHECKPOINT --out psvit.onnx
    python tools/deployment/export_onnx.py CONFIG CHECKPOINT --out psvit.pt2 \\
        --dynamic-batch --shape 256 192

The graph takes ``images``, float32 (B, 3, H, W), RGB, 0 to 255, and gives ``scores``,
float32 (B, classes), after the softmax; a network of one channel takes grey images,
one of four RGBA. The normalisation of the data preprocessor is a part of it; resizing
and cropping are not. Class names and mean and std are in the metadata. The file is run
on image files and compared with what testing computes from them before it gets its
name.
"""

# isort: off
import mmpsvit  # First: it says what to install if something is missing.
# isort: on

import argparse
import copy
import importlib.util
import json
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
import torch.nn.functional as F
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.logging import MMLogger
from mmengine.runner import CheckpointLoader, set_random_seed
from mmpretrain.models import ClsHead, ImageClassifier
from mmpretrain.models.utils import ClsDataPreprocessor
from packaging.version import Version
from PIL import Image
from torch import Tensor, nn

from mmpsvit.cli import add_cfg_options, check_file, read_config, run_main
from mmpsvit.guard import write_atomically
from mmpsvit.visualization import (
    FilePipeline,
    build_trained,
    in_channels,
)

# What torch.onnx itself writes; other versions are conversions of it.
OPSET = 18
ONNX_PACKAGES = ('onnx', 'onnxscript', 'onnxruntime')
# Largest difference of a score, as a part of its image's largest score.
TOLERANCE = 1e-4
# Of the program's metadata, in the .pt2 archive.
METADATA_FILE = 'metadata.json'


class ExportError(RuntimeError):
    """The config cannot be exported, or the exported file computes something else."""


class ScoringClassifier(nn.Module):
    """From RGB images to scores, with BatchNorms folded where the backbone can.

    Args:
        classifier (ImageClassifier): The classifier, in eval mode; it is copied.
        channels (list[int]): For each channel of the images the one that it becomes in
            what the data set gives the classifier.
    """

    def __init__(self, classifier: ImageClassifier, channels: list[int]) -> None:
        super().__init__()
        self.classifier = copy.deepcopy(classifier)
        self.order = [channels.index(place) for place in range(len(channels))]
        if hasattr(self.classifier.backbone, 'switch_to_deploy'):
            self.classifier.backbone.switch_to_deploy()
        self.requires_grad_(False)

    def forward(self, images: Tensor) -> Tensor:
        """Turn images (B, C, H, W), 0 to 255, into scores (B, classes)."""
        inputs = images[:, self.order]
        inputs = self.classifier.data_preprocessor(dict(inputs=inputs))['inputs']
        return self.classifier(inputs).softmax(dim=1)


def parse_args() -> tuple[argparse.Namespace, Config]:
    """Parse the command line and return it with the config."""
    parser = argparse.ArgumentParser(
        description='Export a classifier to ONNX or torch.export. The graph takes '
        'float32 RGB images (B, 3, H, W), 0 to 255, normalises them by itself, and '
        'gives the scores (B, classes) after the softmax.'
    )
    parser.add_argument('config', help='config file')
    parser.add_argument('checkpoint', help='checkpoint file')
    parser.add_argument(
        '--out',
        required=True,
        help='file to write: .onnx, or .pt2 for a program of torch.export',
    )
    parser.add_argument(
        '--dynamic-batch', action='store_true', help='take any number of images'
    )
    parser.add_argument(
        '--batch-size',
        type=int,
        help='number of images without --dynamic-batch (default: 1)',
    )
    parser.add_argument(
        '--shape',
        nargs='+',
        type=int,
        help='size of the images: H W, or one number (default: what the test pipeline '
        'makes of 224 x 224)',
    )
    add_cfg_options(parser)
    args = parser.parse_args()
    if args.shape is not None:
        if len(args.shape) > 2 or min(args.shape) < 1:
            parser.error(f'argument --shape: H W or one number > 0, got {args.shape}')
        args.shape = (args.shape[0], args.shape[-1])
    if args.dynamic_batch and args.batch_size is not None:
        parser.error('argument --batch-size: not with --dynamic-batch')
    if args.batch_size is not None and args.batch_size < 1:
        parser.error(f'argument --batch-size: must be > 0, got {args.batch_size}')
    if Version(torch.__version__) < Version('2.6'):
        parser.error(f'exporting needs PyTorch >= 2.6, got {torch.__version__}')
    if (suffix := Path(args.out).suffix) not in FORMATS:
        parser.error(f'argument --out: must end in .onnx or .pt2, got {args.out}')
    needed = ONNX_PACKAGES if suffix == '.onnx' else ()
    if missing := [name for name in needed if not importlib.util.find_spec(name)]:
        parser.error(
            f'argument --out: .onnx needs {", ".join(missing)}, not installed: '
            f'pip install {" ".join(missing)}'
        )
    check_file(parser, 'checkpoint', args.checkpoint)
    return args, read_config(parser, args.config, args.cfg_options)


def check_model(model: nn.Module) -> None:
    """Raise an ExportError if a model is none that this tool exports."""
    for name, kind in {
        '': ImageClassifier,
        '.data_preprocessor': ClsDataPreprocessor,
        '.head': ClsHead,
    }.items():
        part = getattr(model, name[1:], None) if name else model
        if not isinstance(part, kind):
            raise ExportError(
                f'model{name} of the config must be a {kind.__name__} of MMPretrain '
                f'(one class per image), got {type(part).__name__}'
            )


def describe(
    preprocessor: ClsDataPreprocessor, pipeline: FilePipeline, classes: list[str]
) -> dict[str, str]:
    """The metadata of a file: what its graph takes and gives."""
    channels = pipeline.channels
    if preprocessor.to_rgb and len(channels) == 3:
        channels = [2 - place for place in channels]
    normalisation = dict(in_graph=True)
    for name in ('mean', 'std'):
        values = getattr(preprocessor, name, None)
        if values is not None:
            values = values.flatten().expand(len(channels))
            normalisation[name] = values[channels].tolist()
    count, mode = len(channels), pipeline.mode
    metadata = dict(
        input=f'images: float32 (batch, {count}, height, width), {mode}, 0 to 255',
        output='scores: float32 (batch, classes), after softmax',
        normalisation=json.dumps(normalisation),
        mmpsvit_version=mmpsvit.__version__,
    )
    if classes:
        metadata['classes'] = json.dumps(classes)
    return metadata


def write_onnx(
    scorer: nn.Module, images: Tensor, dynamic: tuple | None, metadata: dict, path: Path
) -> None:
    """Write an ONNX file."""
    program = torch.onnx.export(
        scorer,
        (images,),
        input_names=['images'],
        output_names=['scores'],
        opset_version=OPSET,
        dynamic_shapes=dynamic,
        dynamo=True,
        verbose=False,
    )
    program.model.metadata_props.update(metadata)
    program.save(path, external_data=False)


def write_program(
    scorer: nn.Module, images: Tensor, dynamic: tuple | None, metadata: dict, path: Path
) -> None:
    """Write a program of torch.export."""
    program = torch.export.export(scorer, (images,), dynamic_shapes=dynamic)
    torch.export.save(program, path, extra_files={METADATA_FILE: json.dumps(metadata)})


def open_onnx(path: Path) -> Callable[[Tensor], Tensor]:
    """Open an ONNX file in onnxruntime, on the CPU."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(
        path, options, providers=['CPUExecutionProvider']
    )

    def run(images: Tensor) -> Tensor:
        (scores,) = session.run(['scores'], {'images': images.numpy()})
        return torch.from_numpy(scores)

    return run


def open_program(path: Path) -> Callable[[Tensor], Tensor]:
    """Open a program of torch.export."""
    return torch.export.load(path).module()


FORMATS = {'.onnx': (write_onnx, open_onnx), '.pt2': (write_program, open_program)}


def make_examples(
    pipeline: FilePipeline, count: int, shape: tuple[int, int] | None
) -> tuple[list[dict], Tensor]:
    """Write colourful image files, and pass them through the test pipeline.

    Args:
        pipeline (FilePipeline): The pipeline.
        count (int): How many.
        shape (tuple[int, int], optional): Height and width of the files, and of what
            is made of them; otherwise files of 224 x 224.

    Returns:
        tuple[list[dict], Tensor]: What testing gives the classifier for each; and the
        same images (B, C, H, W) in the colours of the files. Those are found without
        knowledge of the pipeline: each colour passes it as a file of its own that has
        this colour in all channels, so that it comes out the same wherever it is put.
    """
    generator = np.random.default_rng(count)
    mode, bands = pipeline.mode, len(pipeline.mode)
    items, images = [], []

    def pack(image: Image.Image, path: Path) -> dict:
        image.save(path)
        set_random_seed(0)  # for pipelines with random steps
        item = pipeline(path)
        inputs = item['inputs'].float()
        if shape not in (None, tuple(inputs.shape[-2:])):
            inputs = F.interpolate(inputs[None], shape, mode='bilinear')[0].round()
        return dict(item, inputs=inputs)

    with TemporaryDirectory() as folder:
        path = Path(folder) / 'image.png'
        for _ in range(count):
            coarse = generator.integers(256, size=(bands, 8, 8), dtype=np.uint8)
            size = (shape or (224, 224))[::-1]
            planes = [Image.fromarray(plane).resize(size) for plane in coarse]
            items.append(pack(Image.merge(mode, planes), path))
            alone = [pack(Image.merge(mode, [plane] * bands), path) for plane in planes]
            images.append(torch.stack([item['inputs'][0] for item in alone]))
    return items, torch.stack(images)


def compare(
    run: Callable[[Tensor], Tensor],
    classifier: ImageClassifier,
    items: list[dict],
    images: Tensor,
) -> float:
    """Hold the scores of an exported file against those of testing.

    Args:
        run (Callable[[Tensor], Tensor]): Runs the file.
        classifier (ImageClassifier): The classifier.
        items (list[dict]): Images as the data set gives them.
        images (Tensor): The same (B, C, H, W) for the file.

    Returns:
        float: The largest difference of a score, as a part of the largest score of the
        same image. Infinite if the file gives another shape, or NaN.

    Raises:
        ExportError: If the file cannot be run on these images.
    """
    samples = classifier.test_step(pseudo_collate(items))
    expected = torch.stack([sample.pred_score for sample in samples])
    try:
        scores = run(images)
    # Each runtime has its own exceptions.
    except Exception as error:
        raise ExportError(
            f'the exported file fails on {len(images)} images: {error}'
        ) from error
    if scores.shape != expected.shape:
        return float('inf')
    errors = (scores - expected).abs().amax(1) / expected.amax(1)
    return errors.nan_to_num(nan=float('inf')).max().item()


@torch.no_grad()
def export(args: argparse.Namespace, cfg: Config) -> None:
    """Write the file, compare, and only then give it its name."""
    # Otherwise the library's remarks on the model hide the tool's own lines.
    MMLogger.get_instance('export_onnx', log_level='WARNING')
    checkpoint = CheckpointLoader.load_checkpoint(args.checkpoint, 'cpu', 'silent')
    classifier, names = build_trained(cfg, checkpoint, args.checkpoint)
    check_model(classifier)
    pipeline = FilePipeline(cfg, in_channels(classifier))
    batch_sizes = [1, 5] if args.dynamic_batch else [args.batch_size or 1]
    # A pipeline may fail in any way.
    try:
        items, images = make_examples(pipeline, max(batch_sizes), args.shape)
    except Exception as error:
        raise ExportError(
            f"the config's test pipeline fails on an image file ({error!r})"
        ) from error
    if pipeline.channels is None:
        raise ExportError(
            f"the config's test pipeline gives {len(items[0]['inputs'])} channels for "
            f'{pipeline.mode} images; it must give as many as the network takes'
        )

    scorer = ScoringClassifier(classifier, pipeline.channels).eval()
    # An example of one image would fix the batch.
    example = images[: 2 if args.dynamic_batch else batch_sizes[0]]
    dynamic = ({0: torch.export.Dim('batch')},) if args.dynamic_batch else None
    num_classes = scorer(example).shape[1]
    classes = [str(name) for name in names] if len(names) == num_classes else []
    metadata = describe(classifier.data_preprocessor, pipeline, classes)

    write, open_file = FORMATS[Path(args.out).suffix]
    errors = {}
    with write_atomically(args.out) as temporary:
        write(scorer, example, dynamic, metadata, temporary)
        run = open_file(temporary)
        for size in batch_sizes:
            errors[size] = compare(run, classifier, items[:size], images[:size])
        if (worst := max(errors.values())) > TOLERANCE:
            raise ExportError(
                f'the exported scores differ by {worst:.1e} from what testing computes '
                f'from the same image files, allowed is {TOLERANCE:.0e}; nothing is '
                'written'
            )

    for size, error in errors.items():
        print(f'largest relative error, batch of {size}: {error:.1e}')
    batch = 'batch' if args.dynamic_batch else batch_sizes[0]
    known = 'yes' if classes else f'no ({len(names)} names for {num_classes} scores)'
    sizes = ', '.join(map(str, (batch, *images.shape[1:])))
    print(f'input: images ({sizes}), {pipeline.mode}, 0 to 255')
    print(f'output: scores ({batch}, {num_classes})')
    print(f'class names: {known}')
    print(f'written: {args.out}, {Path(args.out).stat().st_size / 1e6:.1f} MB')


def main() -> None:
    """Export, with one line for every mistake of the user."""
    args, cfg = parse_args()
    # PyTorch's exporters say this of themselves.
    for message in ('.*treespec, LeafSpec', 'The given buffer is not writable'):
        warnings.filterwarnings('ignore', message)
    try:
        export(args, cfg)
    except (ExportError, ValueError) as error:
        sys.exit(f'export_onnx.py: error: {error}')


if __name__ == '__main__':
    run_main(main)
