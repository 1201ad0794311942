# Copyright (c) mmpsvit contributors.
"""Export a classifier to ONNX, or as a program of torch.export.

    python tools/deployment/export_onnx.py CONFIG CHECKPOINT --out psvit.onnx
    python tools/deployment/export_onnx.py CONFIG CHECKPOINT --out psvit.pt2 \\
        --dynamic-batch --shape 256 192

The graph takes ``images``, float32 (B, 3, H, W), RGB, 0 to 255, and gives ``scores``,
float32 (B, classes), after the softmax. The normalisation of the data preprocessor is
a part of it; resizing and cropping are not. Class names and mean and std are in the
metadata. The file is run and compared with the classifier before it gets its name.
"""

# isort: off
import mmpsvit  # First: it says what to install if something is missing.
# isort: on

import argparse
import copy
import importlib.util
import json
import os
import sys
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from mmengine.config import Config, DictAction
from mmengine.logging import MMLogger
from mmpretrain.models import ClsHead, ImageClassifier
from mmpretrain.models.utils import ClsDataPreprocessor
from mmpretrain.registry import DATASETS
from torch import Tensor, nn
from tqdm import tqdm

from mmpsvit.cli import read_config, run_main
from mmpsvit.compat import IS_NEW_TORCH
from mmpsvit.guard import load_checkpoint
from mmpsvit.visualization import build_trained

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
        takes_bgr (bool): Whether its network wants BGR images.
    """

    def __init__(self, classifier: ImageClassifier, takes_bgr: bool) -> None:
        super().__init__()
        self.classifier = copy.deepcopy(classifier)
        # For the preprocessor, to_rgb means to swap the colours.
        self.classifier.data_preprocessor.to_rgb = takes_bgr
        if hasattr(self.classifier.backbone, 'switch_to_deploy'):
            self.classifier.backbone.switch_to_deploy()
        self.requires_grad_(False)

    def forward(self, images: Tensor) -> Tensor:
        """Turn images (B, 3, H, W), RGB, 0 to 255, into scores (B, classes)."""
        inputs = self.classifier.data_preprocessor(dict(inputs=images))['inputs']
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
        default=[224],
        help='size of the images: H W, or one number (default: 224)',
    )
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=DictAction,
        help='settings of the config to override, as key=value',
    )
    args = parser.parse_args()
    if len(args.shape) > 2 or min(args.shape) < 1:
        parser.error(f'argument --shape: H W or one number > 0, got {args.shape}')
    args.shape = tuple(args.shape if len(args.shape) == 2 else args.shape * 2)
    if args.dynamic_batch and args.batch_size is not None:
        parser.error('argument --batch-size: not with --dynamic-batch')
    if args.batch_size is not None and args.batch_size < 1:
        parser.error(f'argument --batch-size: must be > 0, got {args.batch_size}')
    if not IS_NEW_TORCH:
        parser.error(f'exporting needs PyTorch >= 2.6, got {torch.__version__}')
    _check_out(parser, Path(args.out))
    if not Path(args.checkpoint).is_file():
        parser.error(f'argument checkpoint: no file {args.checkpoint}')
    return args, read_config(parser, args.config, args.cfg_options)


def _check_out(parser: argparse.ArgumentParser, out: Path) -> None:
    if out.suffix not in ('.onnx', '.pt2'):
        parser.error(f'argument --out: must end in .onnx or .pt2, got {out}')
    if not out.parent.is_dir():
        parser.error(f'argument --out: folder {out.parent} does not exist')
    if out.is_dir():
        parser.error(f'argument --out: {out} is a folder')
    if out.suffix == '.onnx':
        missing = [name for name in ONNX_PACKAGES if not importlib.util.find_spec(name)]
        if missing:
            parser.error(
                f'argument --out: .onnx needs {", ".join(missing)}, not installed: '
                f'pip install {" ".join(missing)}'
            )


def check_model(model: nn.Module) -> None:
    """Raise an ExportError if a model is none that this tool exports."""
    parts = {
        'model': (model, ImageClassifier),
        'model.data_preprocessor': (model.data_preprocessor, ClsDataPreprocessor),
        'model.head': (getattr(model, 'head', None), ClsHead),
    }
    for name, (part, kind) in parts.items():
        if not isinstance(part, kind):
            raise ExportError(
                f'{name} of the config must be a {kind.__name__} of MMPretrain '
                f'(one class per image), got {type(part).__name__}'
            )


def find_class_names(cfg: Config) -> list[str]:
    """The names of the classes that the config's data sets know; may be none."""
    candidates = []
    for name in ('test_dataloader', 'val_dataloader', 'train_dataloader'):
        dataset = _dataset_of(cfg, name)
        candidates.append((dataset.get('metainfo') or {}).get('classes'))
        kind = dataset.get('type')
        kind = DATASETS.get(kind) if isinstance(kind, str) else kind
        candidates.append(getattr(kind, 'METAINFO', {}).get('classes'))
    # A string would be the name of a file.
    found = (names for names in candidates if isinstance(names, list | tuple))
    return list(next(found, ()))


def takes_bgr_images(cfg: Config, preprocessor: ClsDataPreprocessor) -> bool:
    """Whether the network sees BGR.

    Images read from files are BGR, those of data sets that hold arrays, such as CIFAR,
    are RGB; the preprocessor may swap either.
    """
    pipeline = _dataset_of(cfg, 'test_dataloader').get('pipeline', ())
    reads_files = any('LoadImageFromFile' in str(step['type']) for step in pipeline)
    return reads_files != preprocessor.to_rgb


def _dataset_of(cfg: Config, dataloader: str) -> dict:
    return (cfg.get(dataloader) or {}).get('dataset') or {}


def describe(
    preprocessor: ClsDataPreprocessor, takes_bgr: bool, classes: list[str]
) -> dict[str, str]:
    """The metadata of a file: what its graph takes and gives."""
    normalisation = dict(in_graph=True)
    for name in ('mean', 'std'):
        values = getattr(preprocessor, name, None)
        if values is not None:
            values = values.flatten()
            normalisation[name] = (values.flip(0) if takes_bgr else values).tolist()
    metadata = dict(
        input='images: float32 (batch, 3, height, width), RGB, 0 to 255',
        output='scores: float32 (batch, classes), after softmax',
        normalisation=json.dumps(normalisation),
        mmpsvit_version=mmpsvit.__version__,
    )
    if classes:
        metadata['classes'] = json.dumps(classes)
    return metadata


def write_onnx(
    scorer: nn.Module, images: Tensor, dynamic: tuple | None, metadata: dict, path: Path
) -> str:
    """Write an ONNX file; return which operators in it sample points."""
    import onnx

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

    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    (opset,) = (item.version for item in model.opset_import if not item.domain)
    nodes = [node for node in model.graph.node if node.op_type == 'GridSample']
    counts = Counter()
    for node in nodes:
        options = {item.name: item.s.decode() for item in node.attribute if item.s}
        counts[f'GridSample ({options["mode"]}, {options["padding_mode"]})'] += 1
    return f'{_list(counts)}, opset {opset}'


def write_program(
    scorer: nn.Module, images: Tensor, dynamic: tuple | None, metadata: dict, path: Path
) -> str:
    """Write a program of torch.export; return which operators in it sample points."""
    program = torch.export.export(scorer, (images,), dynamic_shapes=dynamic)
    torch.export.save(program, path, extra_files={METADATA_FILE: json.dumps(metadata)})
    names = [str(node.target) for node in program.graph.nodes]
    return _list(
        Counter(
            name for name in names if 'embedding_bag' in name or 'grid_sampler' in name
        )
    )


def _list(counts: Counter) -> str:
    return ', '.join(f'{count} x {name}' for name, count in counts.items()) or 'none'


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


def make_images(count: int, shape: tuple[int, int]) -> Tensor:
    """Smooth random RGB images with whole numbers from 0 to 255, always the same."""
    generator = torch.Generator().manual_seed(count)
    coarse = torch.randint(256, (count, 3, 8, 8), generator=generator).float()
    return F.interpolate(coarse, shape, mode='bilinear').round()


def compare(
    run: Callable[[Tensor], Tensor],
    classifier: ImageClassifier,
    images: Tensor,
    swaps: bool,
) -> float:
    """Hold the scores of an exported file against the classifier's own.

    Args:
        run (Callable[[Tensor], Tensor]): Runs the file.
        classifier (ImageClassifier): The classifier.
        images (Tensor): RGB images (B, 3, H, W).
        swaps (bool): Whether the classifier's data set gives it BGR images.

    Returns:
        float: The largest difference of a score, as a part of the largest score of the
        same image. Infinite if the file gives another shape, or NaN.

    Raises:
        ExportError: If the file cannot be run on these images.
    """
    inputs = images.flip(1) if swaps else images
    samples = classifier.test_step(dict(inputs=list(inputs)))
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
    """Write the file under a temporary name, compare, then give it its name."""
    # Otherwise the library's remarks on the model hide the tool's own lines.
    MMLogger.get_instance('export_onnx', log_level='WARNING')
    checkpoint = load_checkpoint(args.checkpoint, 'cpu')
    classifier, names = build_trained(cfg, checkpoint, args.checkpoint)
    check_model(classifier)
    preprocessor = classifier.data_preprocessor
    takes_bgr = takes_bgr_images(cfg, preprocessor)
    scorer = ScoringClassifier(classifier, takes_bgr).eval()
    batch_sizes = [1, 5] if args.dynamic_batch else [args.batch_size or 1]
    # An example of one image would fix the batch.
    example = make_images(2 if args.dynamic_batch else batch_sizes[0], args.shape)
    dynamic = ({0: torch.export.Dim('batch')},) if args.dynamic_batch else None

    num_classes = scorer(example).shape[1]
    names = names or find_class_names(cfg)
    classes = names if len(names) == num_classes else []
    metadata = describe(preprocessor, takes_bgr, [str(name) for name in classes])

    target = Path(args.out)
    temporary = target.with_name(f'.{os.getpid()}.{target.name}')
    write, open_file = FORMATS[target.suffix]
    swaps = takes_bgr != preprocessor.to_rgb
    errors = {}
    try:
        with tqdm(total=1 + len(batch_sizes), leave=False, disable=None) as progress:
            progress.set_description('exporting')
            sampling = write(scorer, example, dynamic, metadata, temporary)
            run = open_file(temporary)
            for size in batch_sizes:
                progress.update()
                progress.set_description(f'comparing a batch of {size}')
                images = make_images(size, args.shape)
                errors[size] = compare(run, classifier, images, swaps)
        for size, error in errors.items():
            print(f'largest relative error, batch of {size}: {error:.1e}')
        if max(errors.values()) > TOLERANCE:
            raise ExportError(
                f'the exported scores differ from the classifier by '
                f'{max(errors.values()):.1e}, allowed is {TOLERANCE:.0e}; nothing is '
                'written'
            )
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)

    batch = 'batch' if args.dynamic_batch else batch_sizes[0]
    height, width = args.shape
    known = 'yes' if classes else f'no ({len(names)} names for {num_classes} scores)'
    print(f'sampling: {sampling}')
    print(f'input: images ({batch}, 3, {height}, {width}), RGB, 0 to 255')
    print(f'output: scores ({batch}, {num_classes})')
    print(f'class names: {known}')
    print(f'written: {target}, {target.stat().st_size / 1e6:.1f} MB')


def main() -> None:
    """Export, with one line for every mistake of the user."""
    args, cfg = parse_args()
    # PyTorch's exporters say this of themselves.
    for message in ('.*treespec, LeafSpec', 'The given buffer is not writable'):
        warnings.filterwarnings('ignore', message)
    try:
        export(args, cfg)
    except ExportError as error:
        sys.exit(f'export_onnx.py: error: {error}')


if __name__ == '__main__':
    run_main(main)
