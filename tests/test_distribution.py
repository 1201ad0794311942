# Copyright (c) mmpsvit contributors.
"""Wheel and sdist in an environment without mmpsvit, and MIM's way of training."""

import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from importlib.util import find_spec
from pathlib import Path

import pytest

SITE_PACKAGES = Path(sysconfig.get_path('purelib'))
# Of a checkout; what a build leaves behind would hide what is missing.
IGNORED = ('.*', '__pycache__', 'data', 'work_dirs', 'build', 'dist', '*.egg-info')


def run(*command, cwd: Path, code: int = 0) -> str:
    """Run a command without this process's paths; what it prints."""
    hidden = ('PYTHONPATH', 'PYTHONHOME', 'VIRTUAL_ENV')
    env = {name: value for name, value in os.environ.items() if name not in hidden}
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env={**env, 'PYTHONWARNINGS': 'ignore'},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=600,
    )
    assert done.returncode == code, done.stdout[-5000:]
    return done.stdout


@pytest.fixture(scope='module')
def sdist(root, tmp_path_factory) -> Path:
    """The source distribution, by the hook that `python -m build` calls."""
    folder = tmp_path_factory.mktemp('sdist')
    source = folder / 'source'
    shutil.copytree(root, source, ignore=shutil.ignore_patterns(*IGNORED))
    code = 'from setuptools.build_meta import build_sdist; build_sdist("../dist")'
    run(sys.executable, '-c', code, cwd=source)
    (archive,) = (folder / 'dist').iterdir()
    return archive


@pytest.fixture(scope='module')
def wheel(sdist) -> Path:
    """The wheel that is built from the source distribution."""
    pip = (sys.executable, '-m', 'pip', 'wheel', '--quiet', '--no-deps', '--no-index')
    run(*pip, '--no-build-isolation', '--wheel-dir', '.', sdist, cwd=sdist.parent)
    (archive,) = sdist.parent.glob('*.whl')
    return archive


@pytest.fixture(scope='module')
def python(wheel, tmp_path_factory) -> Path:
    """An environment with the wheel, which sees this one's other packages."""
    folder = tmp_path_factory.mktemp('empty') / 'venv'
    run(sys.executable, '-m', 'venv', '--without-pip', folder, cwd=folder.parent)
    interpreter = folder / 'bin' / 'python'
    run(interpreter, '-c', 'import mmpsvit', cwd=folder, code=1)
    # Installed before the others are in sight, so that pip leaves those alone.
    pip = (sys.executable, '-m', 'pip', '--python', interpreter, 'install')
    run(*pip, '--quiet', '--no-deps', '--no-index', wheel, cwd=folder)
    (packages,) = folder.glob('lib/python*/site-packages')
    # The line adds a folder, not the editable mmpsvit that .pth files in it name.
    # So setuptools' own, without which Python 3.12 has no distutils, is here again.
    shim = 'import _distutils_hack; _distutils_hack.add_shim()'
    (packages / 'others.pth').write_text(f'{SITE_PACKAGES}\n{shim}\n')
    return interpreter


def test_names_of_the_archives(sdist, wheel):
    from mmpsvit import __version__

    assert sdist.name == f'mmpsvit-{__version__}.tar.gz'
    assert wheel.name == f'mmpsvit-{__version__}-py3-none-any.whl'


def test_both_hold_all_configs(root, sdist, wheel):
    """As many as the repository has, and nothing of this machine."""
    configs = {
        path.relative_to(root).as_posix()
        for pattern in ('*.py', '*.yml')
        for path in (root / 'configs').rglob(pattern)
    }
    with tarfile.open(sdist) as archive:
        in_sdist = {name.partition('/')[2] for name in archive.getnames()}
    with zipfile.ZipFile(wheel) as archive:
        in_wheel = set(archive.namelist())
    assert len(configs) > 40
    assert configs <= in_sdist
    assert {f'mmpsvit/.mim/{name}' for name in configs} <= in_wheel
    assert not [name for name in in_sdist if name.startswith('mmpsvit/.mim')]
    outside = {name.split('/')[0] for name in in_wheel}
    assert outside == {'mmpsvit', wheel.name.split('-py3')[0] + '.dist-info'}


def test_wheel_without_the_checkout(python, root, tmp_path):
    """Imports, and finds its configs, from a folder of the user's."""
    (tmp_path / 'mine.py').write_text("_base_ = 'mmpsvit::psvit/b14.py'\n")
    code = """
import mmpsvit
from mmpsvit import PSViT
from mmengine.config import Config
print(mmpsvit.__file__)
cfg = Config.fromfile('mine.py')
print(cfg.model.backbone.type, cfg.max_epochs)
print(type(PSViT('tiny')).__module__)
"""
    lines = run(python, '-c', code, cwd=tmp_path).strip().split('\n')[-3:]
    assert Path(lines[0]).is_relative_to(python.parent.parent)
    assert lines[1:] == ['mmpsvit.PSViT 300', 'mmpsvit.models.backbones.psvit']


def test_train_script_of_mim(python, root, image_folder, tmp_path):
    """What `mim train mmpretrain CONFIG` runs; it does not import mmpsvit."""
    script = Path(find_spec('mmpretrain').origin).parent / '.mim' / 'tools' / 'train.py'
    folder = image_folder('images', ['circle', 'square', 'star'], per_class=2)
    options = [
        'model.head.num_classes=3',
        'data_preprocessor.num_classes=3',
        'train_dataloader.batch_size=3',
        'train_cfg.max_iters=2',
        'train_cfg.val_interval=2',
        'default_hooks.checkpoint.interval=2',
        *(f'{x}_dataloader.dataset.data_root={folder}' for x in ('train', 'val')),
    ]
    config = root / 'configs' / 'cluttered_digits' / 'psvit.py'
    command = (script, config, '--launcher', 'none', '--work-dir', 'work')
    output = run(python, *command, '--cfg-options', *options, cwd=tmp_path)
    assert 'accuracy/top1' in output
    assert (tmp_path / 'work' / 'iter_2.pth').exists()
