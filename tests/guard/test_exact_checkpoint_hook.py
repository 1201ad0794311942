# Copyright (c) mmpsvit contributors.
"""Trainings that stop at any point and resume."""

import contextlib
import gc
import itertools
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.dataset import InfiniteSampler
from mmengine.hooks import EMAHook
from mmengine.runner import find_latest_checkpoint
from mmengine.runner.checkpoint import CheckpointLoader
from small_training import (
    EPOCHS,
    ITERATIONS,
    Draws,
    Killed,
    Recorder,
    Vectors,
    assert_same,
    make_runner,
    read,
    read_warnings,
)

from mmpsvit.guard import (
    AtomicBackend,
    CheckpointError,
    DataHook,
    ExactCheckpointHook,
    UnsafeCheckpointError,
    adopt_seed,
    exact_checkpoint_hook,
    load_checkpoint,
)
from mmpsvit.guard.checkpoint import load_from_local


@pytest.fixture(autouse=True)
def _as_in_the_tools(monkeypatch):
    """Checkpoints are loaded as the tools do it."""
    monkeypatch.setitem(CheckpointLoader._schemes, '', load_from_local)
    # Asking git for a version takes longer than an epoch does here.
    monkeypatch.setattr('mmengine.runner.runner.get_git_hash', str)


@pytest.fixture(scope='module')
def stopped(tmp_path_factory) -> Path:
    """The latest checkpoint of a training by iterations that was stopped."""
    work_dir = tmp_path_factory.mktemp('stopped')
    with contextlib.suppress(Killed):
        make_runner(work_dir, False, recorder=Recorder(5)).train()
    return work_dir / 'iter_4.pth'


@pytest.mark.parametrize('by_epoch', [True, False])
@pytest.mark.parametrize(
    ('num_workers', 'stops'),
    [
        (0, [(1, False), (3, True), (6, True), (7, False), (12, True)]),
        (1, [(8, False)]),
    ],
)
def test_stopped_training_ends_the_same(by_epoch, num_workers, stops, tmp_path):
    def train(folder: str, *stop, **changes) -> dict:
        recorder = Recorder(*stop)
        options = dict(by_epoch=by_epoch, num_workers=num_workers, recorder=recorder)
        with contextlib.suppress(Killed):
            make_runner(tmp_path / folder, **options, **changes).train()
        return recorder.scores

    scores = train('alone')
    assert len(scores) == 4
    expected = read(tmp_path / 'alone')
    for stop in stops:
        folder = f'stopped_{stop}'
        before = train(folder, *stop)
        assert len(before) < 4
        after = train(folder, resume=True)
        assert_same(read(tmp_path / folder), expected)
        # No validation is left out, and what is repeated comes out the same.
        assert before | after == after | before == scores
        assert 'does not end exactly' not in read_warnings(tmp_path / folder)


def test_checkpoints_in_another_folder(tmp_path):
    """They are as in the work dir, from where they are found and removed."""

    def train(folder: str, last_iter: int | None = None, **changes) -> list[int]:
        recorder = Recorder(last_iter)
        with contextlib.suppress(Killed):
            make_runner(tmp_path / folder, recorder=recorder, **changes).train()
        return [*recorder.scores]

    train('alone')
    options = {'default_hooks.checkpoint.out_dir': str(tmp_path / 'out')}
    assert train('work', 10, **options) == [3, 6, 9]
    # Half-written by a killed process, long ago.
    leftovers = [tmp_path / x / '.a.0123456789ab.tmp.pth' for x in ('work', 'out/work')]
    for path in leftovers:
        path.touch()
        os.utime(path, (0, 0))
    # It does not begin anew.
    assert train('work', resume=True, **options) == [9, 12]
    assert not any(path.exists() for path in leftovers)
    assert_same(read(tmp_path / 'out' / 'work'), read(tmp_path / 'alone'))
    assert not [*(tmp_path / 'work').glob('*.pth')]


def test_killed_at_any_access_to_files(tmp_path, monkeypatch):
    options = {'train_cfg.max_epochs': 2, 'default_hooks.checkpoint.max_keep_ckpts': 1}
    make_runner(tmp_path / 'alone', **options).train()
    expected = read(tmp_path / 'alone')
    calls, last_call, is_killed = itertools.count(), None, False

    def wrap(name: str) -> None:
        function = getattr(os, name)

        def call(target, *args):
            nonlocal is_killed
            if is_killed:
                raise Killed  # which cleans nothing up
            if name != 'unlink' and next(calls) == last_call:
                is_killed = True
                if name == 'fsync':
                    with contextlib.suppress(OSError):  # a folder has no half
                        os.ftruncate(target, os.fstat(target).st_size // 2)
                raise Killed
            return function(target, *args)

        monkeypatch.setattr(os, name, call)

    for name in ('fsync', 'replace', 'remove', 'unlink'):
        wrap(name)
    seen_leftovers = False
    for last_call in itertools.count():
        work_dir = tmp_path / f'killed_{last_call}'
        calls = itertools.count()
        try:
            make_runner(work_dir, **options).train()
            break
        except Killed:
            is_killed = False
        # All checkpoints are whole, and the one to go on from is there.
        read(work_dir)
        latest = find_latest_checkpoint(str(work_dir))
        assert latest is None or Path(latest).is_file()
        seen_leftovers |= bool([*work_dir.glob('.*.tmp*')])
        # A kill removes nothing, and nobody writes for so long.
        for leftover in work_dir.glob('.*.tmp*'):
            os.utime(leftover, (0, 0))
        calls = itertools.count(10**6)
        make_runner(work_dir, resume=True, **options).train()
        # What was to be removed is.
        assert_same(read(work_dir), expected)
        assert not [*work_dir.glob('.*.tmp*')]
    assert last_call > 15
    assert seen_leftovers


@pytest.mark.parametrize('by_epoch', [True, False])
def test_validation_draws_nothing_from_the_training(by_epoch, tmp_path):
    make_runner(tmp_path / 'with', by_epoch).train()
    options = {'default_hooks.checkpoint.save_best': None}
    make_runner(tmp_path / 'without', by_epoch, **options).train()
    runner = make_runner(tmp_path / 'rarely', by_epoch, **options)
    runner._val_loop = None
    runner.train()
    one, other = (read(tmp_path / name) for name in ('without', 'rarely'))
    last = f'epoch_{EPOCHS}.pth' if by_epoch else f'iter_{ITERATIONS}.pth'
    for part in ('state_dict', 'optimizer'):
        assert_same({0: one[last, part]}, {0: other[last, part]})


@pytest.mark.parametrize('by_epoch', [True, False])
def test_persistent_workers_without_random_numbers(by_epoch, tmp_path, monkeypatch):
    """What the workers draw is lost, but nothing else is."""
    # How long PyTorch waits for the workers at the end, which it always does in full.
    monkeypatch.setattr('torch.utils.data._utils.MP_STATUS_CHECK_INTERVAL', 0.1)
    options = dict(by_epoch=by_epoch, num_workers=1, dataset=Vectors(is_random=False))
    options['train_dataloader.persistent_workers'] = True
    make_runner(tmp_path / 'alone', **options).train()
    work_dir = tmp_path / 'stopped'
    with contextlib.suppress(Killed):
        make_runner(work_dir, recorder=Recorder(7), **options).train()
    make_runner(work_dir, resume=True, **options).train()
    assert_same(read(work_dir), read(tmp_path / 'alone'))
    assert 'train_dataloader.persistent_workers=False' in read_warnings(work_dir)
    gc.collect()


def test_workers_that_start_anew_do_not_repeat_themselves(tmp_path):
    """Nor are their seeds too large for NumPy."""
    recorder = Recorder()
    options = dict(num_workers=1, dataset=Draws(), recorder=recorder)
    make_runner(tmp_path, False, **options, **{'randomness.seed': 2**32 - 2}).train()
    assert len(set(recorder.inputs)) == len(recorder.inputs) == 4 * ITERATIONS


class OneImage(InfiniteSampler):
    """A sampler that inherits from MMEngine's, with arguments of its own."""

    def __init__(self, dataset: Vectors, image: int, **kwargs) -> None:
        super().__init__(dataset, **kwargs)
        self.indices = itertools.repeat(image)


def test_sampler_of_others(tmp_path):
    recorder, dataset = Recorder(), Vectors(is_random=False)
    sampler = {'train_dataloader.sampler': dict(type=OneImage, image=7)}
    make_runner(tmp_path, False, dataset=dataset, recorder=recorder, **sampler).train()
    assert set(recorder.inputs) == {float(dataset.vectors[7, 0])}


class Batches(list):
    """A loader that is not PyTorch's."""

    dataset = Vectors()


@pytest.mark.parametrize('by_epoch', [True, False])
def test_loader_of_others(by_epoch, tmp_path, monkeypatch):
    """MMEngine takes any iterable that has a data set."""
    # MMEngine waits for two seconds whenever it begins with it again.
    monkeypatch.setattr('time.sleep', lambda seconds: None)
    half = {'train_cfg.max_epochs': 2} if by_epoch else {'train_cfg.max_iters': 6}
    for resume, changes in ((False, half), (True, {})):
        runner = make_runner(tmp_path, by_epoch, resume=resume, **changes)
        runner.register_hook(DataHook())
        vectors = list(torch.zeros(4, 4))
        runner._train_dataloader = Batches([dict(inputs=vectors)] * 2)
        runner.train()
    assert runner.iter == (2 * EPOCHS if by_epoch else ITERATIONS)


@pytest.mark.parametrize(
    ('changes', 'options', 'message'),
    [
        (
            {},
            {'randomness.seed': 1, 'optim_wrapper.accumulative_counts': 2},
            'randomness.seed=0 keeps it',
        ),
        (
            {},
            {'train_dataloader.sampler.type': 'DefaultSampler'},
            'train_dataloader.sampler.type=InfiniteSampler keep them',
        ),
        (
            {},
            {'train_cfg': dict(_delete_=True, by_epoch=False, max_iters=6)},
            'train_cfg.type=mmpsvit.ExactIterBasedTrainLoop',
        ),
        (
            {},
            {'optim_wrapper.accumulative_counts': 3},
            'a multiple of 3 iterations keeps them',
        ),
        (
            {},
            {'param_scheduler.T_max': 50},
            'CosineAnnealingLR goes on as the checkpoint has it, with T_max=99 and not',
        ),
        (
            {},
            {'param_scheduler': [dict(type='ConstantLR', by_epoch=False)] * 2},
            'there are 2 schedules, the checkpoint has 1',
        ),
        ({}, {'optim_wrapper.optimizer.lr': 0.5}, 'has it, with lr=0.01 and not 0.5'),
        (
            {},
            {'optim_wrapper.optimizer.weight_decay': 0.5},
            'with weight_decay=0.01 and not 0.5',
        ),
        ({'optimizer': None}, {}, 'has no state of the optimizer'),
        ({'resume_state': None}, {}, 'has no random state'),
        ({'processes': 2}, {}, 'there are 1 processes, not 2'),
    ],
)
def test_what_will_differ_is_told(changes, options, message, stopped, tmp_path):
    checkpoint = load_checkpoint(stopped)
    for key in changes:
        if key == 'processes':
            checkpoint['resume_state'][key] *= changes[key]
        else:
            del checkpoint[key]
    file = tmp_path / 'changed.pth'
    torch.save(checkpoint, file)
    work_dir = tmp_path / 'second'
    options = {'train_cfg.max_iters': 6, **options}
    make_runner(work_dir, False, resume=True, load_from=str(file), **options).train()
    warnings = read_warnings(work_dir)
    assert 'does not end exactly as it would have without the interruption' in warnings
    assert message in warnings
    # And nothing that does not differ.
    assert ('accumulated' in warnings) == ('a multiple of' in message)
    assert 'base_values' not in warnings


def test_progress_of_a_schedule_is_none_of_its_settings(tmp_path):
    plateau = dict(type='ReduceOnPlateauLR', monitor='mean/score', end=99)
    options = {'param_scheduler': [plateau], 'train_cfg.max_epochs': 2}
    make_runner(tmp_path, **options).train()
    options['train_cfg.max_epochs'] = 3
    make_runner(tmp_path, resume=True, **options).train()
    assert 'does not end exactly' not in read_warnings(tmp_path)


def test_optimizer_without_weight_decay(tmp_path):
    optimizer = dict(type='Rprop', lr=0.01, _delete_=True)
    options = {'optim_wrapper.optimizer': optimizer, 'train_cfg.max_epochs': 1}
    make_runner(tmp_path, **options).train()
    options['train_cfg.max_epochs'] = 2
    make_runner(tmp_path, resume=True, **options).train()
    assert (tmp_path / 'epoch_2.pth').exists()


@pytest.mark.parametrize('method', ['val', 'test'])
def test_evaluation_by_a_config_that_resumes(method, stopped, tmp_path):
    """Such as the one that a training which resumed leaves in its work dir."""
    runner = make_runner(tmp_path, False, resume=True, load_from=str(stopped))
    runner._test_dataloader = runner._val_dataloader
    runner._test_evaluator, runner._test_loop = runner._val_evaluator, {}
    assert 'mean/score' in getattr(runner, method)()
    assert 'does not end' not in read_warnings(tmp_path)


def test_checkpoints_that_nobody_could_load_are_told(tmp_path):
    """Classes from pandas, which are Python objects for NumPy."""
    dataset = Vectors()
    dataset.metainfo = dict(classes=np.array(['cat', 'dog'], dtype=object))
    make_runner(tmp_path, dataset=dataset, **{'train_cfg.max_epochs': 2}).train()
    warnings = read_warnings(tmp_path)
    assert warnings.count('will refuse the checkpoints of this training') == 1
    with pytest.raises(UnsafeCheckpointError):
        load_checkpoint(tmp_path / 'epoch_2.pth')


def test_lost_average_is_told(stopped, tmp_path):
    options = {'train_cfg.max_iters': 6}
    runner = make_runner(
        tmp_path, False, resume=True, load_from=str(stopped), **options
    )
    runner._hooks = [h for h in runner.hooks if not isinstance(h, EMAHook)]
    runner.train()
    assert 'goes on from the average of the weights' in read_warnings(tmp_path)


def test_epochs_of_another_length_are_told(tmp_path):
    """The validation that was interrupted is taken up there too."""
    with contextlib.suppress(Killed):
        make_runner(tmp_path, recorder=Recorder(6, in_validation=True)).train()
    more = {'train_cfg.max_epochs': 3, 'train_dataloader.batch_size': 6}
    recorder = Recorder()
    make_runner(tmp_path, resume=True, recorder=recorder, **more).train()
    assert [*recorder.scores] == [6, 8]
    message = '2 epochs of now 2 iterations are not the 6 iterations of the checkpoint'
    assert message in read_warnings(tmp_path)


def test_middle_of_an_epoch_is_told(tmp_path):
    options = {
        'default_hooks.checkpoint.by_epoch': False,
        'default_hooks.checkpoint.interval': 4,
        'train_cfg.max_epochs': 2,
    }
    make_runner(tmp_path, **options).train()
    file = str(tmp_path / 'iter_4.pth')
    recorder = Recorder()
    runner = make_runner(tmp_path, resume=True, load_from=file, recorder=recorder)
    runner.train()
    assert runner.epoch == EPOCHS
    # No validation was due where it begins.
    assert 4 not in recorder.scores
    assert 'it is from the middle of an epoch, which begins again' in (
        read_warnings(tmp_path)
    )


def test_checkpoints_of_mmengine_can_be_resumed(tmp_path):
    options = {'default_hooks.checkpoint.type': 'CheckpointHook'}
    make_runner(tmp_path, **options, **{'train_cfg.max_epochs': 2}).train()
    runner = make_runner(tmp_path, resume=True)
    runner.train()
    assert runner.epoch == EPOCHS
    assert 'middle of an epoch' not in read_warnings(tmp_path)


@pytest.mark.parametrize('template', ['it_{:06d}.pth', 'sub/it_{}.pth', '[x]_{}'])
def test_names_of_any_form_are_kept_and_removed(template, tmp_path):
    options = {
        'default_hooks.checkpoint.filename_tmpl': template,
        'default_hooks.checkpoint.save_best': None,
    }
    make_runner(tmp_path, **options).train()
    names = [str(path.relative_to(tmp_path)) for path in tmp_path.rglob('*_*[0-9]*')]
    kept = {template.format(epoch) for epoch in (EPOCHS - 1, EPOCHS)}
    assert {name for name in names if 'it_' in name or '[x]' in name} == kept


def test_best_of_another_training_is_kept(tmp_path):
    """A checkpoint names the best one, which is removed when there is a better."""
    options = {'train_cfg.max_epochs': 1}
    make_runner(tmp_path / 'first', **options).train()
    (best,) = (tmp_path / 'first').glob('best_*')
    last = tmp_path / 'first' / 'epoch_1.pth'
    # So that the next score is better.
    checkpoint = load_checkpoint(last)
    checkpoint['message_hub']['runtime_info']['best_score'] = -1e9
    torch.save(checkpoint, last)
    for folder, is_kept in (('second', True), ('first', False)):
        work_dir = tmp_path / folder
        make_runner(work_dir, resume=True, load_from=str(last)).train()
        assert len([*work_dir.glob('best_*')]) == 1
        assert best.exists() == is_kept


def test_only_checkpoints_are_removed(stopped, tmp_path):
    """Whatever a checkpoint says is outdated, or was the best one."""
    work_dir = tmp_path / 'work'
    kept = [work_dir / 'notes.txt', work_dir / 'iter_', tmp_path / 'best_1.pth']
    for path in kept:
        path.mkdir(parents=True)
    for steps, best in (
        ([1, 2, 3, 4], str(kept[0])),
        ([4], str(kept[2])),
        ([4], str(work_dir / '..' / 'best_1.pth')),
        (['../../best_1', 2, 3, 4], ''),
    ):
        checkpoint = load_checkpoint(stopped)
        info = checkpoint['message_hub']['runtime_info']
        info.update(keep_ckpt_ids=steps, best_ckpt=best, best_score=-1e9)
        torch.save(checkpoint, tmp_path / 'changed.pth')
        (work_dir / 'iter_2.pth').write_text('')
        options = dict(resume=True, load_from=str(tmp_path / 'changed.pth'))
        runner = make_runner(work_dir, False, **options)
        if steps[0] == '../../best_1':
            with pytest.raises(ValueError, match='invalid literal'):
                runner.train()
        else:
            runner.train()
        assert all(path.exists() for path in kept)
        assert (work_dir / 'iter_2.pth').exists() == (steps != [1, 2, 3, 4])


def test_weights_alone_cannot_be_resumed(stopped, tmp_path):
    file = tmp_path / 'weights.pth'
    torch.save(dict(state_dict=load_checkpoint(stopped)['state_dict']), file)
    message = f'{file} holds no training that could resume; start.*load_from'
    with pytest.raises(CheckpointError, match=message):
        make_runner(tmp_path, False, resume=True, load_from=str(file)).train()


def test_run_that_resumes_adopts_the_seed(tmp_path):
    make_runner(tmp_path / 'first', **{'randomness.seed': None}).train()
    expected = read(tmp_path / 'first')
    meta = load_checkpoint(tmp_path / 'first' / 'epoch_3.pth')['meta']
    seed = meta['seed']
    cfg = Config(dict(randomness=dict(seed=None, deterministic=False)))
    adopt_seed(cfg, meta)
    assert cfg.randomness == dict(seed=seed, deterministic=False)
    make_runner(
        tmp_path / 'second',
        resume=True,
        load_from=str(tmp_path / 'first' / 'epoch_3.pth'),
        **{'randomness.seed': cfg.randomness.seed},
    ).train()
    results = read(tmp_path / 'second')
    last = f'epoch_{EPOCHS}.pth'
    assert_same({0: results[last, 'optimizer']}, {0: expected[last, 'optimizer']})

    cfg.randomness.seed = seed + 1
    adopt_seed(cfg, meta)
    assert cfg.randomness.seed == seed + 1


@pytest.mark.parametrize(
    ('options', 'stop', 'after'),
    [
        (dict(val_begin=3), (7, False), [9, 12]),
        (dict(val_interval=3), (12, True), [12]),
        (dict(val_interval=99, dynamic_intervals=[(3, 1)]), (9, True), [9, 12]),
    ],
)
def test_when_validation_is_due(options, stop, after, tmp_path):
    """Late, at the end, at intervals that change: taken up where it was interrupted."""
    options = {f'train_cfg.{key}': value for key, value in options.items()}
    with contextlib.suppress(Killed):
        make_runner(tmp_path, recorder=Recorder(*stop), **options).train()
    recorder = Recorder()
    make_runner(tmp_path, recorder=recorder, resume=True, **options).train()
    assert [*recorder.scores] == after


def test_best_checkpoint_may_be_a_folder(tmp_path):
    """As of FSDP; it is there until it is told to go."""
    folder = tmp_path / 'best_1'
    folder.mkdir()
    backend = exact_checkpoint_hook._LateRemoval(AtomicBackend(), str(tmp_path))
    backend.rmtree(str(folder))
    assert folder.exists()
    backend.remove_now()
    assert not folder.exists()


def test_validation_without_a_training(tmp_path):
    """It has no best checkpoint to save."""
    make_runner(tmp_path).val()
    assert not [*tmp_path.glob('*.pth')]


@pytest.mark.parametrize(
    ('options', 'backend'),
    [
        ({}, dict(backend='mmpsvit.atomic')),
        (dict(backend_args=dict(backend='local')), dict(backend='local')),
        (dict(file_client_args=dict(backend='disk')), None),
        (dict(out_dir='s3://bucket'), None),
    ],
)
def test_storage_of_others_is_left_to_them(options, backend):
    assert ExactCheckpointHook(**options).backend_args == backend
