# Copyright (c) mmpsvit contributors.
"""Safe loading: nothing in a file is executed."""

import os
import pickle
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import mmengine.runner.checkpoint as mmengine_checkpoint
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.logging import HistoryBuffer
from mmengine.optim import OneCycleLR
from mmengine.optim.scheduler.param_scheduler import OneCycleParamScheduler
from mmengine.runner.checkpoint import CheckpointLoader
from safetensors.torch import save_file
from scripts import Malicious

from mmpsvit.guard import (
    CheckpointError,
    MissingCheckpointError,
    UnsafeCheckpointError,
    checkpoint,
    latest_checkpoint,
    load_checkpoint,
    use_safe_loading,
)


def test_training_checkpoint_loads(tmp_path):
    history = HistoryBuffer([1.0, 2.0], [1, 1])
    rng = np.random.default_rng(0)
    torch.save(
        dict(
            state_dict={'weight': torch.ones(2)},
            param_schedulers=[dict(milestones=Counter([2, 3]))],  # MultiStepLR
            meta=dict(epoch=3, seed=np.int64(5), dataset_meta=dict(classes=('a', 'b'))),
            message_hub=dict(
                log_scalars=dict(loss=history),
                runtime_info=dict(scale=np.float64(0.5), noise=rng.random(3)),
                kinds=[np.float32(1), np.bool_(True), np.arange(3, dtype=np.int32)],
            ),
        ),
        tmp_path / 'epoch_3.pth',
    )
    loaded = load_checkpoint(tmp_path / 'epoch_3.pth')
    assert loaded['param_schedulers'][0]['milestones'] == {2: 1, 3: 1}
    assert loaded['meta']['epoch'] == 3
    assert loaded['message_hub']['log_scalars']['loss'].mean() == 1.5
    assert loaded['message_hub']['runtime_info']['scale'] == 0.5
    loaded = load_checkpoint(tmp_path / 'epoch_3.pth', 'meta')
    assert loaded['state_dict']['weight'].is_meta


def test_checkpoint_written_under_the_other_numpy(tmp_path):
    """In numpy 1 and 2, numpy's functions have different names."""
    file = tmp_path / 'other.pth'
    torch.save(
        dict(scalar=np.float64(2), array=np.ones(3)),
        file,
        _use_new_zipfile_serialization=False,
    )
    content = file.read_bytes()
    names = [b'cnumpy._core.multiarray\n', b'cnumpy.core.multiarray\n']
    own, other = names if names[0] in content else reversed(names)
    assert own in content
    file.write_bytes(content.replace(own, other))
    loaded = load_checkpoint(file)
    assert loaded['scalar'] == 2
    assert loaded['array'].tolist() == [1, 1, 1]


@pytest.mark.parametrize('through_mmengine', [False, True])
def test_malicious_checkpoint_is_refused(tmp_path, through_mmengine):
    trap = tmp_path / 'executed'
    file = tmp_path / 'weights.pth'
    torch.save(dict(state_dict={}, extra=Malicious(str(trap))), file)
    # The trap works: full unpickling executes it.
    torch.load(file, weights_only=False)
    assert trap.exists()
    trap.rmdir()

    use_safe_loading()
    load = CheckpointLoader.load_checkpoint if through_mmengine else load_checkpoint
    with pytest.raises(
        UnsafeCheckpointError, match=r'weights\.pth is refused'
    ) as error:
        load(str(file))
    assert not trap.exists()
    assert '(posix.mkdir is not allowed)' in str(error.value)
    # No advice to load it all the same.
    assert 'weights_only' not in str(error.value)


class Attribute:
    """Reaches for an attribute of something allowed when it is unpickled."""

    def __init__(self, owner: object, name: str) -> None:
        self.arguments = owner, name

    def __reduce__(self):
        return getattr, self.arguments


@pytest.mark.parametrize(
    ('owner', 'name'),
    [
        (HistoryBuffer, '__init__'),
        (HistoryBuffer, '_set_default_statistics'),
        (OneCycleParamScheduler, 'load_state_dict'),
        (torch.Tensor, 'tolist'),
    ],
)
def test_no_other_attributes(owner, name, tmp_path):
    """``getattr`` is allowed for what HistoryBuffer saves of itself, and no further."""
    torch.save(dict(extra=Attribute(HistoryBuffer, 'mean')), tmp_path / 'good.pth')
    assert load_checkpoint(tmp_path / 'good.pth')['extra'] is HistoryBuffer.mean
    torch.save(dict(extra=Attribute(owner, name)), tmp_path / 'bad.pth')
    with pytest.raises(UnsafeCheckpointError, match=r'bad\.pth is refused'):
        load_checkpoint(tmp_path / 'bad.pth')


class Crafted:
    """Something allowed, and what a file does to it: values and opcodes."""

    def __init__(self, owner: object, *parts: object) -> None:
        self.parts = owner, *parts


class CraftedPickler(pickle._Pickler):
    """Writes what no honest file holds."""

    dispatch = pickle._Pickler.dispatch.copy()

    def save_crafted(self, crafted: Crafted) -> None:
        for part in crafted.parts:
            self.write(part) if isinstance(part, bytes) else self.save(part)

    dispatch[Crafted] = save_crafted


def save_crafted(file: Path, *parts: object) -> None:
    module = SimpleNamespace(
        __name__='pickle',
        Pickler=CraftedPickler,
        dump=lambda value, file, protocol: CraftedPickler(file, protocol).dump(value),
    )
    torch.save(dict(extra=Crafted(*parts)), file, pickle_module=module)


@pytest.mark.parametrize('release', ['2.1', torch.__version__])
def test_no_arrays_of_objects(release, tmp_path, monkeypatch):
    """With a state of its own, their dtype takes bytes for addresses."""
    torch.save(dict(extra=np.array(['a'], dtype=object)), tmp_path / 'bad.pth')
    monkeypatch.setattr(torch, '__version__', release)
    with pytest.raises(UnsafeCheckpointError, match=r'bad\.pth is refused') as caught:
        load_checkpoint(tmp_path / 'bad.pth')
    assert 'torch.save' not in str(caught.value)


@pytest.mark.parametrize('release', ['2.1', torch.__version__])
@pytest.mark.parametrize(
    'parts',
    [(0, 7.0, pickle.SETITEM), (pickle.MARK, 0, 7.0, pickle.SETITEMS)],
    ids=['one', 'several'],
)
def test_no_items_of_arrays(parts, release, tmp_path, monkeypatch):
    """Through a view of an array of objects, a file could write any address."""
    save_crafted(tmp_path / 'bad.pth', np.zeros(1), *parts)
    monkeypatch.setattr(torch, '__version__', release)
    with pytest.raises(UnsafeCheckpointError, match='ndarray'):
        load_checkpoint(tmp_path / 'bad.pth')


@pytest.mark.parametrize(
    ('owner', 'name'),
    [(Counter, 'update'), (torch._utils._rebuild_tensor_v2, '__defaults__')],
)
def test_classes_and_functions_stay_as_they_are(owner, name, tmp_path):
    before = getattr(owner, name)
    state = (None, {name: (7,)})
    save_crafted(tmp_path / 'bad.pth', owner, state, pickle.BUILD)
    try:
        with pytest.raises(UnsafeCheckpointError, match=r'bad\.pth is refused'):
            load_checkpoint(tmp_path / 'bad.pth')
        assert getattr(owner, name) is before
    finally:
        setattr(owner, name, before)


def test_safetensors(tmp_path):
    file = tmp_path / 'weights.safetensors'
    save_file({'layer.weight': torch.ones(2)}, file)
    assert load_checkpoint(file)['layer.weight'].tolist() == [1, 1]
    use_safe_loading()
    loaded = CheckpointLoader.load_checkpoint(str(file), 'cpu')
    assert loaded['state_dict']['layer.weight'].tolist() == [1, 1]
    file.write_bytes(b'these are no weights')
    with pytest.raises(CheckpointError, match=r'weights\.safetensors cannot be read'):
        load_checkpoint(file)


def test_what_stock_hooks_write_loads(tmp_path):
    """Schedules with functions, settings of data sets as MMEngine keeps them."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=0.1)
    schedule = OneCycleLR(optimizer, eta_max=1.0, total_steps=4, by_epoch=False)
    metainfo = Config(dict(source=dict(camera='x'), files=[Path('a')])).source
    torch.save(
        dict(
            state_dict={'weight': torch.ones(1)},
            param_schedulers=[schedule.state_dict()],
            meta=dict(dataset_meta=dict(classes=('a',), source=metainfo, at=Path('b'))),
        ),
        tmp_path / 'iter_1.pth',
    )
    loaded = load_checkpoint(tmp_path / 'iter_1.pth')
    assert loaded['meta']['dataset_meta']['source'].camera == 'x'
    schedule.load_state_dict(loaded['param_schedulers'][0])
    schedule.step()


def test_text_of_a_config_is_left_out(tmp_path):
    """MMEngine runs it when it resumes."""
    file = tmp_path / 'old.pth'
    meta = dict(epoch=1, config='import os', cfg='model = None')
    torch.save(dict(state_dict={}, meta=meta), file)
    assert load_checkpoint(file)['meta'] == dict(epoch=1, cfg='model = None')


def test_program_is_refused(tmp_path):
    torch.jit.script(torch.nn.Linear(1, 1)).save(str(tmp_path / 'program.pth'))
    with pytest.raises(CheckpointError, match=r'program\.pth'):
        load_checkpoint(tmp_path / 'program.pth')


def test_damaged_and_missing_files(tmp_path, monkeypatch):
    whole = tmp_path / 'whole.pth'
    torch.save(dict(weight=torch.ones(1000)), whole)
    monkeypatch.setenv('HOME', str(tmp_path))
    assert 'weight' in load_checkpoint('~/whole.pth')
    damaged = tmp_path / 'damaged.pth'
    damaged.write_bytes(whole.read_bytes()[:-700])
    with pytest.raises(CheckpointError, match=r'damaged\.pth cannot be read'):
        load_checkpoint(damaged)
    empty = tmp_path / 'empty.pth'
    empty.touch()
    with pytest.raises(CheckpointError, match=r'empty\.pth cannot be read'):
        load_checkpoint(empty)
    text = tmp_path / 'text.pth'
    text.write_text('these are no weights')
    with pytest.raises(CheckpointError, match=r'checkpoint .*text\.pth'):
        load_checkpoint(text)
    for value in ([1], torch.ones(2)):
        torch.save(value, text)
        with pytest.raises(CheckpointError, match=r'text\.pth holds a \w+, no weights'):
            load_checkpoint(text)
    with pytest.raises(MissingCheckpointError, match=r'missing\.pth does not exist'):
        load_checkpoint(tmp_path / 'missing.pth')
    with pytest.raises(CheckpointError, match=r'checkpoint .* is a folder, not a file'):
        load_checkpoint(tmp_path)


def test_no_loader_of_mmengine_is_left():
    use_safe_loading()
    modules = {loader.__module__ for loader in CheckpointLoader._schemes.values()}
    assert modules == {'mmpsvit.guard.checkpoint'}


@pytest.mark.parametrize('scheme', ['torchvision', 'mmcls', 'open-mmlab'])
def test_unknown_names(scheme):
    use_safe_loading()
    with pytest.raises(MissingCheckpointError, match='MMEngine knows no psvit'):
        CheckpointLoader.load_checkpoint(f'{scheme}://psvit')


def test_download_is_safe_too(tmp_path, monkeypatch):
    """A URL goes through the same refusal; the download itself is a local file."""
    trap = tmp_path / 'executed'
    file = tmp_path / 'weights.pth'
    torch.save(Malicious(str(trap)), file)
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'cache'))
    use_safe_loading()
    monkeypatch.setattr(
        'torch.hub.download_url_to_file',
        lambda url, target, *args, **kwargs: os.link(file, target),
    )
    monkeypatch.setattr(
        mmengine_checkpoint,
        'get_torchvision_models',
        lambda: {'resnet18': 'https://example.org/weights.pth'},
    )
    for name in ('https://example.org/weights.pth', 'torchvision://resnet18'):
        with pytest.raises(UnsafeCheckpointError, match='is refused'):
            CheckpointLoader.load_checkpoint(name)
        assert not trap.exists()


def test_failed_download_is_told_in_one_line(tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise OSError('no route to host')

    monkeypatch.setenv('TORCH_HOME', str(tmp_path))
    monkeypatch.setattr('torch.hub.download_url_to_file', fail)
    use_safe_loading()
    with pytest.raises(
        CheckpointError, match=r'example\.org/x\.pth .*no route to host'
    ):
        CheckpointLoader.load_checkpoint('https://example.org/x.pth')


def test_object_storage_is_safe_too(tmp_path, monkeypatch):
    trap, file = tmp_path / 'executed', tmp_path / 'weights.pth'
    torch.save(dict(state_dict={}, extra=Malicious(str(trap))), file)
    backend = SimpleNamespace(get=lambda name: file.read_bytes())
    monkeypatch.setattr(checkpoint, 'get_file_backend', lambda *args, **kwargs: backend)
    use_safe_loading()
    with pytest.raises(UnsafeCheckpointError, match=r's3://b/w\.pth is refused'):
        CheckpointLoader.load_checkpoint('s3://b/w.pth')
    assert not trap.exists()


def test_backbone_of_a_classifier_by_name(tmp_path, monkeypatch):
    state = {'backbone.a': torch.ones(1), 'head.b': torch.ones(1)}
    torch.save(dict(state_dict=state), tmp_path / 'net.pth')
    for name, value in dict(
        get_mmcls_models=dict(net='net.pth'),  # in MMEngine's folder
        get_deprecated_model_names=dict(old='net'),
        _get_mmengine_home=str(tmp_path),
    ).items():
        monkeypatch.setattr(mmengine_checkpoint, name, lambda value=value: value)
    use_safe_loading()
    for name in ('net', 'old'):
        loaded = CheckpointLoader.load_checkpoint(f'mmcls://{name}')
        assert [*loaded['state_dict']] == ['a']


@pytest.mark.parametrize('rank', [0, 1])
def test_processes_download_one_after_the_other(rank, tmp_path, monkeypatch):
    """The first one for all of a machine; on another machine, others for themselves."""
    file, done = tmp_path / 'weights.pth', []
    torch.save(dict(state_dict={}), file)
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'cache'))
    monkeypatch.setattr(checkpoint, 'get_rank', lambda: rank)
    monkeypatch.setattr(checkpoint, 'barrier', lambda: done.append('waits'))
    monkeypatch.setattr(
        'torch.hub.download_url_to_file',
        lambda _, target: done.append(rank) or os.link(file, target),
    )
    checkpoint.load_from_http('https://example.org/weights.pth')
    assert done == ([0, 'waits', 'waits'] if rank == 0 else ['waits', 1, 'waits'])


def test_latest_checkpoint(tmp_path):
    """That of a work dir that has moved is there too."""
    assert latest_checkpoint(tmp_path) is None
    (tmp_path / 'a.pth').touch()
    moved = str(tmp_path / 'a.pth')
    for named, found in (
        ('/no/a.pth', moved),
        ('/no/b.pth', '/no/b.pth'),
        ('s3://no/a.pth', 's3://no/a.pth'),
    ):
        (tmp_path / 'last_checkpoint').write_text(named)
        assert latest_checkpoint(tmp_path) == found
