# Copyright (c) mmpsvit contributors.
"""The package as it is installed from its source distribution; models by name; MIM."""

import importlib
import os
import re
import shutil
import subprocess
import sys
import tarfile
from importlib.metadata import PathDistribution
from importlib.util import find_spec
from pathlib import Path

import mmcv
import pytest
import yaml

import mmpsvit
from mmpsvit import utils

CHECKOUT_ONLY = ('install_mmcv_ops.sh', 'run_demo.sh', 'run_on_gpu.sh', 'aims.py')
# Of a checkout; what a build leaves behind would hide what is missing.
IGNORED = ('.*', '__pycache__', 'data', 'work_dirs', 'build', 'dist', '*.egg-info')


def run(*args, cwd: Path, site: Path | None = None) -> str:
    """Run Python with what is installed in ``site``; what it prints."""
    env = {name: value for name, value in os.environ.items() if name != 'PYTHONPATH'}
    done = subprocess.run(
        [sys.executable, '-W', 'ignore', *map(str, args)],
        cwd=cwd,
        env={**env, **({'PYTHONPATH': str(site)} if site else {})},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout[-5000:]
    return done.stdout


@pytest.fixture(scope='module')
def sdist(root, tmp_path_factory) -> Path:
    """The source distribution, by the hook that `python -m build` calls."""
    source = tmp_path_factory.mktemp('sdist') / 'source'
    shutil.copytree(root, source, ignore=shutil.ignore_patterns(*IGNORED))
    code = 'from setuptools.build_meta import build_sdist; build_sdist("../dist")'
    run('-c', code, cwd=source)
    (archive,) = (source.parent / 'dist').iterdir()
    return archive


@pytest.fixture(scope='module')
def site(sdist) -> Path:
    """A folder with the wheel that is built from the source distribution.

    On PYTHONPATH it comes before the checkout, if that is installed.
    """
    folder = sdist.parent / 'site'
    options = ('--no-deps', '--no-index', '--no-build-isolation', '--target', folder)
    run('-m', 'pip', 'install', '--quiet', *options, sdist, cwd=sdist.parent)
    return folder


def test_all_configs_and_tools_are_shipped(root, sdist, site):
    """And nothing beside the package, and no requirement of either family."""
    configs = {
        path.relative_to(root).as_posix()
        for folder, pattern in (
            *(('configs', pattern) for pattern in ('*.py', '*.yml')),
            *(('tools', pattern) for pattern in ('*.py', '*.sh')),
        )
        for path in (root / folder).rglob(pattern)
    }
    assert sdist.name == f'mmpsvit-{mmpsvit.__version__}.tar.gz'
    with tarfile.open(sdist) as archive:
        in_sdist = {name.partition('/')[2] for name in archive.getnames()}
    assert len(configs) > 50
    assert configs <= in_sdist
    assert not [name for name in in_sdist if name.startswith('tests/')]
    assert not [name for name in in_sdist if name.startswith('mmpsvit/.mim')]
    for name in ('model-index.yml', *configs):
        shipped = site / 'mmpsvit' / '.mim' / name
        if shipped.name in CHECKOUT_ONLY:
            assert not shipped.exists()
            continue
        assert shipped.is_file()
        assert os.access(shipped, os.X_OK) == (shipped.suffix == '.sh'), name
    metadata = f'mmpsvit-{mmpsvit.__version__}.dist-info'
    assert {path.name for path in site.iterdir()} == {'mmpsvit', metadata}
    required = PathDistribution(site / metadata).requires
    plain = [line for line in required if 'extra ==' not in line]
    assert plain and not any('mm' in line for line in plain)


def test_registry_and_inheritance(site, tmp_path):
    """Types are found from any scope, unasked; configs inherit `mmpsvit::...`."""
    (tmp_path / 'mine.py').write_text(
        """_base_ = 'mmpsvit::psvit/ti14.py'
default_scope = 'mmdet'
work_dir = 'work'
model = dict(head=dict(num_classes=7))
train_dataloader = val_dataloader = test_dataloader = None
train_cfg = val_cfg = test_cfg = val_evaluator = test_evaluator = None
optim_wrapper = param_scheduler = None
"""
    )
    code = """
import sys
import mmdet.registry, mmpretrain.registry
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from mmengine.runner import Runner
assert 'mmpsvit' not in sys.modules
for scope in ('mmdet', 'mmpretrain', 'mmengine'):
    with DefaultScope.overwrite_default_scope(scope):
        model = MODELS.build(dict(type='mmpsvit.PSViT', arch='tiny'))
    print('FOUND', type(model).__name__, type(model.sampler).__name__)
print('FOUND', sys.modules['mmpsvit'].__file__)
model = Runner.from_cfg(Config.fromfile('mine.py')).model
backbone, classes = type(model.backbone).__name__, model.head.num_classes
print('FOUND', type(model).__name__, backbone, classes)
"""
    output = run('-c', code, cwd=tmp_path, site=site)
    *built, file, model = re.findall('FOUND (.*)', output)
    assert built == ['PSViT ProgressiveSampling'] * 3
    assert Path(file) == site / 'mmpsvit' / '__init__.py'
    assert model == 'ImageClassifier PSViT 7'
    # Every type is found in the scope that its config names.
    assert 'Failed to search registry' not in output


def test_models_by_name(site, tmp_path):
    """MMPretrain finds all classifiers by name, and infers by name or config alike."""
    code = """
import sys
import mmpsvit
import numpy as np
import torch
from mmpretrain import ImageClassificationInferencer, get_model, inference_model
from mmpretrain import list_models
print('LISTED', *list_models('*psvit*', task='Image Classification'))
print('OTHERS', *list_models('*psvit*_coco'), *list_models('*psvit*_ade20k'))
name, config = 'psvit-ti14_8xb64_in1k', sys.argv[1] + '/configs/psvit/ti14.py'
torch.manual_seed(0)
model = get_model(name)
model.init_weights()
classes = [f'class {i}' for i in range(1000)]
meta = dict(dataset_meta=dict(classes=classes))
torch.save(dict(meta=meta, state_dict=model.state_dict()), 'weights.pth')
image = np.random.default_rng(0).integers(0, 255, (240, 320, 3), dtype=np.uint8)
by_config = ImageClassificationInferencer(config, 'weights.pth', device='cpu')
by_name = inference_model(name, image, pretrained='weights.pth', device='cpu')
for result in (by_name, *by_config(image)):
    print('RESULT', result['pred_label'], result['pred_class'], result['pred_score'])
"""
    mim = site / 'mmpsvit' / '.mim'
    output = run('-c', code, mim, cwd=tmp_path, site=site)
    listed = (mim / 'configs' / 'psvit' / 'metafile.yml').read_text()
    names = re.findall(r' - Name: (psvit-.*)', listed)
    assert names and sorted(names) == sorted(
        re.search('LISTED (.*)', output)[1].split()
    )
    # MMPretrain could not build them.
    assert re.search('OTHERS(.*)', output)[1].split() == []
    by_name, by_config = re.findall(r'RESULT (\d+) class (\d+) ([\d.]+)', output)
    assert by_name == by_config
    label, name, score = by_name
    assert name == label
    # An untrained classifier of 1000 classes is sure of nothing.
    assert 0 < float(score) < 0.1


def test_hub_of_mmengine(site, tmp_path):
    """It builds a classifier and a detector, both in the scope that they need."""
    pytest.importorskip('mmdet')
    code = """
import mmpsvit
from mmengine.hub import get_config, get_model
for name in ('psvit/ti14.py', 'mmdet/retinanet_psvit-ti14_fpn_1x_coco.py'):
    model = get_model('mmpsvit::' + name)
    print('BUILT', type(model).__name__, type(model.backbone).__name__)
try:
    get_config('mmpsvit::psvit/ti14.py', pretrained=True)
except AssertionError as error:
    print('ERROR', error)
"""
    output = run('-c', code, cwd=tmp_path, site=site)
    built = re.findall('BUILT (.*)', output)
    assert built == ['ImageClassifier PSViT', 'RetinaNet PSViT']
    assert 'ERROR Cannot find `Weights`' in output


def test_model_index_names_every_config(root):
    """Those of the data sets in their names; the small ones are examples."""
    index = yaml.safe_load((root / 'model-index.yml').read_text())
    models = [
        model
        for file in index['Import']
        for model in yaml.safe_load((root / file).read_text())['Models']
    ]
    configs = {
        path.relative_to(root).as_posix()
        for folder in ('psvit', 'mmdet', 'mmseg')
        for path in (root / 'configs' / folder).rglob('*.py')
    }
    assert {model['Config'] for model in models} == configs
    assert len({model['Name'] for model in models}) == len(models)


def test_import_never_fails_for_the_index(tmp_path, monkeypatch, recwarn):
    register = utils.register_model_names.__wrapped__
    monkeypatch.setattr(utils, '__file__', str(tmp_path / 'utils.py'))
    register()
    assert not recwarn.list
    index = tmp_path / '.mim' / 'configs' / 'psvit' / 'metafile.yml'
    index.parent.mkdir(parents=True)
    index.write_text('no index')
    with pytest.warns(UserWarning, match='does not know the models of .*metafile'):
        register()


@pytest.mark.parametrize('package', ['mmpretrain', 'mmpsvit'])
def test_train_script_of_mim(package, site, small, tmp_path):
    """What `mim train PACKAGE CONFIG` runs; MMPretrain's does not import mmpsvit."""
    installed = (
        site if package == 'mmpsvit' else Path(find_spec(package).origin).parents[1]
    )
    script = installed / package / '.mim' / 'tools' / 'train.py'
    config, options, _ = small
    options += ['train_cfg.max_iters=2']
    # Without workers PyTorch refuses them, and MMPretrain's script leaves them on.
    options += [f'{x}_dataloader.persistent_workers=False' for x in ('train', 'val')]
    # torch.distributed.launch, which MIM starts for several GPUs, adds the first.
    command = (script, '--local-rank=0', config, '--launcher', 'none')
    command += ('--work-dir', 'work')
    output = run(*command, *options, cwd=tmp_path, site=site)
    assert 'accuracy/top1' in output
    assert (tmp_path / 'work' / 'iter_2.pth').exists()


@pytest.mark.parametrize('name', ['torch', 'mmengine', 'mmcv', 'mmpretrain'])
def test_missing_requirement(name, monkeypatch):
    monkeypatch.setitem(sys.modules, name, None)
    message = rf'^mmpsvit needs {name} >= .*pip install .*onedl-mmengine'
    with pytest.raises(ImportError, match=message):
        importlib.reload(mmpsvit)


def test_old_requirement(monkeypatch):
    monkeypatch.setattr(mmcv, '__version__', '1.7.2')
    with pytest.raises(
        ImportError, match=r'mmpsvit needs mmcv >= 2\.1\.0, got 1\.7\.2'
    ):
        importlib.reload(mmpsvit)


def test_beside_transformers_5(tmp_path):
    """MMPretrain's multimodal models cannot be imported there, and are left out."""
    for name, version in (('transformers', '5.0.0'), ('pycocotools', '2.0.0')):
        metadata = tmp_path / f'{name}-{version}.dist-info' / 'METADATA'
        metadata.parent.mkdir()
        metadata.write_text(
            f'Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n'
        )
    # That MMPretrain believes them to be there, so that it would import them.
    code = 'from mmpretrain.utils.dependency import WITH_MULTIMODAL as w; assert w'
    run('-c', code, cwd=tmp_path, site=tmp_path)
    code = 'import mmpsvit, mmpretrain.models as m; print(m.VisionTransformer.__name__)'
    assert 'VisionTransformer' in run('-c', code, cwd=tmp_path, site=tmp_path)
