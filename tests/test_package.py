# Copyright (c) mmpsvit contributors.
"""The installed package: registry, requirements, configs inside the package."""

import re
import shutil
import subprocess
import sys
import zipfile

import pytest


def run_python(code: str, cwd) -> subprocess.CompletedProcess:
    """Run code in a fresh process, away from the repository."""
    return subprocess.run(
        [sys.executable, '-W', 'ignore', '-c', code],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.mark.parametrize('scope', ['mmpretrain', 'mmdet', 'mmengine'])
def test_registry_from_any_scope(scope, tmp_path):
    """Without custom_imports: nothing has imported mmpsvit in this process."""
    done = run_python(
        f"""
import sys
from mmengine.registry import init_default_scope
from {scope}.registry import MODELS
init_default_scope({scope!r})
assert 'mmpsvit' not in sys.modules
model = MODELS.build(dict(type='mmpsvit.PSViT', arch='tiny'))
print(type(model).__name__, type(model.sampler).__name__)
""",
        tmp_path,
    )
    assert done.stdout.split() == ['PSViT', 'ProgressiveSampling'], done.stderr


@pytest.mark.parametrize('name', ['torch', 'mmengine', 'mmcv', 'mmpretrain'])
def test_missing_requirement(name, tmp_path):
    done = run_python(
        f'import sys; sys.modules[{name!r}] = None; import mmpsvit', tmp_path
    )
    assert done.returncode == 1
    last = done.stderr.strip().split('\n')[-1]
    assert last.startswith(f'ImportError: mmpsvit needs {name} >= ')
    assert 'pip install onedl-mmengine' in last


def test_old_requirement(tmp_path):
    done = run_python(
        "import mmcv; mmcv.__version__ = '1.7.2'; import mmpsvit", tmp_path
    )
    assert 'ImportError: mmpsvit needs mmcv >= 2.1.0, got 1.7.2' in done.stderr


@pytest.mark.parametrize('scope', ['mmpretrain', 'mmdet'])
def test_inherit_from_installed_package(scope, tmp_path):
    """A config of the user with `mmpsvit::`, under any default scope."""
    (tmp_path / 'mine.py').write_text(
        f"""_base_ = 'mmpsvit::psvit/ti14.py'
default_scope = {scope!r}
model = dict(head=dict(num_classes=7))
train_dataloader = val_dataloader = test_dataloader = None
train_cfg = val_cfg = test_cfg = val_evaluator = test_evaluator = None
optim_wrapper = param_scheduler = None
"""
    )
    done = run_python(
        """
import mmpsvit
from mmengine.config import Config
from mmengine.runner import Runner
cfg = Config.fromfile('mine.py')
cfg.work_dir = 'work'
model = Runner.from_cfg(cfg).model
print(type(model).__name__, type(model.backbone).__name__, model.head.num_classes)
""",
        tmp_path,
    )
    assert done.stdout.strip().endswith('ImageClassifier PSViT 7'), done.stderr
    # Every type is found in the scope that its config names.
    assert 'Failed to search registry' not in done.stdout + done.stderr


def readme_config(root, base: str) -> str:
    """The example config of the README that inherits ``base``."""
    blocks = re.findall(
        r'```python\n(.*?)```', (root / 'README.md').read_text(), re.DOTALL
    )
    (code,) = (block for block in blocks if f"_base_ = '{base}'" in block)
    return code


def test_detector_of_the_readme(root, tmp_path):
    """The inherited config of the README is a detector on our backbone."""
    code = readme_config(root, 'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py')
    (tmp_path / 'my_config.py').write_text(code)
    done = run_python(
        """
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
cfg = Config.fromfile('my_config.py')
init_default_scope(cfg.default_scope)
model = MODELS.build(cfg.model)
print(type(model).__name__, type(model.backbone).__name__)
""",
        tmp_path,
    )
    assert done.stdout.split() == ['RetinaNet', 'PSViT'], done.stderr


def test_example_of_the_readme(root, run_tool, image_folder, tmp_path):
    """The inherited config of the README trains on a folder of images."""
    code = readme_config(root, 'mmpsvit::psvit/b14.py')
    (tmp_path / 'my_config.py').write_text(code)
    image_folder('data/mine', [f'class{i}' for i in range(37)], per_class=1)
    output = run_tool(
        'tools/train.py',
        'my_config.py',
        '--cfg-options',
        'train_cfg.max_epochs=1',
        'train_dataloader.batch_size=2',
        'train_dataloader.num_workers=0',
        'train_dataloader.dataset.indices=2',
        'val_dataloader.num_workers=0',
        'val_dataloader.dataset.indices=2',
    )
    assert 'accuracy/top1' in output
    assert 'Failed to search registry' not in output
    assert (tmp_path / 'work_dirs' / 'my_config' / 'epoch_1.pth').exists()


def test_model_index(root, tmp_path):
    """MMPretrain builds every model of the index by its name."""
    done = run_python(
        f"""
import mmpsvit
from mmpretrain import ModelHub, get_model
ModelHub.register_model_index({str(root / 'model-index.yml')!r}, {str(root)!r})
for info in list(ModelHub._models_dict.values()):
    if info.name.startswith('psvit'):
        model = get_model(info.name)
        print(info.name, sum(p.numel() for p in model.parameters()))
        assert info.metadata.parameters == sum(p.numel() for p in model.parameters())
""",
        tmp_path,
    )
    names = [line.split()[0] for line in done.stdout.split('\n') if line[:5] == 'psvit']
    index = (root / 'configs' / 'psvit' / 'metafile.yml').read_text()
    assert names == re.findall(r'  - Name: (psvit-.*)', index), done.stderr
    for name in ('ti14', 'b10', 'b12', 'b14', 'b16', 'b18', 'b14-shared'):
        assert f'psvit-{name}_8xb64_in1k' in names


def test_inferencer(root, tmp_path):
    """MMPretrain's inferencer takes a name with weights, and a config with them."""
    done = run_python(
        f"""
import json
import mmpsvit
import numpy as np
import torch
from mmpretrain import ImageClassificationInferencer, ModelHub, get_model
ModelHub.register_model_index({str(root / 'model-index.yml')!r}, {str(root)!r})
name, config = 'psvit-ti14_8xb64_in1k', {str(root / 'configs/psvit/ti14.py')!r}
torch.manual_seed(0)
model = get_model(name)
model.init_weights()
classes = [f'class {{i}}' for i in range(1000)]
torch.save(
    dict(meta=dict(dataset_meta=dict(classes=classes)), state_dict=model.state_dict()),
    'weights.pth',
)
image = np.random.default_rng(0).integers(0, 255, (240, 320, 3), dtype=np.uint8)
for model in (name, config):
    inferencer = ImageClassificationInferencer(
        model, pretrained='weights.pth', device='cpu'
    )
    (result,) = inferencer(image)
    print('RESULT', result['pred_label'], result['pred_class'], result['pred_score'])
""",
        tmp_path,
    )
    found = re.findall(r'RESULT (\d+) class (\d+) ([\d.]+)', done.stdout)
    assert len(found) == 2, done.stderr
    assert found[0] == found[1]
    label, name, score = found[0]
    assert name == label
    # An untrained classifier of 1000 classes is sure of nothing.
    assert 0 < float(score) < 0.1


def test_wheel_holds_configs(root, tmp_path):
    source = tmp_path / 'source'
    shutil.copytree(
        root,
        source,
        ignore=shutil.ignore_patterns('.*', 'data', 'work_dirs', 'build', '*.egg-info'),
    )
    pip = [sys.executable, '-m', 'pip', 'wheel', '--quiet']
    options = ['--no-deps', '--no-build-isolation', '--wheel-dir', str(tmp_path)]
    subprocess.run([*pip, *options, str(source)], check=True)
    (wheel,) = tmp_path.glob('mmpsvit-*.whl')
    names = zipfile.ZipFile(wheel).namelist()
    assert 'mmpsvit/.mim/model-index.yml' in names
    assert 'mmpsvit/.mim/configs/psvit/b14.py' in names
    assert 'mmpsvit/.mim/configs/_base_/models/psvit_b14.py' in names
    metadata = next(name for name in names if name.endswith('METADATA'))
    requires = zipfile.ZipFile(wheel).read(metadata).decode()
    plain = [
        line
        for line in requires.split('\n')
        if line.startswith('Requires-Dist') and 'extra' not in line
    ]
    assert plain
    assert not any('mm' in line for line in plain), plain
