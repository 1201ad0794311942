# Copyright (c) mmpsvit contributors.
"""Holds the weights of a checkpoint against the model, which MMEngine only logs."""

import re
from collections.abc import Mapping, Sequence
from functools import partial

from mmengine.hooks import Hook
from mmengine.model import BaseModule, BaseTTAModel, is_model_wrapper
from mmengine.runner import Runner, find_latest_checkpoint
from torch import Tensor, nn
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.utils.hooks import RemovableHandle

from mmpsvit.registry import HOOKS

from .checkpoint import use_safe_loading
from .precision import type_name


class CheckpointMisfitError(RuntimeError):
    """The weights of a checkpoint do not fit the model."""


def find_misfits(
    model: nn.Module, state: Mapping[str, Tensor]
) -> tuple[dict[str, str], list[str]]:
    """Load the weights of a checkpoint into a model, and find those that do not fit.

    Args:
        model (nn.Module): The model. It receives the weights that fit.
        state (Mapping[str, Tensor]): The checkpoint's state dict.

    Returns:
        tuple[dict[str, str], list[str]]: For each key of the model that is missing in
        the checkpoint, or has another shape there, a line that says so; and the keys
        that are unknown to the model.
    """
    wanted, incompatible = {}, []
    # The load compares, not we beforehand: modules may adapt weights, such as position
    # embeddings, or rename them.
    with model.register_load_state_dict_post_hook(
        lambda _, keys: incompatible.append(keys)
    ):
        try:
            model.load_state_dict(state, strict=False)
        except RuntimeError as error:
            size = r'torch\.Size\(\[(.*?)\]\)'
            for key, given, own in re.findall(
                rf'size mismatch for (\S+): .*?{size}.*?{size}', str(error)
            ):
                wanted[key] = f'{key} has shape ({given}), the model wants ({own})'
            if not wanted:
                raise
    for key in incompatible[0].missing_keys:
        # Old checkpoints lack this counter, which only matters without a momentum.
        if not key.endswith('num_batches_tracked'):
            wanted[key] = f'{key} is missing'
    return wanted, incompatible[0].unexpected_keys


def without_wrapper(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Take the prefix of wrapped models off the keys, as MMEngine does."""
    return {re.sub(r'^module\.', '', key): value for key, value in state.items()}


def raise_misfits(name: str, misfits: list[str], remedy: str = '') -> None:
    """Raise a CheckpointMisfitError that shows the first of the misfits, if any.

    Args:
        name (str): The checkpoint.
        misfits (list[str]): Lines of :func:`find_misfits`.
        remedy (str): What else to say. Defaults to nothing.
    """
    if misfits:
        raise CheckpointMisfitError(
            f'checkpoint {name} does not fit the config: {shorten(misfits)}{remedy}'
        )


def shorten(texts: Sequence[str]) -> str:
    """The first three of some texts, and how many more there are."""
    rest = f' and {len(texts) - 3} more' if len(texts) > 3 else ''
    return '; '.join(texts[:3]) + rest


def refuse_foreign_weights(
    module: nn.Module,
    state: Mapping[str, Tensor],
    prefix: str,
    *_,
    name: str = 'the checkpoint',
) -> None:
    """Stop where a module is about to be loaded from weights of which it has none.

    MMEngine would log the names and go on from scratch. This is a hook for
    ``module.register_load_state_dict_pre_hook`` and reaches every way of loading,
    also in other people's tools. A state dict without the prefix of the module loads
    other parts of a model, which is fine.

    Args:
        module (nn.Module): The module.
        state (Mapping[str, Tensor]): The state dict.
        prefix (str): Prefix of the module's keys.
        name (str): What to call the state dict. Defaults to 'the checkpoint'.

    Raises:
        CheckpointMisfitError: If there are weights under the prefix, and none of them
            has the name and shape of one of the module's parameters.
    """
    # There are files that hold other things beside the weights.
    given, own = (
        {key: tuple(getattr(value, 'shape', ())) for key, value in weights}
        for weights in (state.items(), module.named_parameters(prefix=prefix[:-1]))
    )
    given = {key: shape for key, shape in given.items() if key.startswith(prefix)}
    if given and not given.items() & own.items():
        raise CheckpointMisfitError(
            f'no weight of {name} fits {type(module).__name__}: it has '
            f'{", ".join([*given][:3])}, ..., wanted are {", ".join([*own][:3])}, ...; '
            'is it of another network, or does it need a prefix?'
        )


@HOOKS.register_module()
class CheckpointFitHook(Hook):
    """Watches what checkpoints give to the model; MMEngine loads what fits, and logs.

    While this hook is there, files are loaded without running what is in them
    (:func:`use_safe_loading`).

    - A training goes on with what fits, and a warning names the rest, such as the head
      for other classes. It stops if nothing fits: no weight of the backbone, or of
      the model if it has none, is in the checkpoint of ``load_from``, or no weight of
      a module in that of its ``init_cfg``.
    - A test, a validation on its own and a resume stop if a weight of the model is
      missing or of another shape: scores of initial weights mean nothing. ``must_fit``
      lets go what a test does not use.

    MMEngine's ``FlexibleRunner`` reads an ``init_cfg`` before any hook is called: there
    only PS-ViT's own is watched, and with FSDP files are only loaded safely.

    Args:
        must_fit (Sequence[str], optional): Prefixes of the weights that must fit,
            whatever is run; ``('',)`` means all, ``()`` none. Defaults to None, which
            means none in a training that starts, all otherwise.

    Raises:
        CheckpointMisfitError: If a checkpoint does not fit as it must.
    """

    # Before EMAHook, which copies the weights for itself.
    priority = 'VERY_HIGH'

    def __init__(self, must_fit: Sequence[str] | None = None) -> None:
        self.must_fit = None if must_fit is None else tuple(must_fit)
        self._name: str | None = None
        self._missing: list[str] = []
        self._handles: list[RemovableHandle] = []
        use_safe_loading()  # before anything is initialised or loaded

    def before_run(self, runner: Runner) -> None:
        """Watch the modules whose ``init_cfg`` is a checkpoint, before they load it."""

        def watch(
            module: nn.Module, state: Mapping, prefix: str, *_, name: str
        ) -> None:
            # Not in copies of the model, nor where a whole model is loaded.
            if self._handles and not prefix:
                refuse_foreign_weights(module, state, prefix, name=name)

        for module in unwrap(runner.model).modules():
            cfgs = (isinstance(module, BaseModule) and module.init_cfg) or []
            for cfg in [cfgs] if isinstance(cfgs, dict) else cfgs:
                if type_name(cfg) in ('Pretrained', 'PretrainedInit'):
                    name = f'checkpoint {cfg["checkpoint"]}'
                    # After hooks of the module's own, which may rename weights.
                    handle = module._register_load_state_dict_pre_hook(
                        partial(watch, name=name), with_module=True
                    )
                    self._handles.append(handle)

    def _end_watch(self) -> None:
        while self._handles:
            self._handles.pop().remove()

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Hold the weights against the model, and take out those that do not fit."""
        self._end_watch()
        if isinstance(runner.model, FullyShardedDataParallel):
            return  # It puts each weight together only while it loads.
        name = runner._load_from
        if not name and runner._resume:
            name = find_latest_checkpoint(runner.work_dir)
        name = self._name = name or '<loaded by a call>'
        state = checkpoint.get('state_dict', checkpoint)
        if not any(isinstance(value, Tensor) for value in state.values()):
            raise CheckpointMisfitError(
                f'checkpoint {name} holds no weights of a model'
            )
        # As MMEngine does: checkpoints of wrapped models have a prefix.
        unwrapped = without_wrapper(state)
        state.clear()
        state.update(unwrapped)

        model = unwrap(runner.model)
        wanted, unknown = find_misfits(model, state)
        everything = ('',) if self.must_fit is None else self.must_fit
        self._missing = [wanted[key] for key in wanted if key.startswith(everything)]
        # A training that resumes is the same one, with all of its weights.
        if runner._resume or self.must_fit is not None:
            raise_misfits(name, self._missing)
        lines = [f'{key} is unknown to the model' for key in unknown]
        lines += wanted.values()
        weights = [key for key, _ in model.named_parameters()]
        backbone = [key for key in weights if key.startswith('backbone.')]
        if weights and wanted.keys() >= set(backbone or weights):
            raise_misfits(name, lines)
        if not lines:
            return
        runner.logger.warning(f'Not taken from {name}: {"; ".join(lines)}')
        if runner._resume:  # It wants the average of each weight beside it.
            return
        # What is missing stays as it is. EMAHook's copy takes it from here too: it was
        # made before the weights were initialised.
        own = model.state_dict()
        kept = {key: own[key] for key in wanted if key in own}
        if not own.keys() >= state.keys() - set(unknown):
            kept = {}  # The model renames what it loads.
        states = {'': state}
        if 'ema_state_dict' in checkpoint:
            states['module.'] = checkpoint['ema_state_dict']
        for prefix, weights in states.items():
            for key in (*wanted, *unknown):
                weights.pop(prefix + key, None)
            weights.update({prefix + key: value for key, value in kept.items()})

    def before_train(self, runner: Runner) -> None:
        """From now on, what is missing is trained."""
        self._end_watch()
        self._missing = []

    def before_test(self, runner: Runner) -> None:
        """Do not test initial weights."""
        self._end_watch()
        remedy = (
            '. If the test does without them, default_hooks.checkpoint_fit.must_fit '
            'takes the prefixes of those that it needs'
        )
        raise_misfits(self._name, self._missing, remedy)

    def before_val(self, runner: Runner) -> None:
        """Do not validate initial weights, unless they are trained."""
        self.before_test(runner)


def unwrap(model: nn.Module) -> nn.Module:
    """The model below wrappers of distributed training and test-time augmentation."""
    while is_model_wrapper(model) or isinstance(model, BaseTTAModel):
        model = model.module
    return model
