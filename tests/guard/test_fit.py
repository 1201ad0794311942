# Copyright (c) mmpsvit contributors.
"""What a checkpoint does not give to the model: told, and refused where it is all."""

import itertools

import pytest
import torch
from mmengine.model import BaseModel, BaseModule
from mmengine.runner import Runner
from mmengine.runner._flexible_runner import FlexibleRunner
from scripts import Malicious
from torch import nn

from mmpsvit.guard import (
    CheckpointFitHook,
    CheckpointMisfitError,
    UnsafeCheckpointError,
    find_misfits,
    shorten,
)

NUMBERS = itertools.count()


class Model(BaseModel):
    """A backbone and a head."""

    def __init__(self, width: int = 4, classes: int = 2, init_cfg=None) -> None:
        super().__init__(init_cfg=init_cfg)
        self.backbone = nn.Sequential(nn.Linear(3, width), nn.Linear(width, 3))
        self.head = nn.Linear(3, classes)

    def forward(self, inputs, mode='tensor'):
        outputs = self.head(self.backbone(torch.stack(inputs)))
        return dict(loss=outputs.sum()) if mode == 'loss' else list(outputs)


class Part(BaseModule):
    """A backbone that may be wider inside."""

    def __init__(self, width: int = 4, init_cfg=None) -> None:
        super().__init__(init_cfg=init_cfg)
        self.inner = nn.Linear(3, width, bias=False)

    def forward(self, inputs):
        return inputs + self.inner(inputs).sum()


class Vectors:
    """Two of them."""

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> dict:
        return dict(inputs=torch.ones(3))


@pytest.fixture
def make(tmp_path):
    def make(
        model: nn.Module,
        average: bool | dict = False,
        validates: bool = False,
        **options,
    ) -> Runner:
        loader = dict(
            batch_size=2,
            dataset=Vectors(),
            sampler=dict(type='DefaultSampler', shuffle=False),
        )
        if validates:
            options['val_dataloader'] = loader
        hooks = [CheckpointFitHook()]
        if average:
            hooks.append(dict(type='EMAHook') if average is True else average)
        return Runner(
            model,
            work_dir=str(tmp_path / 'work'),
            train_dataloader=loader,
            train_cfg=dict(by_epoch=True, max_epochs=1),
            optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.0)),
            test_dataloader=loader,
            test_evaluator=[],
            test_cfg=dict(),
            custom_hooks=hooks,
            experiment_name=f'fit_{next(NUMBERS)}',
            **options,
        )

    return make


@pytest.fixture
def saved(tmp_path):
    """Save the weights of a model, and return the file."""

    def save(model: nn.Module, wrap: bool = True, **more) -> str:
        state = {**model.state_dict(), **more}
        torch.save(dict(state_dict=state) if wrap else state, tmp_path / 'first.pth')
        return str(tmp_path / 'first.pth')

    return save


def warnings_of(tmp_path) -> str:
    logs = sorted((tmp_path / 'work').glob('*/*.log'))
    return '\n'.join(x for x in logs[-1].read_text().split('\n') if 'Not taken' in x)


def test_training_goes_on_with_what_fits(make, saved, tmp_path):
    first = Model(classes=5)
    file = saved(first, **{'teacher.weight': torch.ones(1)})
    runner = make(Model(), load_from=file)
    runner.train()

    assert torch.equal(runner.model.backbone[0].weight, first.backbone[0].weight)
    told = warnings_of(tmp_path)
    assert 'head.weight has shape (5, 3), the model wants (2, 3)' in told
    assert 'teacher.weight is unknown to the model' in told
    assert 'backbone' not in told


@pytest.mark.parametrize('average', [False, True])
def test_plain_weights(average, make, saved, tmp_path):
    """``torch.save(model.state_dict())``, also with an average of the weights."""
    first = Model()
    runner = make(Model(), average, load_from=saved(first, wrap=False))
    runner.train()
    assert torch.equal(runner.model.head.weight, first.head.weight)
    assert warnings_of(tmp_path) == ''


def test_average_beside_weights_of_which_some_do_not_fit(make, tmp_path):
    """MMPretrain's EMAHook takes it from a checkpoint too, weight by weight."""
    hook = dict(type='mmpretrain.EMAHook')
    make(Model(classes=5), hook).train()
    file = str(tmp_path / 'work' / 'epoch_1.pth')
    saved = torch.load(file, weights_only=False)
    assert 'module.head.weight' in saved['ema_state_dict']
    runner = make(Model(), hook, load_from=file)
    runner.train()
    name = 'backbone.0.weight'
    assert torch.equal(runner.model.state_dict()[name], saved['state_dict'][name])
    assert 'head.weight has shape (5, 3)' in warnings_of(tmp_path)


class Twos(Model):
    """Its head begins with twos."""

    def init_weights(self) -> None:
        super().init_weights()
        nn.init.constant_(self.head.weight, 2.0)


@pytest.mark.parametrize('average', [True, dict(type='mmpretrain.EMAHook')])
def test_average_of_what_is_missing(average, make, saved):
    """It is that of the initial weights, which EMAHook's copy has not."""
    file = saved(Model(classes=5), **{'teacher': torch.ones(1)})
    checkpoint = torch.load(file)
    if average is not True:
        state = {f'module.{k}': v + 1 for k, v in checkpoint['state_dict'].items()}
        checkpoint['ema_state_dict'] = dict(state, steps=torch.tensor(3))
        torch.save(checkpoint, file)
    runner = make(Twos(), average, load_from=file)
    runner.train()
    (hook,) = (h for h in runner.hooks if type(h).__name__ == 'EMAHook')
    for model in (runner.model, hook.ema_model.module):
        assert (model.head.weight == 2).all()
        backbone = checkpoint['state_dict']['backbone.0.weight']
        assert torch.equal(model.backbone[0].weight, backbone)


def test_test_of_the_weights_beside_the_average(make, saved):
    """Also where the file has weights that the model does not know."""
    file = saved(Model(), **{'teacher': torch.ones(1)})
    checkpoint = torch.load(file)
    state = {f'module.{k}': v + 1 for k, v in checkpoint['state_dict'].items()}
    checkpoint['ema_state_dict'] = dict(state, steps=torch.tensor(3))
    torch.save(checkpoint, file)
    hook = dict(type='mmpretrain.EMAHook', evaluate_on_ema=False)
    runner = make(Model(), hook | dict(evaluate_on_origin=True), load_from=file)
    runner.test()
    assert torch.equal(runner.model.head.weight, state['module.head.weight'])


def test_latest_checkpoint_is_looked_for_where_none_is_named(make, saved, monkeypatch):
    monkeypatch.setattr('mmpsvit.guard.fit.find_latest_checkpoint', pytest.fail)
    file = saved(Model(classes=5))
    with pytest.raises(CheckpointMisfitError, match='first'):
        make(Model(), load_from=file, resume=True).train()


def test_training_stops_where_nothing_of_the_backbone_fits(make, saved):
    other = nn.ModuleDict(dict(trunk=nn.Linear(3, 3), head=nn.Linear(3, 2)))
    with pytest.raises(CheckpointMisfitError, match=r'first\.pth does not fit'):
        make(Model(), load_from=saved(other)).train()


class InitializingModel(Model):
    """With an ``init_weights`` of its own, as most backbones."""

    def init_weights(self) -> None:
        super().init_weights()


@pytest.mark.parametrize('kind', [Model, InitializingModel])
@pytest.mark.parametrize('form', [dict, list])
def test_init_cfg_that_fits_nothing(form, kind, make, saved):
    other = nn.ModuleDict(dict(trunk=nn.Linear(3, 3)))
    init_cfg = dict(type='Pretrained', checkpoint=saved(other))
    init_cfg = init_cfg if form is dict else [init_cfg]
    message = (
        rf'no weight of checkpoint .*first\.pth fits {kind.__name__}: it has trunk'
    )
    with pytest.raises(CheckpointMisfitError, match=message):
        make(kind(init_cfg=init_cfg)).train()


def test_init_cfg_below_that_of_the_whole(make, saved, tmp_path):
    """MMEngine then reads the file of the whole model only."""
    part = tmp_path / 'part.pth'
    torch.save(Part().state_dict(), part)
    whole = Model()
    whole.backbone = Part(5)
    model = Model(init_cfg=dict(type='Pretrained', checkpoint=saved(whole)))
    model.backbone = Part(init_cfg=dict(type='Pretrained', checkpoint=str(part)))
    runner = make(model, average=True)
    runner.train()
    assert torch.equal(model.head.weight, whole.head.weight)
    # Nothing watches any longer, in the average of the weights neither.
    average = runner.hooks[[type(h).__name__ for h in runner.hooks].index('EMAHook')]
    for network in (model, average.ema_model.module):
        network.load_state_dict(dict(other=torch.ones(1)), strict=False)


def test_init_cfg_of_a_file_in_another_form(make, tmp_path):
    """Some trainers call the weights ``model``: none of it is found."""
    file = tmp_path / 'first.pth'
    torch.save(dict(model=Model().state_dict(), epoch=3), file)
    message = r'no weight of checkpoint .*first\.pth fits Model: it has model, epoch'
    with pytest.raises(CheckpointMisfitError, match=message):
        make(Model(init_cfg=dict(type='Pretrained', checkpoint=str(file)))).train()


@pytest.mark.parametrize('prefix', [None, 'net', 'net.'])
def test_init_cfg_that_fits(prefix, make, saved):
    first = Model()
    file = saved(nn.ModuleDict(dict(net=first)) if prefix else first)
    init_cfg = dict(type='Pretrained', checkpoint=file, prefix=prefix)
    runner = make(Model(classes=5, init_cfg=init_cfg))
    runner.train()
    assert torch.equal(runner.model.backbone[0].weight, first.backbone[0].weight)


def test_testing_needs_all_weights(make, saved):
    file = saved(Model(classes=5))
    message = r'first\.pth does not fit the config: head\.weight has shape \(5, 3\)'
    with pytest.raises(CheckpointMisfitError, match=message):
        make(Model(), load_from=file).test()
    # Surplus weights are of another model's parts.
    make(Model(), load_from=saved(Model(), **{'teacher': torch.ones(1)})).test()


def test_resume_needs_all_weights(make, saved, tmp_path):
    make(Model()).train()
    last = tmp_path / 'work' / 'epoch_1.pth'
    with pytest.raises(CheckpointMisfitError, match=r'head\.bias has shape'):
        make(Model(classes=5), load_from=str(last), resume=True).train()


def test_prefixes_that_must_fit(make, saved):
    runner = make(Model(), load_from=saved(Model(classes=5)))
    (hook,) = (each for each in runner.hooks if isinstance(each, CheckpointFitHook))
    hook.must_fit = ('head.',)
    with pytest.raises(CheckpointMisfitError, match=r'head\.weight has shape'):
        runner.train()


def test_what_a_test_does_not_use(make, saved):
    """Such as an auxiliary head."""
    runner = make(Model(), load_from=saved(Model(classes=5)))
    (hook,) = (each for each in runner.hooks if isinstance(each, CheckpointFitHook))
    hook.must_fit = ('backbone.',)
    runner.test()
    hook.must_fit = None
    with pytest.raises(CheckpointMisfitError, match='must_fit takes'):
        make(Model(), load_from=runner._load_from).test()


class Counting(Model):
    """Its state is more than tensors."""

    def get_extra_state(self) -> dict:
        return dict(count=3)

    def set_extra_state(self, state: dict) -> None:
        assert state == dict(count=3)


def test_extra_state(make, tmp_path):
    make(Counting()).train()
    last = str(tmp_path / 'work' / 'epoch_1.pth')
    make(Counting(), load_from=last, resume=True).train()
    make(Counting(), load_from=last).test()


def test_what_was_trained_since_is_tested(make, saved):
    runner = make(Model(), load_from=saved(Model(classes=5)))
    runner.train()
    runner.test()


class RenamingModel(Model):
    """Its weights have a prefix that its checkpoints do not have, as timm's models."""

    def __init__(self, **kwargs) -> None:
        super().__init__()
        self.model = Model(**kwargs)
        del self.backbone, self.head
        self._register_state_dict_hook(
            lambda _, state, prefix, metadata: type(state)(
                (key.removeprefix('model.'), value) for key, value in state.items()
            )
        )
        self._register_load_state_dict_pre_hook(self._rename)

    @staticmethod
    def _rename(state, *_) -> None:
        for key in [*state]:
            state[f'model.{key}'] = state.pop(key)

    def forward(self, inputs, mode='tensor'):
        return self.model(inputs, mode)


@pytest.mark.parametrize('saves_renamed', [True, False])
@pytest.mark.parametrize('form', ['load_from', 'init_cfg'])
def test_model_that_renames_what_it_loads(form, saves_renamed, make, saved, tmp_path):
    first = RenamingModel(classes=5)
    file = saved(first)
    assert 'head.weight' in first.state_dict()
    options = {}
    model = RenamingModel()
    if not saves_renamed:  # MMDetection's semi-supervised ones convert in one direction
        model._state_dict_hooks.clear()
    if form == 'load_from':
        options = dict(load_from=file)
    else:
        model.init_cfg = dict(type='Pretrained', checkpoint=file)
    runner = make(model, **options)
    runner.train()
    ours, theirs = runner.model.model.backbone, first.model.backbone
    assert torch.equal(ours[0].weight, theirs[0].weight)
    if form == 'load_from':
        message = 'model.head.weight has shape (5, 3), the model wants (2, 3)'
        assert message in warnings_of(tmp_path)


def test_flexible_runner_loads_safely(tmp_path):
    """It loads before any hook is called."""
    trap, file = tmp_path / 'executed', tmp_path / 'first.pth'
    torch.save(dict(state_dict={}, extra=Malicious(trap)), file)
    runner = FlexibleRunner(
        Model(),
        work_dir=str(tmp_path / 'work'),
        load_from=str(file),
        train_dataloader=dict(
            batch_size=2,
            dataset=Vectors(),
            sampler=dict(type='DefaultSampler', shuffle=False),
        ),
        train_cfg=dict(by_epoch=True, max_epochs=1),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.0)),
        custom_hooks=[dict(type='mmpsvit.CheckpointFitHook')],
        experiment_name=f'fit_{next(NUMBERS)}',
    )
    with pytest.raises(UnsafeCheckpointError):
        runner.train()
    assert not trap.exists()


def test_file_without_weights(make, tmp_path):
    torch.save(dict(epoch=1), tmp_path / 'none.pth')
    with pytest.raises(CheckpointMisfitError, match=r'none\.pth holds no weights'):
        make(Model(), load_from=str(tmp_path / 'none.pth')).train()


@pytest.mark.parametrize('form', ['load_from', 'init_cfg'])
def test_weights_of_a_wrapped_model(form, make, saved):
    first = Model()
    file = saved(nn.ModuleDict(dict(module=first)))
    init_cfg = dict(type='Pretrained', checkpoint=file)
    options = dict(load_from=file) if form == 'load_from' else {}
    runner = make(Model(init_cfg=None if options else init_cfg), **options)
    runner.train()
    assert torch.equal(runner.model.head.weight, first.head.weight)


def test_initial_weights_are_not_validated(make, saved):
    options = dict(val_evaluator=[], val_cfg=dict())
    runner = make(Model(), load_from=saved(Model(classes=5)), validates=True, **options)
    with pytest.raises(CheckpointMisfitError, match=r'head\.weight has shape'):
        runner.val()


class Plain(BaseModel):
    """It has no backbone."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)

    def forward(self, inputs, mode='tensor'):
        return dict(loss=self.layer(torch.stack(inputs)).sum())


def test_training_stops_where_nothing_of_the_model_fits(make, saved):
    other = nn.ModuleDict(dict(trunk=nn.Linear(3, 3)))
    with pytest.raises(CheckpointMisfitError, match='does not fit'):
        make(Plain(), load_from=saved(other)).train()


def test_counter_of_batches_may_be_missing():
    model = nn.BatchNorm1d(2)
    state = model.state_dict()
    del state['num_batches_tracked']
    assert find_misfits(model, state) == ({}, [])


def test_three_texts_and_how_many_more():
    assert shorten([*'abc']) == 'a; b; c'
    assert shorten([*'abcde']) == 'a; b; c and 2 more'
