# Copyright (c) mmpsvit contributors.
"""Fine-tuning on tiny data sets in the real on-disk formats, end to end."""

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.registry import MODELS, init_default_scope
from mmpretrain.datasets import CIFAR10, CIFAR100
from PIL import Image
from scipy.io import savemat

from mmpsvit.cli import build_runner
from mmpsvit.guard.fit import CheckpointMisfitError

CONFIGS = Path(__file__).parent.parent / 'configs' / 'psvit'
RNG = np.random.default_rng(0)


def write_cifar(root: Path, dataset: type, label_key: str, num_classes: int) -> None:
    """Batches of pickled dicts, each image a row of 3072 bytes, channel by channel."""
    folder = root / dataset.base_folder
    folder.mkdir(parents=True)
    for name, _ in dataset.train_list + dataset.test_list:
        batch = {
            'batch_label': name,
            label_key: [int(x) for x in RNG.integers(num_classes, size=2)],
            'data': RNG.integers(0, 255, (2, 3072), dtype=np.uint8),
            'filenames': ['a.png', 'b.png'],
        }
        (folder / name).write_bytes(pickle.dumps(batch, protocol=2))


def write_image(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = RNG.integers(0, 255, (50, 60, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def write_flowers(root: Path) -> None:
    """102 classes, one image each in train and test."""
    for number in range(1, 7):
        write_image(root / 'jpg' / f'image_{number:05d}.jpg')
    savemat(root / 'imagelabels.mat', {'labels': np.array([[1, 2, 77, 101, 102, 3]])})
    splits = {'trnid': [[1, 2]], 'valid': [[5, 4]], 'tstid': [[3, 6]]}
    savemat(root / 'setid.mat', {key: np.array(ids) for key, ids in splits.items()})


def write_cars(root: Path) -> None:
    """One folder of images, and one array of structs that says what is test."""
    fields = ['relative_im_path', 'bbox_x1', 'bbox_y1', 'bbox_x2', 'bbox_y2']
    fields += ['class', 'test']
    cars = np.zeros((1, 4), dtype=[(name, object) for name in fields])
    for number, (label, is_test) in enumerate([(1, 0), (196, 0), (5, 1), (196, 1)]):
        path = f'car_ims/{number + 1:06d}.jpg'
        write_image(root / path)
        cars[0, number] = (path, 1, 1, 50, 40, label, is_test)
    savemat(root / 'cars_annos.mat', {'annotations': cars})


@pytest.fixture(scope='module')
def pretrained(tmp_path_factory):
    """Write an ImageNet classifier of B/14 or Ti/14 and return its path and weights."""
    files = {}

    def get(name: str) -> tuple[Path, dict]:
        if name not in files:
            cfg = Config.fromfile(CONFIGS / f'{name}.py')
            init_default_scope(cfg.default_scope)
            torch.manual_seed(0)
            model = MODELS.build(cfg.model)
            model.init_weights()
            path = tmp_path_factory.mktemp('pretrained') / f'{name}.pth'
            torch.save(dict(meta={}, state_dict=model.state_dict()), path)
            files[name] = (path, model.state_dict())
        return files[name]

    return get


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """Load a transfer config, cut down to one epoch on a tiny data set."""

    def load(name: str) -> Config:
        cfg = Config.fromfile(CONFIGS / 'transfer' / f'{name}.py')
        root = tmp_path / 'data'
        data = name.split('_')[1]
        if data.startswith('cifar'):
            dataset, key = dict(
                cifar10=(CIFAR10, 'labels'), cifar100=(CIFAR100, 'fine_labels')
            )[data]
            # The checksums are those of the real files.
            for split in ('train_list', 'test_list'):
                files = [[file, None] for file, _ in getattr(dataset, split)]
                monkeypatch.setattr(dataset, split, files)
            write_cifar(root, dataset, key, cfg.num_classes)
        else:
            dict(flowers102=write_flowers, cars=write_cars)[data](root)
        cfg.merge_from_dict(
            dict(
                work_dir=str(tmp_path / 'work'),
                launcher='none',
                train_cfg=dict(max_epochs=1),
                default_hooks=dict(logger=dict(interval=1)),
                visualizer=dict(vis_backends=[]),
            )
        )
        for loader in (cfg.train_dataloader, cfg.val_dataloader, cfg.test_dataloader):
            loader.update(batch_size=2, num_workers=0, persistent_workers=False)
            loader.dataset.data_root = str(root)
            if data.startswith('cifar'):
                loader.dataset.download = False
        return cfg

    return load


@pytest.mark.parametrize(
    'name',
    [
        'b14_cifar10',
        'b14_cifar100',
        'b14_flowers102',
        'b14_cars',
        'ti14_cifar10',
        'ti14_cifar100',
    ],
)
def test_fine_tuning(name, tiny, pretrained, tmp_path, monkeypatch):
    cfg = tiny(name)
    arch, data = name.split('_')
    file, weights = pretrained(arch)
    cfg.load_from = str(file)
    runner = build_runner(cfg, must_fit=('backbone.', 'neck.'))

    loaded, warnings = {}, []

    class KeepWeights(Hook):
        def before_train_epoch(self, runner) -> None:
            state = runner.model.state_dict()
            loaded.update({key: value.clone() for key, value in state.items()})

    runner.register_hook(KeepWeights())
    monkeypatch.setattr(
        runner.logger, 'warning', lambda text, *_: warnings.append(text)
    )
    runner.train()

    # All but the head comes from the checkpoint, and the head is named.
    head = {'head.layers.head.weight', 'head.layers.head.bias'}
    for key, value in weights.items():
        if key not in head:
            assert torch.equal(loaded[key], value), key
    (warning,) = [text for text in warnings if 'Not taken from' in text]
    classes = dict(cifar10=10, cifar100=100, flowers102=102, cars=196)[data]
    for key in head:
        assert f'{key} has shape {tuple(weights[key].shape)}' in warning
    assert f'the model wants ({classes},)' in warning
    assert loaded['head.layers.head.bias'].shape == (classes,)
    assert loaded['head.layers.head.weight'].std() == pytest.approx(0.02, rel=0.1)

    assert (tmp_path / 'work' / 'epoch_1.pth').is_file()
    lengths = dict(cifar10=(10, 2), cifar100=(2, 2), flowers102=(4, 2), cars=(2, 2))
    dataset = runner.train_dataloader.dataset
    assert (len(dataset), len(runner.val_dataloader.dataset)) == lengths[data]
    if data == 'cars':
        assert [dataset.get_data_info(i)['gt_label'] for i in range(2)] == [0, 195]
    if data == 'flowers102':
        labels = [dataset.get_data_info(i)['gt_label'] for i in range(4)]
        assert labels == [0, 1, 101, 100]
    assert 'val/accuracy/top1' in runner.message_hub.log_scalars


def test_another_backbone_is_refused(tiny, pretrained):
    cfg = tiny('b14_cifar10')
    cfg.load_from = str(pretrained('ti14')[0])
    runner = build_runner(cfg, must_fit=('backbone.', 'neck.'))
    with pytest.raises(
        CheckpointMisfitError, match=r'does not fit .*backbone\..* and \d+ more'
    ):
        runner.train()


@pytest.mark.parametrize('name', ['b14_cifar10', 'ti14_cifar100'])
def test_recipe(name):
    cfg = Config.fromfile(CONFIGS / 'transfer' / f'{name}.py')
    assert cfg.max_epochs == cfg.train_cfg.max_epochs == 1000
    assert cfg.param_scheduler[1].T_max == 1000
    optimizer = cfg.optim_wrapper.optimizer
    assert (optimizer.type, optimizer.lr, optimizer.weight_decay) == ('SGD', 0.01, 1e-4)
    assert cfg.train_dataloader.batch_size * 8 == cfg.auto_scale_lr.base_batch_size
    assert cfg.auto_scale_lr.base_batch_size == 768
    assert cfg.model.backbone.drop_path_rate == 0
    assert 'custom_hooks' not in cfg
    pipeline = cfg.train_dataloader.dataset.pipeline
    types = [step.type for step in pipeline]
    assert types == ['RandomChoice', 'RandomFlip', 'RandAugment', 'PackInputs']
