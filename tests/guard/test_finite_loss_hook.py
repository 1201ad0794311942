# Copyright (c) mmpsvit contributors.
"""Trainings whose loss or weights stop being numbers."""

import math
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from small_training import Recorder, make_runner, read

from mmpsvit.guard import FiniteLossHook, NonFiniteLossError, load_checkpoint


class Spoil(Recorder):
    """Writes a value over a weight, before or after an iteration (from 0)."""

    # After the optimizer's step, before checkpoints are written.
    priority = 'NORMAL'

    def __init__(self, iteration: int, value: float, after: bool = False) -> None:
        super().__init__()
        self.iteration, self.value, self.after = iteration, value, after

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        self.spoil(runner, not self.after)

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        self.spoil(runner, self.after)

    def spoil(self, runner, is_time: bool) -> None:
        if is_time and runner.iter == self.iteration:
            with torch.no_grad():
                runner.model.layers[-1].bias.fill_(self.value)


def train(work_dir, spoil: Spoil, by_epoch: bool = False, **changes) -> None:
    changes.setdefault('default_hooks.finite_loss.type', 'mmpsvit.FiniteLossHook')
    make_runner(work_dir, by_epoch, recorder=spoil, **changes).train()


@pytest.mark.parametrize(
    ('interval', 'value'), [(1, math.nan), (3, math.inf), (50, math.nan)]
)
def test_names_the_first_iteration_and_the_last_checkpoint(interval, value, tmp_path):
    spoil = Spoil(4, value)  # checkpoints are due after iterations 2, 4, 6 of 12
    with pytest.raises(NonFiniteLossError, match='the loss of iteration 5 is') as error:
        train(tmp_path, spoil, **{'default_hooks.finite_loss.interval': interval})
    assert str(error.value).endswith(str(tmp_path / 'iter_4.pth'))
    assert not (tmp_path / 'iter_6.pth').exists()
    # Everything that is left can be used, the best checkpoint included.
    for (_, key), value in read(tmp_path).items():
        if key == 'state_dict':
            assert all(tensor.isfinite().all() for tensor in value.values())


def test_nothing_lost_is_validated(tmp_path):
    spoil = Spoil(4, math.nan)  # validations are due after iterations 3, 6, 9
    with pytest.raises(NonFiniteLossError):
        train(tmp_path, spoil, **{'default_hooks.checkpoint.interval': -1})
    assert [*spoil.scores] == [3]


def test_by_epochs_before_any_checkpoint(tmp_path):
    with pytest.raises(NonFiniteLossError, match='iteration 1 is not finite; there is'):
        train(tmp_path, Spoil(0, math.nan), by_epoch=True)
    assert not list(tmp_path.glob('*.pth'))


def test_weights_that_no_loss_has_shown_yet(tmp_path):
    with pytest.raises(NonFiniteLossError, match=r'iteration 6 .*layers\.3\.bias.*_4'):
        train(tmp_path, Spoil(5, math.inf, after=True))
    assert not (tmp_path / 'iter_6.pth').exists()


def test_weights_whose_average_does_not_show_it_yet(tmp_path):
    """With EMAHook, a checkpoint's state_dict is the average."""
    average = dict(interval=4, priority='ABOVE_NORMAL')
    with pytest.raises(NonFiniteLossError, match=r'iteration 6 the weight layers\.3'):
        train(tmp_path, Spoil(5, math.inf, after=True), average=average)
    assert not (tmp_path / 'iter_6.pth').exists()


def test_buffers_may_be_infinite(tmp_path):
    """As masks of attention are, also in the average of the weights."""
    changes = {'default_hooks.finite_loss.type': 'mmpsvit.FiniteLossHook'}
    runner = make_runner(tmp_path, by_epoch=False, **changes)
    runner.model.register_buffer('mask', torch.tensor(-math.inf))
    runner.train()
    assert load_checkpoint(tmp_path / 'iter_12.pth')['state_dict']['mask'] == -math.inf


@pytest.mark.parametrize('version', [1, 2])
def test_sharded_weights(version, tmp_path):
    """What this process has of a weight, as both versions of FSDP hand it over."""

    def shard(*values: float) -> SimpleNamespace:
        part = torch.tensor(values)
        if version == 2:
            return SimpleNamespace(to_local=lambda: part)
        shards = [SimpleNamespace(tensor=half) for half in part.chunk(2)]
        return SimpleNamespace(local_shards=lambda: shards)

    def save(**state) -> None:
        checkpoint = dict(state_dict=state, meta=dict(iter=4))
        FiniteLossHook().before_save_checkpoint(runner, checkpoint)

    inner = torch.nn.Module()
    inner.register_buffer('mask', torch.tensor(-math.inf))
    # The first version of FSDP puts its wrapper into names, but not in checkpoints.
    model = torch.nn.ModuleDict(dict(_fsdp_wrapped_module=inner))
    runner = SimpleNamespace(model=model, work_dir=str(tmp_path))
    save(weight=shard(1, 2), mask=shard(-math.inf))
    with pytest.raises(NonFiniteLossError, match='after iteration 4 the weight bias'):
        save(weight=shard(1, 2), bias=shard(1, math.nan))


def test_last_iteration_without_checkpoints(tmp_path):
    with pytest.raises(NonFiniteLossError, match='the loss of iteration 12'):
        train(
            tmp_path, Spoil(11, math.nan), **{'default_hooks.checkpoint.interval': -1}
        )


def test_good_trainings_and_other_figures_pass(tmp_path):
    train(tmp_path / 'good', Spoil(-1, 0))
    hub = SimpleNamespace(log_scalars={})  # without MMEngine's RuntimeInfoHook
    runner = SimpleNamespace(iter=0, work_dir=str(tmp_path), message_hub=hub)
    hook = FiniteLossHook(1)
    nan = torch.tensor(math.nan)
    # A figure that is no loss, such as the accuracy of no boxes.
    hook.after_train_iter(runner, 0, outputs=dict(loss=torch.ones(()), acc=nan))
    with pytest.raises(NonFiniteLossError):
        hook.after_train_iter(runner, 0, outputs=dict(loss_cls=nan))
    hook.before_train(runner)  # another training
    several = torch.full((9,), 6e4, dtype=torch.float16)
    hook.after_train_iter(runner, 0, outputs=dict(loss=several))
    several[4] = math.inf
    with pytest.raises(NonFiniteLossError):
        hook.after_train_iter(runner, 0, outputs=dict(loss=several))
    with pytest.raises(ValueError, match='interval must be at least 1, got 0'):
        FiniteLossHook(0)


def _see_loss(rank: int, port: str, folder: str) -> None:
    address = f'tcp://127.0.0.1:{port}'
    dist.init_process_group('gloo', init_method=address, rank=rank, world_size=2)
    hook = FiniteLossHook(4)
    try:
        for iteration in range(4):
            loss = math.nan if rank == 1 and iteration == 2 else 1.0
            hub = SimpleNamespace(log_scalars={})
            runner = SimpleNamespace(iter=iteration, work_dir=folder, message_hub=hub)
            runner.model = torch.nn.Linear(1, 1)
            hook.after_train_iter(runner, 0, outputs=dict(loss=torch.tensor(loss)))
            if rank == 0:  # as MMEngine does
                state = runner.model.state_dict()
                hook.before_save_checkpoint(runner, dict(state_dict=state))
    except NonFiniteLossError as error:
        with open(f'{folder}/{rank}.txt', 'w', encoding='utf-8') as file:
            file.write(str(error))
    # Whoever leaves first would take the others' connections along.
    dist.barrier()
    dist.destroy_process_group()


def test_all_processes_stop_together(tmp_path, free_port):
    mp.spawn(_see_loss, (free_port, str(tmp_path)), nprocs=2)
    messages = [path.read_text() for path in tmp_path.glob('*.txt')]
    assert [message.split(';')[0] for message in messages] == [
        'the loss of iteration 3 is not finite'
    ] * 2
