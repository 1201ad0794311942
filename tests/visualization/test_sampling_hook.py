# Copyright (c) mmpsvit contributors.
"""Pictures and scalars of the sampling points while a network trains."""

import itertools
import json
import random
import re

import numpy as np
import pytest
import torch
from mmcv.transforms import BaseTransform
from mmengine.config import Config
from mmengine.dataset import Compose
from mmengine.hooks import Hook
from mmengine.model import BaseModel, ImgDataPreprocessor
from mmengine.registry import TRANSFORMS
from mmengine.runner import Runner
from mmengine.structures import BaseDataElement
from panels import all_panels_have_points
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.data import TensorDataset

from mmpsvit import ProgressiveSampling
from mmpsvit.guard import load_checkpoint
from mmpsvit.visualization import (
    SamplingVisualizationHook,
    sample_images,
    sampling_hook,
)

CLASSES = ['circle', 'square', 'star']
HOOK = dict(type='mmpsvit.SamplingVisualizationHook')
# The eight of twelve images that are drawn by default.
SPREAD = [0, 1, 3, 4, 6, 7, 9, 11]
NUMBERS = itertools.count()


@pytest.fixture
def config(root, image_folder, tmp_path):
    """Write a tiny config: four steps, with a validation after two and after four."""
    folder = image_folder('images', CLASSES, per_class=4)

    def write(name: str = 'work', hooks: tuple[dict, ...] = (HOOK,), **options):
        cfg = Config.fromfile(root / 'configs' / 'cluttered_digits' / 'psvit.py')
        cfg.merge_from_dict(
            {
                'work_dir': str(tmp_path / name),
                # MMEngine keeps one visualizer per name, by default the second.
                'experiment_name': f'{name}_{next(NUMBERS)}',
                'model.backbone.arch': dict(
                    embed_dims=32,
                    num_layers=5,
                    num_heads=2,
                    feedforward_channels=64,
                    stem_base_channels=8,
                    stem_channels=(16, 32),
                ),
                'model.head.in_channels': 32,
                'model.head.num_classes': 3,
                'data_preprocessor.num_classes': 3,
                'train_cfg.max_iters': 4,
                'train_cfg.val_interval': 2,
                'default_hooks.checkpoint.interval': 4,
                'train_dataloader.batch_size': 6,
                **options,
            }
        )
        cfg.custom_hooks = list(hooks)
        for loader in (cfg.train_dataloader, cfg.val_dataloader, cfg.test_dataloader):
            loader.update(num_workers=0, persistent_workers=False)
            loader.dataset.data_root = str(folder)
        return cfg

    return write


@pytest.fixture
def drawn(monkeypatch):
    """What the hook gave to be drawn, round by round; nothing is drawn in earnest."""
    rounds = []

    def sample(model, *args):
        sampled = sample_images(model, *args)
        rounds.append((sampled, {k: v.clone() for k, v in model.state_dict().items()}))
        return sampled

    monkeypatch.setattr(sampling_hook, 'sample_images', sample)
    monkeypatch.setattr(sampling_hook, 'sampling_figure', lambda *args: None)
    blank = np.zeros((1, 1, 3), np.uint8)
    monkeypatch.setattr(sampling_hook, 'figure_to_rgb', lambda figure: blank)
    return rounds


def local_files(work_dir) -> tuple[list[str], list[dict]]:
    """The pictures, and the hook's lines among the scalars, of LocalVisBackend."""
    (folder,) = work_dir.glob('*/vis_data')
    scalars = folder / 'scalars.json'
    lines = scalars.read_text().splitlines() if scalars.exists() else []
    lines = [line for line in map(json.loads, lines) if any('samp' in k for k in line)]
    return sorted(path.name for path in folder.glob('vis_image/*')), lines


def test_example_of_the_docs(block, small, run_here, tmp_path):
    """The config of the docs writes to both backends, from `tools/train.py`."""
    code = block('docs/visualization.md', 'TensorboardVisBackend')
    (tmp_path / 'my_config.py').write_text(code)
    _, options, _ = small
    run_here('tools/train.py', 'my_config.py', *options)
    pictures, lines = local_files(tmp_path / 'work_dirs' / 'my_config')
    assert pictures == ['sampling_2.png', 'sampling_4.png']
    (folder,) = (tmp_path / 'work_dirs' / 'my_config').glob('*/vis_data')
    events = EventAccumulator(str(folder)).Reload()
    for image in events.Images('sampling'):
        path = folder / 'vis_image' / f'sampling_{image.step}.png'
        assert all_panels_have_points(path, 2, 4)
        picture = np.asarray(Image.open(path).convert('RGB'))
        # TensorBoard gets the same picture.
        encoded = tmp_path / 'encoded.png'
        encoded.write_bytes(image.encoded_image_string)
        assert (np.asarray(Image.open(encoded).convert('RGB')) == picture).all()
    assert [image.step for image in events.Images('sampling')] == [2, 4]
    assert {'loss', 'lr', 'accuracy/top1'} <= set(events.Tags()['scalars'])

    assert [line['step'] for line in lines] == [2, 4]
    for iteration in (2, 3, 4):
        name = f'sampling/displacement_{iteration}'
        scalars = [(event.step, event.value) for event in events.Scalars(name)]
        local = [(line['step'], line[name]) for line in lines]
        assert scalars == [(step, pytest.approx(value)) for step, value in local]
        # Some steps have moved the points, and not yet far.
        assert 0 < local[1][1] < 10
    # LoggerHook's own file, which MMPretrain's analysis reads, has only its lines.
    (log,) = folder.glob('2*.json')
    assert 'accuracy/top1' in log.read_text() and 'sampling' not in log.read_text()


def test_same_images_in_every_round(config, drawn, tmp_path):
    runner = Runner.from_cfg(config())
    runner.train()
    (first, _), (second, _) = drawn
    dataset = runner.val_dataloader.dataset
    files = [dataset.get_data_info(index)['img_path'] for index in SPREAD]
    for sampled in (first, second):
        for path, each in zip(files, sampled, strict=True):
            assert (np.asarray(Image.open(path)) == each.image).all()
    truth = [dataset.get_data_info(index)['gt_label'] for index in SPREAD]
    for each, label in zip(first, truth, strict=True):
        assert re.fullmatch(rf'\w+ \(\d+%\), truth: {CLASSES[label]}', each.title)
    assert not runner.model.training


def test_interval_and_indices(config, drawn, tmp_path):
    """Every second round; the step is the iteration, though LoggerHook's were 0."""
    hooks = ({**HOOK, 'interval': 2, 'indices': [5, 2]},)
    cfg = config(hooks=hooks, **{'train_cfg.val_interval': 1})
    cfg.default_hooks.logger.log_metric_by_epoch = True
    Runner.from_cfg(cfg).train()
    assert local_files(tmp_path / 'work')[0] == ['sampling_2.png', 'sampling_4.png']
    paths = [tmp_path / 'images' / 'val' / x for x in ('square/1.png', 'circle/2.png')]
    for sampled, _ in drawn:
        for path, each in zip(paths, sampled, strict=True):
            assert (np.asarray(Image.open(path)) == each.image).all()


@pytest.mark.parametrize(('by_epoch', 'steps'), [(True, [1, 2]), (False, [2, 4])])
def test_step_is_that_of_the_scores(config, drawn, tmp_path, by_epoch, steps):
    cfg = config()
    cfg.train_cfg = dict(by_epoch=True, max_epochs=2)
    cfg.default_hooks.checkpoint.by_epoch = True
    cfg.train_dataloader.sampler.type = 'DefaultSampler'
    cfg.param_scheduler = None
    cfg.default_hooks.logger.log_metric_by_epoch = by_epoch
    cfg.log_processor.by_epoch = True
    Runner.from_cfg(cfg).train()
    pictures, lines = local_files(tmp_path / 'work')
    assert pictures == [f'sampling_{step}.png' for step in steps]
    assert [line['step'] for line in lines] == steps
    (file,) = (tmp_path / 'work').glob('*/vis_data/scalars.json')
    scores = [line for line in file.read_text().splitlines() if 'accuracy' in line]
    assert [json.loads(line)['step'] for line in scores] == steps


def test_displacement(config, drawn, tmp_path):
    """Zero before training; with offsets set by hand, theirs, added up."""
    runner = Runner.from_cfg(config())
    runner.model.init_weights()
    runner.val()
    runner.model.backbone.sampler.center_offsets = False
    for layer in runner.model.backbone.sampler.offset_layers:
        layer.bias.data = torch.tensor([0.3, -0.4])
    runner.val()
    _, (before, after) = local_files(tmp_path / 'work')
    names = [f'sampling/displacement_{iteration}' for iteration in (2, 3, 4)]
    assert before == {**dict.fromkeys(names, 0.0), 'step': 0}
    # 0.5 pixels of the feature map are 2 of the image.
    assert [after[name] for name in names] == pytest.approx([2, 4, 6], rel=1e-5)


@TRANSFORMS.register_module()
class TouchRandomState(BaseTransform):
    """A random step of a pipeline, from each of the three generators."""

    def transform(self, results: dict) -> dict:
        shift = random.randrange(9) + np.random.randint(9) + int(torch.randint(9, (1,)))
        results['img'] = np.roll(results['img'], shift, axis=1)
        return results


def test_training_is_the_same_bit_by_bit(config, drawn, tmp_path):
    """Also with random steps in pipelines and network, and the images still are the
    same in every round.
    """
    weights = []
    for name, hooks in (('without', ()), ('with', (HOOK,))):
        options = {
            'model.backbone.drop_rate': 0.3,
            'model.backbone.drop_path_rate': 0.3,
        }
        cfg = config(name, hooks, **options)
        for loader in (cfg.train_dataloader, cfg.val_dataloader):
            loader.dataset.pipeline.insert(1, dict(type='mmengine.TouchRandomState'))
        Runner.from_cfg(cfg).train()
        weights.append(load_checkpoint(tmp_path / name / 'iter_4.pth')['state_dict'])
    without, with_hook = weights
    for key, value in without.items():
        assert torch.equal(with_hook[key], value), key
    for first, second in zip(*(sampled for sampled, _ in drawn), strict=True):
        assert (first.image == second.image).all()


class Probe(Hook):
    """Keeps the weights of every validation, and of the training around it."""

    def __init__(self) -> None:
        self.validated, self.trained = [], []

    def after_val_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        self.validated.append(runner.model.backbone.cls_token.clone())

    def after_val(self, runner) -> None:
        self.trained.append(runner.model.backbone.cls_token.clone())


@pytest.mark.parametrize('priority', ['ABOVE_NORMAL', 'HIGH'])
def test_shows_the_averaged_weights(config, drawn, priority):
    average = dict(type='EMAHook', momentum=0.01, priority=priority)
    runner = Runner.from_cfg(config(hooks=(average, HOOK)))
    probe = Probe()
    runner.register_hook(probe)
    runner.train()
    assert len(drawn) == len(probe.validated) == len(probe.trained) == 2
    for index, (_, weights) in enumerate(drawn):
        shown = weights['backbone.cls_token']
        assert torch.equal(shown, probe.validated[index])
        assert not torch.equal(shown, probe.trained[index])


def test_two_processes(root, config, run_tool, tmp_path, free_port):
    """The first process draws alone, on the wrapped network, and nobody waits."""
    path = tmp_path / 'config.py'
    config(**{'train_dataloader.batch_size': 3}).dump(path)
    output = run_tool(
        'tools/dist_train.sh', path, 2, PORT=free_port, CUDA_VISIBLE_DEVICES=''
    )
    assert 'GPU number: 2' in output
    pictures, lines = local_files(tmp_path / 'work')
    assert pictures == ['sampling_2.png', 'sampling_4.png']
    assert [line['step'] for line in lines] == [2, 4]


class Detector(BaseModel):
    """Sees images of any size, and predicts boxes rather than a class."""

    def __init__(self) -> None:
        super().__init__(
            ImgDataPreprocessor(bgr_to_rgb=True, pad_size_divisor=16, pad_value=0)
        )
        self.stem = torch.nn.Conv2d(3, 8, 4, 4)
        self.sampler = ProgressiveSampling(8, 2, 16, num_iters=2, point_stride=8)

    def forward(self, inputs, data_samples, mode) -> list[BaseDataElement]:
        self.sizes = [*getattr(self, 'sizes', []), tuple(inputs.shape[-2:])]
        self.sampler(self.stem(inputs))
        return [sample.new(boxes=torch.zeros(0, 4)) for sample in data_samples]


def test_detector_and_modes():
    """Sizes that differ, padding, no labels; each module stays in its own mode."""
    detector = Detector().train()
    detector.sampler.eval()
    colours = torch.tensor([30, 20, 10], dtype=torch.uint8)[:, None, None]
    items = [
        dict(inputs=colours.expand(3, *size), data_samples=BaseDataElement())
        for size in ((40, 48), (30, 32))
    ]
    sampled = sample_images(detector, items)
    images = [each.image for each in sampled]
    trajectories = [each.trajectory for each in sampled]
    assert detector.sizes == [(48, 48), (32, 32)]
    assert [image.shape for image in images] == [(40, 48, 3), (30, 32, 3)]
    assert all((image == (10, 20, 30)).all() for image in images)
    assert [points.shape for points in trajectories] == [(2, 36, 2), (2, 16, 2)]
    assert trajectories[0][0, -1].tolist() == [44, 44]
    assert [each.title for each in sampled] == ['', '']
    assert detector.training and not detector.sampler.training
    assert sampling_hook.mean_displacements(trajectories).shape == (1,)


def test_colours_of_arrays():
    """RGB arrays that the network takes as they are, unless told otherwise."""
    detector = Detector()
    detector.data_preprocessor = ImgDataPreprocessor(pad_size_divisor=16)
    colours = torch.tensor([30, 20, 10], dtype=torch.uint8)[:, None, None]
    item = dict(inputs=colours.expand(3, 16, 16), data_samples=BaseDataElement())
    for channels, expected in ((None, [30, 20, 10]), ([2, 1, 0], [10, 20, 30])):
        (sampled,) = sample_images(detector, [item], channels)
        assert sampled.image[0, 0].tolist() == expected


def test_colours_of_a_wrapped_data_set(config, drawn):
    """Transforms may swap colours; the images are shown as the files have them."""
    cfg = config()
    dataset = cfg.val_dataloader.dataset
    load, pack = dataset.pipeline
    swap = [dict(type='NumpyToPIL', to_rgb=True), dict(type='PILToNumpy')]
    dataset.pipeline = [load, *({'_scope_': 'mmpretrain', **s} for s in swap), pack]
    cfg.val_dataloader.dataset = dict(
        type='mmpretrain.KFoldDataset', num_splits=2, dataset=dataset, test_mode=True
    )
    runner = Runner.from_cfg(cfg)
    runner.val()
    ((sampled, _),) = drawn
    for index, each in enumerate(sampled):
        path = runner.val_dataloader.dataset.get_data_info(index)['img_path']
        assert (np.asarray(Image.open(path)) == each.image).all()


def test_data_set_that_describes_no_image():
    """One of PyTorch's, with a pipeline: its colours cannot be found."""
    dataset = TensorDataset(torch.zeros(2, 3, 8, 8))
    dataset.pipeline = Compose([])
    assert sampling_hook._channels_of(dataset, 3) is None


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (dict(interval=0), 'interval must be at least 1, got 0'),
        (dict(num_images=-1), 'num_images must be at least 1, got -1'),
        (dict(indices=[]), r'indices must name an image or be None, got \[\]'),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        SamplingVisualizationHook(**arguments)


@pytest.mark.parametrize('method', ['train', 'val'])
def test_mistakes_are_told_before_the_first_step(config, drawn, method):
    cfg = config(hooks=({**HOOK, 'indices': [0, 12]},))
    message = r'SamplingVisualizationHook: indices must be in \[0, 11\].*got \[0, 12\]'
    with pytest.raises(ValueError, match=message):
        getattr(Runner.from_cfg(cfg), method)()

    cfg = config()
    cfg.model.backbone = dict(
        type='mmpretrain.VisionTransformer',
        arch=dict(embed_dims=32, num_layers=1, num_heads=2, feedforward_channels=64),
        img_size=(60, 72),
        patch_size=12,
    )
    message = 'SamplingVisualizationHook: the model must have one ProgressiveSampling'
    with pytest.raises(ValueError, match=message):
        getattr(Runner.from_cfg(cfg), method)()
    assert not drawn
