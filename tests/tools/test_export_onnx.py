# Copyright (c) mmpsvit contributors.
"""Exported files against MMPretrain's own inference on the same image files."""

import json
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from mmcv.transforms import BaseTransform, CenterCrop
from mmengine.config import Config
from mmengine.dataset import Compose, pseudo_collate
from mmengine.registry import MODELS, TRANSFORMS, init_default_scope
from mmpretrain.apis import ImageClassificationInferencer
from mmpretrain.datasets import ResizeEdge
from PIL import Image
from scripts import error_of, load_script
from small_network import small_config, small_model
from stack import needs_new_torch

from mmpsvit import sample_points

onnx = pytest.importorskip('onnx', reason='not with PyTorch 2.1')
onnxruntime = pytest.importorskip('onnxruntime')

pytestmark = needs_new_torch

TOOL = 'tools/deployment/export_onnx.py'
CLASSES = ['ape', 'bee', 'cat']
MEAN, STD = [120.0, 110.0, 90.0], [50.0, 60.0, 70.0]


class SamplePoints(torch.nn.Module):
    """The operator alone."""

    def forward(self, feat, points):
        return sample_points(feat, points)


@pytest.fixture
def network(tmp_path):
    """Write the config and a checkpoint of a small network whose points move."""

    def write(meta: dict | None = None, **changes) -> tuple[str, str]:
        settings = {
            'model.backbone.sampler': dict(num_points=4, num_iters=2),
            'data_preprocessor': dict(mean=MEAN, std=STD, to_rgb=True),
        }
        cfg = small_config(**settings | changes)
        config, checkpoint = tmp_path / 'config.py', tmp_path / 'weights.pth'
        cfg.dump(config)
        model = small_model(cfg)
        torch.nn.init.normal_(model.backbone.sampler.offset_layers[0].weight)
        for norm in model.backbone.stem.modules():
            if isinstance(norm, torch.nn.BatchNorm2d):
                norm.running_mean.uniform_(-0.5, 0.5)
                norm.running_var.uniform_(0.1, 0.5)
        torch.save(dict(meta=meta or {}, state_dict=model.state_dict()), checkpoint)

        trajectory = []
        model.backbone.sampler.register_forward_hook(
            lambda module, args, out: trajectory.append(out.trajectory)
        )
        model.eval().test_step(dict(inputs=[torch.rand(3, 64, 64) * 255]))
        points = trajectory[0][0]
        assert (points[1] - points[0]).abs().mean() > 1
        assert (points[1] < -1).any() and (points[1] > 16).any()
        return str(config), str(checkpoint)

    return write


@pytest.fixture
def images(tmp_path):
    """Write colourful image files; return their names and (B, 3, H, W) in RGB."""

    def write(count: int, height: int, width: int) -> tuple[list[str], np.ndarray]:
        rng = np.random.default_rng(count)
        files, arrays = [], []
        for index in range(count):
            coarse = rng.integers(0, 256, (6, 6, 3), dtype=np.uint8)
            coarse[..., index % 3] //= 8
            image = Image.fromarray(coarse).resize((width, height))
            files.append(str(tmp_path / f'{index}.png'))
            image.save(files[-1])
            arrays.append(np.asarray(image, np.float32).transpose(2, 0, 1))
        return files, np.stack(arrays)

    return write


@pytest.fixture
def tool():
    """The tool as a module."""
    return load_script(TOOL)


def check(scores: np.ndarray, images: np.ndarray, files: list[str], network) -> None:
    """Hold scores against what MMPretrain makes of the files."""
    config, checkpoint = network
    inferencer = ImageClassificationInferencer(config, pretrained=checkpoint)
    expected = np.stack([result['pred_scores'] for result in inferencer(files)])
    np.testing.assert_allclose(scores, expected, rtol=1e-4, atol=1e-7)
    # The comparison would notice a wrong order of images or classes.
    assert np.ptp(expected, axis=1).min() > 0.01
    assert len(files) == 1 or np.ptp(expected, axis=0).max() > 0.01


def test_onnx(run_tool, network, images, block, tmp_path, monkeypatch, capsys):
    names = network(dict(dataset_meta=dict(classes=CLASSES)))
    out = tmp_path / 'psvit.onnx'
    output = run_tool(TOOL, *names, '--out', out, '--dynamic-batch', '--shape', 64, 48)
    for line in (
        'input: images (batch, 3, 64, 48), RGB, 0 to 255',
        'output: scores (batch, 3)',
        'class names: yes',
    ):
        assert line in output
    errors = re.findall(r'largest relative error, batch of (\d): (\S+)', output)
    assert [size for size, _ in errors] == ['1', '5']
    assert all(float(error) <= 1e-4 for _, error in errors)
    assert not list(tmp_path.glob('.*.onnx*'))

    model = onnx.load(out)
    assert [item.version for item in model.opset_import if not item.domain] == [18]
    # One for each iteration.
    assert [node.op_type for node in model.graph.node].count('GridSample') == 2
    metadata = {item.key: item.value for item in model.metadata_props}
    assert json.loads(metadata['classes']) == CLASSES
    assert json.loads(metadata['normalisation']) == dict(
        in_graph=True, mean=MEAN, std=STD
    )
    session = onnxruntime.InferenceSession(out)
    for count in (1, 3, 5):
        files, arrays = images(count, 64, 48)
        (scores,) = session.run(['scores'], {'images': arrays})
        check(scores, arrays, files, names)
        (swapped,) = session.run(['scores'], {'images': arrays[:, ::-1].copy()})
        assert np.abs(swapped - scores).max() > 1e-3

    # The example of the documentation.
    (tmp_path / '0.png').rename(tmp_path / 'image.png')
    monkeypatch.chdir(tmp_path)
    capsys.readouterr()
    exec(block('docs/export.md', 'onnxruntime'), {})
    name, score = capsys.readouterr().out.split()
    assert name == CLASSES[scores[0].argmax()]
    assert float(score) == pytest.approx(scores[0].max(), rel=1e-5)


def test_fixed_batch_and_point_stride(run_here, network, images, tmp_path):
    sampler = dict(point_stride=16, num_iters=2)
    names = network(**{'model.backbone.sampler': sampler})
    out = tmp_path / 'psvit.onnx'
    # Not a multiple of the points' cells; and no class names anywhere.
    output = run_here(TOOL, *names, '--out', out, '--batch-size', 2, '--shape', 40, 56)
    assert 'batch of 2: ' in output and 'batch of 1: ' not in output
    assert 'class names: no (0 names for 3 scores)' in output
    session = onnxruntime.InferenceSession(out)
    assert 'classes' not in session.get_modelmeta().custom_metadata_map
    files, arrays = images(2, 40, 56)
    (scores,) = session.run(['scores'], {'images': arrays})
    check(scores, arrays, files, names)


def test_size_and_colours_of_the_test_pipeline(run_here, network, images, tmp_path):
    """Without --shape, what the pipeline makes of an image; through a wrapper."""
    pipeline = [
        dict(type='LoadImageFromFile'),
        dict(type='ResizeEdge', scale=48, edge='short', backend='pillow'),
        dict(type='CenterCrop', crop_size=(40, 32)),
        dict(type='NumpyToPIL', to_rgb=True),
        dict(type='PILToNumpy'),
        dict(type='PackInputs'),
    ]
    one = dict(type='CustomDataset', data_root='none', pipeline=pipeline)
    wrapped = dict(type='KFoldDataset', dataset=one)
    names = network(**{'test_dataloader.dataset': wrapped})
    out = tmp_path / 'psvit.pt2'
    run_here(TOOL, *names, '--out', out)
    # The inferencer takes the outermost pipeline.
    config = Config.fromfile(names[0])
    config.test_dataloader.dataset = one
    config.dump(names[0])
    files, arrays = images(1, 40, 32)
    resized = ResizeEdge(48, 'short', backend='pillow')
    array = arrays[0].transpose(1, 2, 0).astype(np.uint8)
    array = CenterCrop((40, 32))(resized(dict(img=array)))['img']
    arrays = array.transpose(2, 0, 1)[None].astype(np.float32)
    scores = torch.export.load(out).module()(torch.from_numpy(arrays)).numpy()
    check(scores, arrays, files, names)


def test_program(run_here, network, images, block, tmp_path, monkeypatch):
    """A network that sees BGR, as a program; class names from the config."""
    names = network(
        **{
            'data_preprocessor.to_rgb': False,
            'test_dataloader.dataset.metainfo': dict(classes=CLASSES),
        }
    )
    out = tmp_path / 'psvit.pt2'
    run_here(TOOL, *names, '--out', out, '--dynamic-batch', '--shape', 256, 192)
    targets = [str(node.target) for node in torch.export.load(out).graph.nodes]
    assert sum('embedding_bag' in target for target in targets) == 2

    files, arrays = images(5, 256, 192)
    np.save(tmp_path / 'images.npy', arrays)
    # Where mmpsvit has not been imported.
    code = (
        'import sys, numpy, torch\n'
        "program = torch.export.load('psvit.pt2').module()\n"
        "images = torch.from_numpy(numpy.load('images.npy'))\n"
        "numpy.save('scores.npy', program(images).numpy())\n"
        "assert 'mmpsvit' not in sys.modules\n"
    )
    subprocess.run([sys.executable, '-c', code], cwd=tmp_path, check=True)
    check(np.load(tmp_path / 'scores.npy'), arrays, files, names)

    monkeypatch.chdir(tmp_path)
    exec(block('docs/export.md', 'torch.export.load'), scope := {})
    assert scope['scores'].shape == (1, 3)
    assert json.loads(scope['metadata']['classes']) == CLASSES
    # Those of RGB, like the input.
    normalisation = json.loads(scope['metadata']['normalisation'])
    assert normalisation == dict(in_graph=True, mean=MEAN[::-1], std=STD[::-1])


LOAD = dict(type='LoadImageFromFile')


@pytest.mark.parametrize('to_rgb', [False, True])
@pytest.mark.parametrize(
    ('steps', 'mode'),
    [
        ([LOAD], 'RGB'),
        ([LOAD, dict(type='ToPIL', to_rgb=True), dict(type='ToNumpy')], 'RGB'),
        # Arrays, such as of CIFAR.
        ([], 'RGB'),
        ([dict(LOAD, color_type='grayscale')], 'L'),
        ([dict(LOAD, color_type='unchanged')], 'RGBA'),
    ],
)
def test_colours(tool, steps, mode, to_rgb, tmp_path):
    """From Pillow's pixels, what a data set and the classifier make of the file."""
    count = len(mode)
    preprocessor = dict(mean=MEAN[:1], std=STD[:1])
    if count == 3:
        preprocessor = dict(mean=MEAN, std=STD)
    pipeline = [*steps, dict(type='PackInputs')]
    cfg = small_config(
        **{
            'model.backbone.in_channels': count,
            'data_preprocessor': dict(preprocessor, to_rgb=to_rgb),
            'test_dataloader.dataset': dict(type='X', pipeline=pipeline),
        }
    )
    classifier = small_model(cfg)

    rng = np.random.default_rng(0)
    shape = (40, 32, count) if count > 1 else (40, 32)
    pixels = rng.integers(256, size=shape, dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / 'image.png')
    info = dict(img_path=str(tmp_path / 'image.png'))
    if not steps:
        info['img'] = pixels
    (sample,) = classifier.test_step(pseudo_collate([Compose(pipeline)(info)]))

    files = tool.FilePipeline(cfg, count)
    scorer = tool.ScoringClassifier(classifier, files.channels)
    images = torch.from_numpy(pixels.reshape(40, 32, count)).permute(2, 0, 1)[None]
    scores = scorer(images.float())[0]
    torch.testing.assert_close(scores, sample.pred_score, rtol=1e-4, atol=1e-6)
    if count == 3:
        swapped = scorer(images.flip(1).float())[0]
        assert (swapped - scores).abs().max() > 1e-3

    # The examples are the same images in the two orders.
    items, examples = tool.make_examples(files, 2, (40, 32))
    for item, example in zip(items, examples, strict=True):
        assert torch.equal(item['inputs'], example[scorer.order])
    metadata = tool.describe(classifier.data_preprocessor, files, [])
    assert f', {mode}, 0 to 255' in metadata['input']
    if count == 3:
        mean = json.loads(metadata['normalisation'])['mean']
        sees_rgb = to_rgb != (files.channels == [0, 1, 2])
        assert mean == (MEAN if sees_rgb else MEAN[::-1])


@TRANSFORMS.register_module()
class SwapGreen(BaseTransform):
    """Changes colours in a way that no order of channels explains."""

    def transform(self, results: dict) -> dict:
        results['img'] = results['img'].copy()
        results['img'][..., 1] = 255 - results['img'][..., 1]
        return results


def test_what_differs_from_testing_is_not_written(run_here, network, tmp_path):
    names = network(
        **{
            'test_dataloader.dataset.pipeline': [
                LOAD,
                dict(type='mmengine.SwapGreen'),
                dict(type='PackInputs'),
            ]
        }
    )
    out = tmp_path / 'psvit.pt2'
    # As if the file of before stood there.
    out.write_text('before')
    output = run_here(TOOL, *names, '--out', out, '--shape', 32, code=1)
    assert 'from what testing computes' in output
    assert out.read_text() == 'before'
    assert not list(tmp_path.glob('.*.pt2'))


def test_points_anywhere(tmp_path):
    """The operator's rules for the border, outside and NaN, in onnxruntime."""
    torch.manual_seed(0)
    feat = torch.randn(2, 5, 7, 6)
    points = torch.rand(2, 300, 2) * 12 - 3
    values = [-1e30, -1e9, -1.001, -1, -0.6, -0.1, 0, 2.5, 5, 5.5, 6, 6.3, 7, 7.1, 1e9]
    values += [1e30, float('nan'), float('inf'), -float('inf')]
    grid = torch.cartesian_prod(torch.tensor(values), torch.tensor(values))
    points = torch.cat((points, grid.expand(2, -1, -1)), dim=1)
    path = tmp_path / 'sampling.onnx'
    torch.onnx.export(
        SamplePoints().eval(),
        (feat, points),
        path,
        input_names=['feat', 'points'],
        dynamo=True,
        verbose=False,
    )
    assert 'GridSample' in [node.op_type for node in onnx.load(path).graph.node]
    (samples,) = onnxruntime.InferenceSession(path).run(
        None, {'feat': feat.numpy(), 'points': points.numpy()}
    )
    expected = sample_points(feat, points).numpy()
    np.testing.assert_allclose(samples, expected, rtol=0, atol=2e-6)
    x, y = points.unbind(-1)
    inside = (x > -1) & (x < 6) & (y > -1) & (y < 7)
    assert 0.2 < inside.float().mean() < 0.8
    assert (samples[~inside.numpy()] == 0).all()


def test_mistakes(root, monkeypatch):
    # As if it were not installed.
    monkeypatch.setitem(sys.modules, 'onnxscript', None)
    config = root / 'configs' / 'psvit' / 'ti14.py'
    for arguments, message in (
        ([config, '--out', 'a.engine'], '--out: must end in .onnx or .pt2, got a.eng'),
        ([config, '--out', 'a.onnx', '--shape', 0], 'H W or one number > 0, got [0]'),
        ([config, '--out', 'a.onnx', '--batch-size', 0], 'must be > 0, got 0'),
        (['none.py', '--out', 'a.pt2'], 'argument config: none.py'),
        ([config, '--out', 'a.onnx'], 'not installed: pip install onnxscript'),
    ):
        # Any file will do as a checkpoint.
        assert message in error_of(TOOL, arguments[0], config, *arguments[1:])
    line = error_of(TOOL, config, 'none.pth', '--out', 'a.pt2')
    assert 'argument checkpoint: none.pth does not exist' in line


def test_misfits(tool, run_here, network, tmp_path):
    config, checkpoint = network()
    out = tmp_path / 'a.pt2'
    options = ('--out', out, '--cfg-options', 'model.head.num_classes=4')
    output = run_here(TOOL, config, checkpoint, *options, code=1)
    assert 'error: checkpoint' in output and 'does not fit the config' in output
    assert not out.exists()

    cfg = Config.fromfile(config)
    cfg.model.head.type = 'MultiLabelLinearClsHead'
    init_default_scope('mmpretrain')
    with pytest.raises(tool.ExportError, match=r'model\.head .* must be a ClsHead'):
        tool.check_model(MODELS.build(cfg.model))
