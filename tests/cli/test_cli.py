# Copyright (c) mmpsvit contributors.
"""What users get to read: mistakes in one line, remarks only where they are sure."""

import argparse
import runpy
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.model import BaseModel
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, init_default_scope
from mmpretrain.models import MAE
from mmpretrain.structures import DataSample
from small import small_arch
from torch import nn
from torch.utils.data import DataLoader

from mmpsvit.cli import (
    RunError,
    add_common_arguments,
    load_config,
    one_line_errors,
    set_dataloader_defaults,
    training_remarks,
)

MEAN, STD = [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]


@pytest.fixture
def load(tmp_path, monkeypatch):
    """Load a config with arguments of the command line."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'mine.py').write_text(
        'width = 3\n'
        'model = dict(width=width)\n'
        'val_evaluator = [dict(type="Accuracy")]\n'
        'train_cfg = dict(max_iters=4)\n'
    )

    def run(*arguments: str) -> Config:
        parser = argparse.ArgumentParser(prog='tool.py')
        parser.add_argument('config')
        add_common_arguments(parser)
        return load_config(parser, parser.parse_args(['mine.py', *arguments]))

    return run


def test_options_are_applied(load):
    cfg = load('--cfg-options', 'train_cfg.max_iters=2', 'val_evaluator.0.topk=(1,2)')
    assert cfg.train_cfg.max_iters == 2
    assert cfg.val_evaluator[0].topk == (1, 2)
    assert cfg.work_dir == str(Path('work_dirs') / 'mine')


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['--cfg-options', 'train_cfg'], 'expected key=value, got train_cfg'),
        (
            ['--cfg-options', "a=[{'b':(1,2)}]"],
            "may not be a dict, name its keys (a.b=1), got a=[{'b':(1,2)}]",
        ),
        (
            ['--cfg-options', 'val_evaluator.3.topk=1'],
            '--cfg-options: they do not fit',
        ),
        (['--cfg-options', 'val_evaluator.x.y=1'], '--cfg-options: they do not fit'),
        (
            ['--cfg-options', 'train_cfg.max_iters.a=1'],
            '--cfg-options: they do not fit',
        ),
        (['--work-dir', 'mine.py'], 'argument --work-dir: mine.py is a file'),
    ],
)
def test_mistakes_are_one_line(arguments, message, load, capsys):
    with pytest.raises(SystemExit) as stopped:
        load(*arguments)
    assert stopped.value.code == 2
    line = capsys.readouterr().err.split('tool.py: error: ')[1]
    assert message in line
    assert line.count('\n') == 1


@pytest.mark.parametrize(
    ('config', 'options', 'expected'),
    [
        ('num_workers=2', [], (True, True)),
        ('num_workers=0', [], (True, False)),
        ('num_workers=2, pin_memory=False', [], (False, True)),
        ('num_workers=2, persistent_workers=False', [], (True, False)),
        ('num_workers=2, pin_memory=True', ['--no-pin-memory'], (False, True)),
        (
            'num_workers=2, persistent_workers=True',
            ['--no-persistent-workers'],
            (True, False),
        ),
    ],
)
def test_data_loaders_of_a_training(
    config, options, expected, root, tmp_path, monkeypatch
):
    """What the config leaves open is filled in; options win over the config."""
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    (tmp_path / 'mine.py').write_text(f'train_dataloader = dict({config})')
    monkeypatch.setattr('sys.argv', ['train.py', str(tmp_path / 'mine.py'), *options])
    tool = runpy.run_path(str(root / 'tools' / 'train.py'))
    loader = tool['parse_args']().train_dataloader
    assert (loader.pin_memory, loader.persistent_workers) == expected


@pytest.mark.parametrize(
    ('part', 'stacks'),
    [
        (dict(default_scope='mmpretrain', model=dict(type='SimCLR')), True),
        (dict(model=dict(type='mmpretrain.SimCLR')), True),
        (dict(model=dict(type='ImageClassifier')), True),
        (dict(model=dict(type=MAE)), True),
        (dict(model=dict(type=BaseModel)), False),
        (dict(model=dict(type=small_arch)), False),  # a function may make one
        (dict(default_scope='mmpretrain', model=dict(type=BaseModel)), True),
        (dict(model=dict(type='TTA', module=dict(type='ImageClassifier'))), True),
        (dict(default_scope='mmdet', model=dict(type='RetinaNet')), False),
        (dict(default_scope='mmpretrain', model=dict(type='mmdet.RetinaNet')), False),
    ],
)
def test_batches_are_stacked(part, stacks):
    """As by MMPretrain's tool, unless the config says otherwise."""
    loaders = dict(train_dataloader={}, val_dataloader=dict(collate_fn='mine'))
    cfg = Config({**loaders, **part})
    set_dataloader_defaults(cfg)
    expected = dict(type='default_collate') if stacks else None
    assert cfg.train_dataloader.get('collate_fn') == expected
    assert cfg.val_dataloader.collate_fn == 'mine'


@pytest.mark.parametrize('kind', ['ImageClassifier', 'mine.Model'])
@pytest.mark.parametrize(
    'tta_model', [None, dict(type='AverageClsScoreTTA', note='mine')]
)
def test_mirror_images_without_a_tta_pipeline(
    kind, tta_model, root, tmp_path, monkeypatch
):
    """As with MMPretrain's tool."""
    pipeline = [dict(type='LoadImageFromFile'), dict(type='PackInputs')]
    loader = dict(dataset=dict(type='ImageNet', pipeline=pipeline))
    cfg = Config(dict(model=dict(type=kind), test_dataloader=loader))
    if tta_model:
        cfg.tta_model = tta_model
    cfg.dump(tmp_path / 'mine.py')
    arguments = (str(tmp_path / 'mine.py'), __file__, '--tta')
    monkeypatch.setattr('sys.argv', ['test.py', *arguments])
    tool = runpy.run_path(str(root / 'tools' / 'test.py'))
    _, read = tool['parse_args']()
    assert read.model.module.type == kind
    assert read.model.get('note') == (tta_model or {}).get('note')
    assert read.test_dataloader.dataset.pipeline[-1].type == 'TestTimeAug'


def test_options_that_nothing_reads_are_told(load, capfd):
    load('--cfg-options', 'train_cfg.max_iters=2', 'randomness.seed=1', 'sync_bn=torch')
    assert 'WARNING' not in ''.join(capfd.readouterr())
    load('--cfg-options', 'width=4', 'max_iters=2')
    told = ''.join(capfd.readouterr())
    assert 'MMEngine reads no width at the top of a config' in told
    assert 'MMEngine reads no max_iters at the top of a config' in told


class Broken:
    """A data set that cannot be read."""

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int):
        raise ValueError('first\n  second')


def test_failure_is_one_line_and_its_traceback_a_file(tmp_path):
    cfg = Config(dict(work_dir=str(tmp_path)))
    with pytest.raises(RunError) as caught, one_line_errors(cfg):
        raise ValueError('first\nsecond')
    file = tmp_path / 'traceback_of_rank_0.txt'
    assert str(caught.value) == f'ValueError: first second (traceback: {file})'
    assert "raise ValueError('first\\nsecond')" in file.read_text()
    with pytest.raises(RunError) as caught, one_line_errors(cfg):
        raise AssertionError
    assert str(caught.value).startswith('AssertionError: raise AssertionError (')
    # Of a worker's error, whose message is a traceback.
    with pytest.raises(RunError) as caught, one_line_errors(cfg):
        next(iter(DataLoader(Broken(), num_workers=1)))
    assert str(caught.value).startswith('ValueError: first second (traceback')


def told(model: nn.Module | dict, tmp_path: Path, run=None) -> str:
    """What is said of a model that fails."""
    if isinstance(model, dict):
        model = MODELS.build(dict(type='mmpretrain.ImageClassifier', **model))
    images = torch.rand(2, 3, 32, 32)
    cfg = Config(dict(work_dir=str(tmp_path)))
    with pytest.raises(RunError) as caught, one_line_errors(cfg):
        run(model, images) if run else model(images, mode='tensor')
    return str(caught.value).removesuffix(
        f' (traceback: {tmp_path}/traceback_of_rank_0.txt)'
    )


@pytest.mark.parametrize(
    ('out_type', 'after', 'remedy'),
    [
        (
            'cls_token',
            dict(head=dict(type='mmpsvit.PSViTClsHead', num_classes=3, in_channels=20)),
            'model.head.in_channels is 20: for this backbone, set 24',
        ),
        (
            'featmap',
            dict(
                neck=dict(
                    type='mmdet.FPN', in_channels=[8, 24], out_channels=8, num_outs=5
                )
            ),
            'model.neck.in_channels is [8, 24]: for this backbone, set [24, 24, 24, '
            '24]',
        ),
        (
            'raw',
            dict(
                neck=dict(
                    type='mmdet.FPN', in_channels=[24] * 4, out_channels=8, num_outs=5
                )
            ),
            "model.backbone.out_type is 'raw': if the next part takes maps, set "
            "'featmap'",
        ),
        (
            'featmap',
            dict(head=dict(type='mmpsvit.PSViTClsHead', num_classes=3, in_channels=24)),
            "model.backbone.out_type is 'featmap': if the head takes vectors, set "
            "'cls_token', or put a pooling neck between",
        ),
    ],
)
def test_parts_that_do_not_fit_are_explained_after_the_failure(
    out_type, after, remedy, tmp_path
):
    if 'neck' in after:
        pytest.importorskip('mmdet')
    backbone = dict(
        type='mmpsvit.PSViT', arch=small_arch(num_layers=5), out_type=out_type
    )
    init_default_scope('mmpretrain')
    assert told(dict(backbone=backbone, **after), tmp_path).endswith(remedy)


def test_numbers_of_classes_are_explained(tmp_path):
    init_default_scope('mmpretrain')
    model = dict(
        backbone=dict(type='mmpsvit.PSViT', arch=small_arch(num_layers=5)),
        head=dict(
            type='mmpsvit.PSViTClsHead',
            num_classes=3,
            in_channels=24,
            loss=dict(type='LabelSmoothLoss', label_smooth_val=0.1, mode='original'),
        ),
        data_preprocessor=dict(
            num_classes=5, batch_augments=dict(augments=dict(type='Mixup', alpha=0.2))
        ),
    )

    def train(model: nn.Module, images: torch.Tensor) -> None:
        samples = [DataSample().set_gt_label(label) for label in (0, 1)]
        data = dict(inputs=images, data_samples=samples)
        model(**model.data_preprocessor(data, training=True), mode='loss')

    assert told(model, tmp_path, train).endswith(
        'head.num_classes is 3 and data_preprocessor.num_classes 5: set both to the '
        'number of classes'
    )
    # Without mixup nothing needs the second one.
    model['data_preprocessor'] = dict(num_classes=5)
    built = MODELS.build(dict(type='ImageClassifier', **model))
    built.head.loss_module = Failing()
    assert told(built, tmp_path, train) == 'TypeError: mine'


class Failing(nn.Module):
    """Fails by itself."""

    def forward(self, *_, **__) -> None:
        raise TypeError('mine')


def test_other_failures_are_not_explained(tmp_path):
    """That of the backbone itself, of parts that fit, and of another model."""
    init_default_scope('mmpretrain')
    backbone = dict(type='mmpsvit.PSViT', arch=small_arch(num_layers=5))
    head = dict(type='mmpsvit.PSViTClsHead', num_classes=3, in_channels=20)
    wrong = torch.rand(2, 4, 32, 32)
    message = told(
        dict(backbone=backbone, head=head),
        tmp_path,
        lambda model, _: model(wrong, mode='tensor'),
    )
    assert message.endswith('got (2, 4, 32, 32)')
    changes = dict(type='LinearNeck', in_channels=24, out_channels=20)
    hides = dict(type='NonLinearNeck', in_channels=24, hid_channels=8, out_channels=20)
    hides['with_avg_pool'] = False
    for parts in (
        dict(head={**head, 'in_channels': 24}),
        dict(neck=changes, head=head),
        dict(neck=hides, head=head),
    ):
        model = MODELS.build(dict(type='ImageClassifier', backbone=backbone, **parts))
        model(torch.rand(2, 3, 32, 32), mode='tensor')
        model.head = Failing()
        assert told(model, tmp_path) == 'TypeError: mine'
    assert told(Failing(), tmp_path, Failing.__call__) == 'TypeError: mine'


def optimise(optim_wrapper: object, tmp_path: Path) -> str:
    """What is said where an optimizer cannot be built."""
    cfg = Config(dict(work_dir=str(tmp_path), optim_wrapper=optim_wrapper))
    with pytest.raises(RunError) as caught, one_line_errors(cfg):
        build_optim_wrapper(nn.Linear(1, 1), cfg.optim_wrapper)
    assert (tmp_path / 'traceback_of_rank_0.txt').is_file()
    return str(caught.value)


def test_unknown_optimizer_is_explained(tmp_path):
    init_default_scope('mmpretrain')
    message = optimise(dict(optimizer=dict(type='AdamV', lr=1)), tmp_path)
    assert "There is no optim_wrapper.optimizer.type 'AdamV'" in message
    for optimizer in (dict(type='Lamb', wrong=1), 'SGD', dict(type='', lr=1)):
        message = optimise(dict(optimizer=optimizer), tmp_path)
        assert 'There is no' not in message and 'Error' in message


def detector(mean: list, std: list, **changes) -> Config:
    backbone = dict(type='mmpsvit.PSViT', init_cfg=dict(type='Pretrained')) | changes
    return Config(
        dict(
            model=dict(
                type='RetinaNet',
                backbone=backbone,
                data_preprocessor=dict(mean=mean, std=std),
            )
        )
    )


def test_remarks_on_detectors():
    assert [*training_remarks(detector(MEAN, STD))] == []
    assert [*training_remarks(detector(tuple(MEAN), tuple(STD)))] == []
    assert [*training_remarks(detector([127.5], [127.5]))] == []
    (remark,) = training_remarks(detector(MEAN[::-1], [1.0] * 3))
    assert 'normalised in BGR' in remark
    (remark,) = training_remarks(detector(MEAN, STD, init_cfg=None))
    assert 'starts from scratch' in remark
    assert [*training_remarks(detector(MEAN, STD, type='ResNet', init_cfg=None))] == []


def test_classifiers_are_trained_as_they_are():
    cfg = detector(MEAN[::-1], [1.0] * 3, init_cfg=None)
    cfg.model.head = dict(type='LinearClsHead')
    assert [*training_remarks(cfg)] == []
