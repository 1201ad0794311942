# Copyright (c) mmpsvit contributors.
"""Mistakes of users, and files of strangers: one line, and nothing is executed."""

from pathlib import Path

import pytest
import torch
from scripts import Malicious, error_of
from stack import NEW_TORCH

from mmpsvit.guard import load_checkpoint


@pytest.fixture
def malicious(tmp_path) -> tuple[Path, Path]:
    """A checkpoint, and the folder that it would make if it were unpickled in full."""
    file, trap = tmp_path / 'strange.pth', tmp_path / 'executed'

    torch.save(dict(state_dict={}, meta=Malicious(trap)), file)
    return file, trap


def test_malicious_checkpoint_executes_nothing(small, run_here, malicious):
    config, options, folder = small
    file, trap = malicious
    for arguments in (
        ('tools/test.py', config, file, *options),
        ('tools/train.py', config, '--resume', file, *options),
        ('tools/train.py', config, *options, f'load_from={file}'),
        (
            'tools/train.py',
            config,
            *options,
            'model.init_cfg.type=Pretrained',
            f'model.init_cfg.checkpoint={file}',
        ),
        (
            'tools/visualization/vis_sampling.py',
            config,
            file,
            folder,
            '--out',
            'x.png',
            *options,
        ),
    ):
        output = run_here(*arguments, code=1)
        assert f'error: checkpoint {file} is refused' in output
        assert 'Traceback' not in output
        assert not trap.exists()


TEACHER = """
import mmpsvit
from mmengine.runner import load_checkpoint
from mmpretrain.registry import MODELS

@MODELS.register_module()
class Student(mmpsvit.PSViT):
    def __init__(self, teacher, **kwargs):
        super().__init__(**kwargs)
        load_checkpoint(self, teacher, map_location='cpu')
"""


def test_file_that_a_model_reads_itself_executes_nothing(
    small, run_here, run_tool, malicious, tmp_path, monkeypatch
):
    """As some models of MMPretrain and MMDetection do, when they are built."""
    config, options, folder = small
    file, trap = malicious
    honest = tmp_path / 'honest.pth'
    torch.save(dict(state_dict={}), honest)
    (tmp_path / 'student.py').write_text(TEACHER)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv('PYTHONPATH', str(tmp_path))
    mine = tmp_path / 'mine.py'
    mine.write_text(
        f"""_base_ = '{config}'
custom_imports = dict(imports=['student'])
model = dict(backbone=dict(type='Student', teacher='{file}'))
"""
    )
    for arguments in (
        ('tools/analysis_tools/get_flops.py', mine),
        ('tools/visualization/vis_sampling.py', mine, honest, folder, '--out', 'x.png'),
        ('tools/benchmarks/benchmark_speed.py', mine, '--device', 'cpu'),
        ('tools/train.py', mine, *options),
        ('tools/test.py', mine, honest, *options),
        *(
            [('tools/deployment/export_onnx.py', mine, honest, '--out', 'x.onnx')]
            if NEW_TORCH
            else []
        ),
    ):
        # A benchmark has no safe loading in this process.
        run = run_tool if 'benchmarks' in arguments[0] else run_here
        output = run(*arguments, code=1)
        assert f'error: checkpoint {file} is refused' in output
        assert 'Traceback' not in output
        assert not trap.exists()


def test_text_in_a_checkpoint_is_not_run(small, trained, run_here, tmp_path):
    """MMEngine runs the text in `meta.config` when it resumes."""
    config, options, _ = small
    trap = tmp_path / 'executed'
    checkpoint = load_checkpoint(trained)
    checkpoint['meta']['config'] = f"__import__('os').mkdir({str(trap)!r})\n"
    file = tmp_path / 'strange.pth'
    torch.save(checkpoint, file)
    more = [*options, 'train_cfg.max_iters=5']
    run_here('tools/train.py', config, '--resume', file, '--work-dir', 'new', *more)
    assert (tmp_path / 'new' / 'last_checkpoint').is_file()
    assert not trap.exists()


@pytest.mark.parametrize(
    ('script', 'arguments', 'message'),
    [
        ('train.py', ['nowhere.py'], 'argument config: nowhere.py does not exist'),
        ('train.py', ['CONFIG', '--resume', 'no.pth'], 'argument --resume: no.pth'),
        ('train.py', ['CONFIG', '--launcher', 'x'], 'argument --launcher: invalid'),
        ('test.py', ['CONFIG', 'no.pth'], 'argument checkpoint: no.pth'),
        ('test.py', ['CONFIG', 'SELF', '--out', 'x.txt'], 'argument --out: metrics'),
        ('test.py', ['CONFIG', 'SELF', '--out', 'folder.pkl'], 'is a folder'),
        (
            'test.py',
            ['CONFIG', 'SELF', '--tta', '--cfg-options', 'default_scope=mmdet'],
            'argument --tta: the config must have a tta_model and a tta_pipeline',
        ),
        ('test.py', ['CONFIG', 'SELF', '--out-item', 'pred'], 'argument --out-item'),
        ('test.py', ['SELF', 'SELF'], 'cannot be read as a config'),
        ('test.py', ['child.py', 'SELF'], 'is not defined, line 2 of'),
        ('vis', ['CONFIG', 'no.pth', '.', '--out', 'x.png'], 'argument checkpoint'),
        ('vis', ['CONFIG', 'SELF', 'none.png', '--out', 'x.png'], 'argument images'),
        (
            'vis',
            ['CONFIG', 'SELF', '.', '--out', 'x.png', '--cfg-options', 'foo'],
            'argument --cfg-options: expected key=value, got foo',
        ),
        (
            'vis',
            ['CONFIG', 'SELF', '.', '--out', 'x.png', '--columns', '0'],
            'argument --columns: must be at least 1, got 0',
        ),
    ],
)
def test_mistakes_are_told_in_one_line(
    script, arguments, message, root, tmp_path, monkeypatch
):
    (tmp_path / 'folder.pkl').mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    config = root / 'configs' / 'cluttered_digits' / 'psvit.py'
    readme = root / 'README.md'
    (tmp_path / 'base.py').write_text('lr = 1\nwidth = unknown\n')
    (tmp_path / 'child.py').write_text("_base_ = 'base.py'\n")
    script = 'visualization/vis_sampling.py' if script == 'vis' else script
    arguments = [{'CONFIG': config, 'SELF': readme}.get(a, a) for a in arguments]
    assert message in error_of(f'tools/{script}', *arguments)


def test_mismatches_are_told_in_one_line(
    small, trained, run_here, tmp_path, image_folder
):
    config, options, _ = small
    (tmp_path / 'empty' / 'val').mkdir(parents=True)
    names = ['circle', 'square', 'star', 'heart', 'arrow']
    other = image_folder('other', names, per_class=1)
    five = ['model.head.num_classes=5', 'data_preprocessor.num_classes=5']
    five += [
        f'{name}_dataloader.dataset.data_root={other}'
        for name in ('train', 'val', 'test')
    ]
    for overrides, message in (
        (
            five,
            f'error: checkpoint {trained} does not fit the config: head.layers.head'
            '.weight has shape (3, 96), the model wants (5, 96); head.layers.head.bias',
        ),
        (
            ['test_dataloader.dataset.data_root=empty'],
            "error: data set CustomDataset(data_root='empty', data_prefix='val') "
            'cannot be read (RuntimeError: Found 0 files',
        ),
    ):
        output = run_here(
            'tools/test.py', config, trained, *options, *overrides, code=1
        )
        last = output.strip().split('\n')[-1]
        assert last.startswith('test.py: error: ')
        assert message in last
        assert 'Traceback' not in output
