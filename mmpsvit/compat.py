# Copyright (c) mmpsvit contributors.
"""What older PyTorch, NumPy and the original MMEngine lack, all in one place."""

import _compat_pickle
import datetime
import functools
import os
import pickle
import re
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from importlib.util import find_spec
from types import ModuleType, SimpleNamespace
from typing import BinaryIO
from unittest.mock import patch

import mmengine.config.config
import mmengine.hub.hub
import mmengine.runner.checkpoint
import numpy as np
import torch
from mmengine.runner.checkpoint import CheckpointLoader
from mmengine.utils import get_installed_path
from packaging.version import Version
from torch.autograd.function import once_differentiable

# Bound once: MMEngine may be given another one, see `use_safe_loading`.
_torch_load = torch.load
IS_NEW_TORCH = Version(torch.__version__) >= Version('2.6')
# Before, F.embedding_bag fails if its weights have a gradient and its table has none.
BAG_NEEDS_GRADIENT_OF_TABLE = not IS_NEW_TORCH
# Before, fused attention in bfloat16 on the CPU writes out of bounds in its backward
# pass with some odd numbers of tokens, 197 for one (pytorch/pytorch#115253).
FUSED_BFLOAT16_ATTENTION_IS_SAFE = Version(torch.__version__) >= Version('2.2')
# A class or function, under its own name or under another one.
Allowed = Callable | tuple[Callable, str]


def find_editable_packages() -> None:
    """Make MMEngine find the configs of what is installed with ``pip install -e``.

    The original MMEngine takes it that a package lies beside its metadata.
    """
    for module in (mmengine.config.config, mmengine.hub.hub):
        module.get_installed_path = _installed_path


def _installed_path(package: str) -> str:
    """As MMEngine says, or where Python imports the package from."""
    path = get_installed_path(package)
    if os.path.exists(path):
        return path
    spec = find_spec(os.path.basename(path))
    return os.path.dirname(spec.origin) if spec and spec.origin else path


def replace_torch_load(load_file: Callable) -> None:
    """Make MMEngine's loaders of checkpoints call a function instead of torch.load."""
    checkpoint = mmengine.runner.checkpoint
    if hasattr(checkpoint, '_safe_torch_load'):
        checkpoint._safe_torch_load = load_file
        return
    # The original MMEngine calls torch.load itself, from each loader.
    for prefix, loader in list(CheckpointLoader._schemes.items()):
        if not hasattr(loader, 'is_safe'):
            loader = _with_torch_load(loader, load_file)
            CheckpointLoader.register_scheme(prefix, loader, force=True)


def _with_torch_load(loader: Callable, load_file: Callable) -> Callable:
    """A loader of MMEngine that finds another function where it calls torch.load."""

    @functools.wraps(loader)
    def load(*args, **kwargs) -> dict:
        with patch('torch.load', load_file):
            return loader(*args, **kwargs)

    load.is_safe = True
    return load


def can_skip_batches(iterator: object) -> bool:
    """Whether MMEngine's iterator of batches can start at a later one.

    The original MMEngine takes the batches of all iterations before.
    """
    return hasattr(iterator, 'skip_iter')


def numpy_multiarray() -> ModuleType:
    """NumPy's module ``multiarray``, which NumPy 2 keeps elsewhere."""
    is_numpy_2 = Version(np.__version__) >= Version('2')
    return (np._core if is_numpy_2 else np.core).multiarray


def process_group_timeout(seconds: float | None) -> dict:
    """The timeout of ``init_process_group``; PyTorch 2.1 takes no None."""
    if seconds is None:
        return {}
    return dict(timeout=datetime.timedelta(seconds=seconds))


def is_compiling() -> bool:
    """Whether torch.compile or torch.export traces this code."""
    if hasattr(torch.compiler, 'is_compiling'):
        return torch.compiler.is_compiling()
    return torch._dynamo.external_utils.is_compiling()


def attention_kernels(x: torch.Tensor) -> AbstractContextManager:
    """A context where PyTorch's attention takes no kernel that damages memory.

    Args:
        x (Tensor): What attends, in the dtype and on the device where it does.
    """
    is_safe = FUSED_BFLOAT16_ATTENTION_IS_SAFE or x.device.type != 'cpu'
    if is_safe or x.dtype != torch.bfloat16:
        return nullcontext()
    return torch.backends.cuda.sdp_kernel(enable_flash=False)


def load_weights(
    file: str | os.PathLike | BinaryIO,
    map_location: str | None,
    allowed: Sequence[Allowed],
) -> dict:
    """``torch.load`` of tensors, plain values and what is allowed besides.

    Args:
        file (str | os.PathLike | BinaryIO): A path or an open file.
        map_location (str, optional): As in ``torch.load``.
        allowed (Sequence[Allowed]): Other classes and functions that the file may name.

    Raises:
        pickle.UnpicklingError: If the file names anything else.
    """
    if IS_NEW_TORCH:
        try:
            with torch.serialization.safe_globals(list(allowed)):
                return _torch_load(file, map_location=map_location, weights_only=True)
        except pickle.UnpicklingError as error:
            raise pickle.UnpicklingError(_reason(error)) from None
    _refuse_torchscript(file)
    # Here, `weights_only` cannot be told what else is allowed.
    restricted = _restricted_pickle(allowed)
    return _torch_load(file, map_location=map_location, pickle_module=restricted)


def _reason(error: pickle.UnpicklingError) -> str:
    """What PyTorch refuses, without its advice to load the file in full."""
    text = str(error)
    if name := re.search(r'GLOBAL (\S+)', text):
        return f'{name[1]} is not allowed'
    reason = re.search(r'WeightsUnpickler error: (.+)', text)
    return reason[1] if reason else 'it is not what torch.save writes'


def _restricted_pickle(allowed: Sequence[Allowed]) -> SimpleNamespace:
    """As much of the module ``pickle`` as torch.load takes, for allowed names only."""
    known = dict(torch._weights_only_unpickler._get_allowed_globals())
    known.update({str(dtype): dtype for dtype in (torch.bfloat16, torch.bool)})
    known['torch.uint8'] = torch.uint8
    # The milestones of MultiStepLR; later releases allow it themselves.
    known['collections.Counter'] = Counter
    for entry in allowed:
        if isinstance(entry, tuple):
            known[entry[1]] = entry[0]
        else:
            known[f'{entry.__module__}.{entry.__qualname__}'] = entry

    # The one in Python, since only there one can see whose state a file sets.
    class Unpickler(pickle._Unpickler):
        dispatch = pickle._Unpickler.dispatch.copy()

        def load_build(self) -> None:
            if callable(self.stack[-2]):
                raise pickle.UnpicklingError(
                    f'the state of {self.stack[-2]!r} is not allowed'
                )
            super().load_build()

        dispatch[pickle.BUILD[0]] = load_build

        def find_class(self, module: str, name: str):
            # Names of Python 2, which torch.save still writes.
            module, name = _compat_pickle.NAME_MAPPING.get(
                (module, name), (module, name)
            )
            module = _compat_pickle.IMPORT_MAPPING.get(module, module)
            try:
                return known[f'{module}.{name}']
            except KeyError:
                raise pickle.UnpicklingError(
                    f'{module}.{name} is not allowed'
                ) from None

    def load(file: BinaryIO, **kwargs):
        return Unpickler(file, **kwargs).load()

    return SimpleNamespace(__name__='pickle', Unpickler=Unpickler, load=load)


def _refuse_torchscript(file: str | os.PathLike | BinaryIO) -> None:
    """Refuse a program, which torch.load would hand on to another loader.

    It is told as torch.load tells it: other readers of zip files may see other names.
    """
    serialization = torch.serialization
    with serialization._open_file_like(file, 'rb') as opened:
        start = opened.tell()
        if serialization._is_zipfile(opened):
            with serialization._open_zipfile_reader(opened) as archive:
                if serialization._is_torchscript_zip(archive):
                    raise pickle.UnpicklingError('it is a TorchScript program')
        opened.seek(start)


class _EagerOperator:
    """A function with a gradient, called as an operator of ``torch.library`` is."""

    def __init__(self, function: Callable) -> None:
        self._function = self._call = function

    def register_fake(self, function: Callable) -> Callable:
        """Nothing here traces shapes."""
        return function

    def register_autograd(self, backward: Callable, *, setup_context: Callable) -> None:
        """Set the gradient."""
        methods = dict(
            forward=staticmethod(self._function),
            setup_context=staticmethod(setup_context),
            # As torch.library has it: no gradient of the gradient.
            backward=staticmethod(once_differentiable(backward)),
        )
        self._call = type('Function', (torch.autograd.Function,), methods).apply

    def __call__(self, *args):
        return self._call(*args)


def custom_op(name: str, **kwargs) -> Callable:
    """``torch.library.custom_op``; before PyTorch 2.4, no graph sees the operator."""
    if hasattr(torch.library, 'custom_op'):
        return torch.library.custom_op(name, **kwargs)
    return _EagerOperator
