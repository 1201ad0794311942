# Copyright (c) mmpsvit contributors.
"""Faults of data that stop a training or are warned of, and the valid neighbours."""

import itertools
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from mmengine.config import Config
from mmengine.registry import LOOPS, MODELS
from mmengine.runner import BaseLoop, Runner
from mmengine.structures import BaseDataElement, InstanceData
from small import small_arch
from torch import Tensor, nn

from mmpsvit.guard import DataError, DataHook

NUMBERS = itertools.count()
CLASSES = ['circle', 'square', 'star']
TINY = dict(
    type='mmpsvit.PSViT',
    arch=small_arch(num_layers=3),
    sampler=dict(num_iters=2, num_points=2),
)
PIPELINE = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=(32, 32)),
    dict(type='PackInputs'),
]


@pytest.fixture
def folder(image_folder) -> Path:
    """Two images of each class in each split."""
    return image_folder('images', CLASSES, per_class=2)


def custom(folder: Path, **options) -> dict:
    return dict(
        type='CustomDataset', data_root=str(folder), pipeline=PIPELINE, **options
    )


@pytest.fixture
def train(tmp_path, folder):
    """Train one iteration of a classifier; what it warns of."""

    def run(train: dict | None = None, val: dict | None = None, **changes) -> str:
        loader = dict(batch_size=6, num_workers=0)
        head = dict(
            type='mmpsvit.PSViTClsHead',
            num_classes=3,
            in_channels=24,
            loss=dict(type='CrossEntropyLoss'),
        )
        cfg = Config(
            dict(
                default_scope='mmpretrain',
                work_dir=str(tmp_path / 'work'),
                model=dict(type='ImageClassifier', backbone=TINY, head=head),
                data_preprocessor=dict(num_classes=3, mean=[0] * 3, std=[255] * 3),
                train_dataloader=dict(
                    loader,
                    dataset=train or custom(folder, data_prefix='train'),
                    sampler=dict(type='DefaultSampler', shuffle=True),
                ),
                val_dataloader=dict(
                    loader,
                    dataset=val or custom(folder, data_prefix='val'),
                    sampler=dict(type='DefaultSampler', shuffle=False),
                ),
                val_evaluator=dict(type='Accuracy'),
                train_cfg=dict(by_epoch=False, max_iters=1),
                val_cfg=dict(),
                optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.1)),
                default_hooks=dict(data=dict(type='mmpsvit.DataHook')),
                experiment_name=f'data_{next(NUMBERS)}',
            )
        )
        cfg.merge_from_dict(changes)
        Runner.from_cfg(cfg).train()
        logs = sorted((tmp_path / 'work').glob('*/*.log'))
        lines = logs[-1].read_text().split('\n')
        told = re.compile('WARNING.*(folders|has the label)')
        return '\n'.join(line for line in lines if told.search(line))

    return run


def lines(folder: Path, *labels: int, **options) -> dict:
    """A data set whose labels are lines of a file."""
    text = ''.join(f'circle/{i}.png {label}\n' for i, label in enumerate(labels))
    (folder / 'labels.txt').write_text(text)
    return custom(folder, data_prefix='train', ann_file='labels.txt', **options)


@pytest.mark.parametrize('label', [3, 400])
def test_label_out_of_range(label, train, folder):
    message = rf'circle/1\.png has the label \[{label}\], the model has 3 classes'
    with pytest.raises(DataError, match=message):
        train(lines(folder, 0, label))


@MODELS.register_module()
class LossOfLabelled(nn.Module):
    """As semi-supervised trainings have it."""

    def forward(self, scores: Tensor, labels: Tensor, **kwargs) -> Tensor:
        return F.cross_entropy(scores, labels, ignore_index=-1)


def test_unlabelled_images(train, folder):
    loss = dict(_delete_=True, type='mmengine.LossOfLabelled')
    changes = {'model.head.loss': loss, 'train_cfg.max_iters': 2}
    told = train(lines(folder, 0, -1), **changes)
    assert told.count('has the label [-1], the model has 3 classes') == 1


def one_stage(head: nn.Module) -> dict:
    return dict(bbox_head=head)


def two_stages(head: nn.Module) -> dict:
    return dict(roi_head=nn.ModuleDict(one_stage(head)))


def cascade(head: nn.Module) -> dict:
    return two_stages(nn.ModuleList([head, nn.Identity()]))


def watch(num_classes: object, kind=one_stage) -> Callable[[object], None]:
    """A hook's look at the batches of a model whose head has this many classes."""
    head = nn.Identity()
    head.num_classes = num_classes
    loop = SimpleNamespace(dataloader=SimpleNamespace(dataset=[]))
    runner = SimpleNamespace(
        model=nn.Module(), train_dataloader=None, train_loop=loop, val_loop=None
    )
    for name, module in kind(head).items():
        runner.model.add_module(name, module)
    hook = DataHook()
    hook.before_train(runner)
    return lambda batch: hook.before_train_iter(runner, 0, batch)


@pytest.mark.parametrize('kind', [one_stage, two_stages, cascade])
def test_label_of_a_box_out_of_range(kind):
    """In a detector, and in what MMDetection's images are made of."""
    look = watch(3, kind)

    def see(*labels: list) -> None:
        samples = [
            BaseDataElement(
                metainfo=dict(img_path=f'{index}.jpg'),
                gt_instances=InstanceData(labels=torch.tensor(each, dtype=torch.int64)),
            )
            for index, each in enumerate(labels)
        ]
        look(dict(data_samples=samples))

    see([0, 2], [])
    message = r'1\.jpg has the label \[0, 3\], the model has 3 classes'
    with pytest.raises(DataError, match=message):
        see([2], [0, 3])


def test_what_is_no_class_number():
    """Targets of a regression, batches of another form, heads that count otherwise."""
    seven, target = (
        dict(data_samples=[BaseDataElement(gt_label=torch.tensor([label]))])
        for label in (7, 7.5)
    )
    look = watch(3)
    for batch in (target, [seven], dict(inputs=[])):
        look(batch)
    watch([3])(seven)
    with pytest.raises(DataError):
        look(seven)


class OwnValLoop(BaseLoop):
    """A loop without an evaluator, which MMEngine does not ask for."""

    def __init__(self, runner, dataloader, evaluator) -> None:
        super().__init__(runner, dataloader)

    def run(self) -> None:
        self.runner.model.eval()


def test_validation_loop_of_ones_own(train):
    LOOPS.register_module(module=OwnValLoop, force=True)
    train(**{'val_cfg.type': 'OwnValLoop'})


VALID = {
    'fewer classes than the head': lambda folder: dict(train=lines(folder, 0, 1)),
    'labels that the loss ignores': lambda folder: dict(train=lines(folder, 0, -100)),
    'repeated and joined': lambda folder: dict(
        train=dict(
            type='RepeatDataset',
            times=2,
            dataset=dict(type='ConcatDataset', datasets=[lines(folder, 0, 2)] * 2),
        )
    ),
    'other identities': lambda folder: dict(val=custom(folder, data_prefix='others')),
    'other numbers, but no accuracy of them': lambda folder: {
        'val_dataloader.dataset.data_prefix': 'fewer',
        'val_evaluator': dict(_delete_=True, type='ConfusionMatrix', num_classes=3),
    },
    'a subset by a file': lambda folder: dict(val=lines(folder, 0, 0)),
    'folds of one folder': lambda folder: dict(
        train=dict(
            type='KFoldDataset',
            num_splits=2,
            dataset=custom(folder, data_prefix='train'),
        )
    ),
    'margins between classes': lambda folder: {
        'model.head': dict(
            _delete_=True, type='ArcFaceClsHead', num_classes=3, in_channels=24
        )
    },
    'several labels': lambda folder: {
        'model.head.type': 'MultiLabelLinearClsHead',
        'model.head.loss.use_sigmoid': True,
        'data_preprocessor.to_onehot': True,
        'val_evaluator': dict(_delete_=True, type='MultiLabelMetric', thr=0.5),
    },
}


@pytest.mark.parametrize('name', VALID)
def test_valid_neighbours_pass_in_silence(name, train, folder):
    for other in ('others/rabbit', 'others/tortoise', 'fewer/star'):
        shutil.copytree(folder / 'val' / 'star', folder / other)
    assert train(**VALID[name](folder)) == ''


@pytest.mark.parametrize('metric', ['Accuracy', 'SingleLabelMetric'])
def test_folders_with_other_numbers(metric, train, folder):
    shutil.rmtree(folder / 'val' / 'circle')
    remark = train(**{'val_evaluator.type': metric})
    assert 'have other numbers than those of the same names before: square; star' in (
        remark
    )


def test_hidden_folders_are_named(train, folder):
    shutil.copytree(folder / 'train' / 'star', folder / 'train' / '.ipynb_checkpoints')
    shutil.copytree(folder / 'val' / 'star', folder / 'val' / '.ipynb_checkpoints')
    remark = train(**{'model.head.num_classes': 4, 'data_preprocessor.num_classes': 4})
    assert 'count as classes: .ipynb_checkpoints' in remark


def test_endless_epoch(train):
    changes = {
        'train_dataloader.sampler': dict(_delete_=True, type='InfiniteSampler'),
        'train_cfg': dict(_delete_=True, by_epoch=True, max_epochs=1),
    }
    with pytest.raises(DataError, match='the first epoch would never end'):
        train(**changes)
