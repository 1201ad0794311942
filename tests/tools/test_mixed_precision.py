# Copyright (c) mmpsvit contributors.
"""Mixed precision on the command line, and of trainings that resume."""

from types import ModuleType

import pytest
import torch
from mmengine.config import Config
from scripts import load_script

from mmpsvit.guard import load_checkpoint

NONE = dict(enabled=False)


@pytest.fixture
def tool(monkeypatch):
    """A tool as a module, on a machine that says it has CUDA."""
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)

    def load(name: str) -> ModuleType:
        return load_script(f'tools/{name}.py')

    return load


@pytest.fixture
def train_config(tool, root, tmp_path, monkeypatch):
    """The config that comes out of a command line, and how many files were read."""
    module = tool('train')
    config = str(root / 'configs' / 'cluttered_digits' / 'psvit.py')
    monkeypatch.chdir(tmp_path)
    read = []

    def load(*args):
        read.append(args)
        return load_checkpoint(*args)

    monkeypatch.setattr(module, 'load_checkpoint', load)

    def run(*arguments: str) -> Config:
        monkeypatch.setattr('sys.argv', ['train.py', config, *arguments])
        read.clear()
        cfg = module.parse_args()
        assert len(read) == ('--resume' in arguments)
        return cfg

    return run


def precision(cfg: Config) -> tuple:
    wrapper = cfg.optim_wrapper
    return wrapper.get('type'), wrapper.get('dtype'), wrapper.get('loss_scale')


@pytest.mark.parametrize(
    ('arguments', 'dtype', 'loss_scale'),
    [
        (['--amp'], 'float16', 'dynamic'),
        (['--amp-dtype', 'float16'], 'float16', 'dynamic'),
        (['--amp-dtype', 'bfloat16'], 'bfloat16', NONE),
        (['--amp', '--amp-dtype', 'bfloat16'], 'bfloat16', NONE),
        # The config's own dtype, and a loss scale that is not of another dtype.
        (['--amp', 'dtype=bfloat16'], 'bfloat16', NONE),
        (['--amp', 'loss_scale=512.0'], 'float16', 512.0),
        (['--amp-dtype', 'float16', 'loss_scale=512.0'], 'float16', 512.0),
        (['--amp-dtype', 'bfloat16', 'loss_scale=512.0'], 'bfloat16', NONE),
        (['--amp-dtype', 'float16', 'dtype=bfloat16'], 'float16', 'dynamic'),
        (
            ['--amp', 'dtype=bfloat16', 'loss_scale.init_scale=8.0'],
            'bfloat16',
            dict(init_scale=8.0),
        ),
    ],
    ids=str,
)
def test_precision_of_a_training(arguments, dtype, loss_scale, train_config):
    options = [f'optim_wrapper.{word}' for word in arguments if '=' in word]
    arguments = [word for word in arguments if '=' not in word]
    cfg = train_config(*arguments, *(['--cfg-options', *options] if options else []))
    assert precision(cfg) == ('AmpOptimWrapper', dtype, loss_scale)


def test_without_mixed_precision(train_config):
    assert precision(train_config()) == (None, None, None)


@pytest.mark.parametrize(
    ('saved', 'arguments', 'expected'),
    [
        ('bfloat16', ['--amp'], ('AmpOptimWrapper', 'bfloat16', NONE)),
        ('float16', ['--amp'], ('AmpOptimWrapper', 'float16', 'dynamic')),
        (None, ['--amp'], ('AmpOptimWrapper', 'float16', 'dynamic')),
        (
            'bfloat16',
            ['--amp-dtype', 'float16'],
            ('AmpOptimWrapper', 'float16', 'dynamic'),
        ),
        (
            'bfloat16',
            ['--amp', '--cfg-options', 'optim_wrapper.dtype=float16'],
            ('AmpOptimWrapper', 'float16', 'dynamic'),
        ),
        ('bfloat16', [], (None, None, None)),
    ],
    ids=str,
)
def test_training_that_resumes(saved, arguments, expected, train_config, tmp_path):
    first = train_config(*(['--amp-dtype', saved] if saved else []))
    meta = dict(cfg=first.pretty_text, seed=3)
    torch.save(dict(state_dict={}, meta=meta), tmp_path / 'iter_2.pth')
    options = arguments or ['--cfg-options']
    if '--cfg-options' not in options:
        options = [*options, '--cfg-options']
    options = [*options, 'randomness.seed=None']
    cfg = train_config('--resume', 'iter_2.pth', *options)
    assert precision(cfg) == expected
    assert cfg.randomness.seed == 3


@pytest.mark.parametrize('has_cuda', [True, False])
@pytest.mark.parametrize('name', ['float16', 'bfloat16', None])
def test_precision_of_a_test(name, has_cuda, tool, root, tmp_path, monkeypatch):
    """Autocast's default, since MMEngine's loop has no dtype; on CPUs too."""
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: has_cuda)
    chosen = []
    new = hasattr(torch, 'set_autocast_dtype')
    setter = 'set_autocast_dtype' if new else 'set_autocast_gpu_dtype'
    monkeypatch.setattr(torch, setter, lambda *args: chosen.append(args[-1]))
    config = root / 'configs' / 'cluttered_digits' / 'psvit.py'
    (tmp_path / 'weights.pth').touch()
    monkeypatch.chdir(tmp_path)
    options = ['--amp-dtype', name] if name else ['--amp']
    arguments = ['test.py', str(config), 'weights.pth', *options]
    monkeypatch.setattr('sys.argv', arguments)
    _, cfg = tool('test').parse_args()
    assert cfg.test_cfg.fp16
    assert chosen == ([getattr(torch, name)] if name else [])


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs CUDA')
@pytest.mark.parametrize(('first', 'second'), ['bf', 'fb'])
def test_trains_tests_and_resumes_on_cuda(first, second, small, run_tool, tmp_path):
    names = dict(f='float16', b='bfloat16')
    config, options, _ = small
    train = ('tools/train.py', config, '--work-dir', 'work')
    run_tool(*train, '--amp-dtype', names[first], *options)
    resume = (*train, '--resume')
    more = [*options, 'train_cfg.max_iters=6']
    output = run_tool(*resume, '--amp', *more)
    assert 'it was in' not in output
    more = [*options, 'train_cfg.max_iters=8']
    output = run_tool(*resume, '--amp-dtype', names[second], *more)
    assert f'it was in {names[first]} and is in {names[second]}' in output
    checkpoint = load_checkpoint(tmp_path / 'work' / 'iter_8.pth')
    has_scale = bool(checkpoint['optimizer']['loss_scaler'])
    assert has_scale == (second == 'f')
    file = tmp_path / 'work' / 'iter_8.pth'
    test = ('tools/test.py', config, file, '--amp-dtype', names[second], *options)
    assert 'accuracy/top1' in run_tool(*test)
