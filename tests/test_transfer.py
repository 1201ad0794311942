# Copyright (c) mmpsvit contributors.
"""Fine-tuning on tiny data sets in the real on-disk formats, end to end."""

import copy
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.registry import MODELS, init_default_scope
from mmengine.runner import Runner
from mmpretrain.datasets import CIFAR10, CIFAR100
from PIL import Image
from scipy.io import savemat

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


# (images to train and to validate on, classes) of each data set
SIZES = dict(
    cifar10=(10, 2, 10), cifar100=(2, 2, 100), flowers102=(4, 2, 102), cars=(2, 2, 196)
)


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """Load a config, cut down to a small network and one epoch on a tiny data set."""

    def load(data: str) -> Config:
        cfg = Config.fromfile(CONFIGS / 'transfer' / f'b14_{data}.py')
        root = tmp_path / 'data'
        if data.startswith('cifar'):
            dataset, key = dict(
                cifar10=(CIFAR10, 'labels'), cifar100=(CIFAR100, 'fine_labels')
            )[data]
            # The checksums are those of the real files.
            for split in ('train_list', 'test_list'):
                files = [[file, None] for file, _ in getattr(dataset, split)]
                monkeypatch.setattr(dataset, split, files)
            write_cifar(root, dataset, key, SIZES[data][-1])
        else:
            dict(flowers102=write_flowers, cars=write_cars)[data](root)
        arch = dict(embed_dims=48, num_layers=4, num_heads=3, feedforward_channels=96)
        arch |= dict(stem_base_channels=16, stem_channels=(48, 48), _delete_=True)
        cfg.merge_from_dict(
            dict(
                work_dir=str(tmp_path / 'work'),
                model=dict(
                    backbone=dict(arch=arch, sampler=dict(num_iters=2, num_points=3)),
                    head=dict(in_channels=48),
                ),
                train_cfg=dict(max_epochs=1),
                default_hooks=dict(
                    logger=dict(interval=1),
                    checkpoint_fit=dict(type='mmpsvit.CheckpointFitHook'),
                ),
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


@pytest.mark.parametrize('data', SIZES)
def test_fine_tuning(data, tiny, tmp_path):
    """From a classifier of 1000 classes: all but the head comes from it."""
    cfg = tiny(data)
    init_default_scope(cfg.default_scope)
    # A copy, because MMPretrain's mixup changes the list of odds that it is given.
    classifier = copy.deepcopy(cfg.model)
    classifier.head.num_classes = 1000
    classifier.data_preprocessor = dict(cfg.data_preprocessor, num_classes=1000)
    torch.manual_seed(0)
    model = MODELS.build(classifier)
    model.init_weights()
    weights = model.state_dict()
    cfg.load_from = str(tmp_path / 'imagenet.pth')
    torch.save(dict(meta={}, state_dict=weights), cfg.load_from)
    loaded = {}

    class KeepWeights(Hook):
        def before_train_epoch(self, runner) -> None:
            state = runner.model.state_dict()
            loaded.update({key: value.clone() for key, value in state.items()})

    runner = Runner.from_cfg(cfg)
    runner.register_hook(KeepWeights())
    runner.train()

    *lengths, classes = SIZES[data]
    head = {'head.layers.head.weight', 'head.layers.head.bias'}
    for key, value in weights.items():
        if key not in head:
            assert torch.equal(loaded[key], value), key
    assert loaded['head.layers.head.bias'].shape == (classes,)
    assert loaded['head.layers.head.weight'].std() == pytest.approx(0.02, rel=0.1)
    # The log names what was left out.
    (log,) = (tmp_path / 'work').glob('*/*.log')
    assert all(key in log.read_text() for key in head)

    assert (tmp_path / 'work' / 'epoch_1.pth').is_file()
    datasets = (runner.train_dataloader.dataset, runner.val_dataloader.dataset)
    assert [len(dataset) for dataset in datasets] == lengths
    assert 'val/accuracy/top1' in runner.message_hub.log_scalars
