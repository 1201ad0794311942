# Copyright (c) mmpsvit contributors.
"""Reads what torch.save wrote, and runs nothing of it, with any release of PyTorch."""

import _codecs
import _compat_pickle
import os
import pathlib
import pickle
import re
from collections import Counter
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import BinaryIO

import numpy as np
import torch
from mmengine.config import ConfigDict
from mmengine.logging import HistoryBuffer
from mmengine.optim.scheduler.param_scheduler import OneCycleParamScheduler
from packaging.version import Version

# A class or function, under its own name or under another one.
Allowed = Callable | tuple[Callable, str]


def load_weights(
    file: str | os.PathLike | BinaryIO,
    map_location: str | None,
    allowed: Sequence[Allowed] = (),
) -> object:
    """``torch.load`` of tensors, plain values and what MMEngine's trainings hold.

    Raises:
        pickle.UnpicklingError: If the file names anything else that is not allowed.
    """
    allowed = [*_mmengine_globals(), *allowed]
    if Version(torch.__version__) < Version('2.10'):
        # Before 2.6, `weights_only` cannot be told what else is allowed; before 2.10,
        # a file may write into the memory of what it holds.
        _refuse_torchscript(file)
        restricted = _restricted_pickle(allowed)
        return torch.load(file, map_location=map_location, pickle_module=restricted)
    try:
        with torch.serialization.safe_globals(allowed):
            return torch.load(file, map_location=map_location, weights_only=True)
    except pickle.UnpicklingError as error:
        # Without PyTorch's advice to load the file in full.
        reason = 'not written by torch.save'
        if found := re.search(r'GLOBAL (\S+)', str(error)):
            reason = f'{found[1]} is not allowed'
        elif found := re.search(r'WeightsUnpickler error:\s+(.+)', str(error)):
            reason = found[1]
        raise pickle.UnpicklingError(reason) from None


def _attribute(owner: type, name: str) -> Callable:
    """``getattr``, for what MMEngine's objects name their own functions with."""
    starts = {HistoryBuffer: ('', '_'), OneCycleParamScheduler: ('_annealing_', '__')}
    start, never = starts.get(owner, ('', ''))
    if not name.startswith(start) or name.startswith(never):
        raise pickle.UnpicklingError(f'an attribute {name} is not allowed')
    return getattr(owner, name)


def _mmengine_globals() -> list[Allowed]:
    """What training checkpoints of MMEngine hold besides tensors."""
    is_numpy_2 = Version(np.__version__) >= Version('2')
    multiarray = (np._core if is_numpy_2 else np.core).multiarray
    harmless = (HistoryBuffer, OneCycleParamScheduler, ConfigDict, slice)
    paths = (pathlib.PosixPath, pathlib.WindowsPath)
    scalars = {type(np.dtype(code)) for code in '?bBhHiIlLqQefdFDUS'}
    # under the names that NumPy 1 and NumPy 2 write into their files
    functions = (
        (getattr(multiarray, name), f'numpy.{core}.multiarray.{name}')
        for core in ('core', '_core')
        for name in ('_reconstruct', 'scalar')
    )
    arrays = (np.ndarray, np.dtype, _codecs.encode, *scalars, *functions)
    return [*harmless, *paths, *arrays, (_attribute, 'builtins.getattr')]


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

    def plain_dtype(*args) -> np.dtype:
        # Of Python objects, a file could write the addresses.
        if type(dtype := np.dtype(*args)) not in allowed:
            raise pickle.UnpicklingError(f'the dtype {dtype} is not allowed')
        return dtype

    known['numpy.dtype'] = plain_dtype

    # The one in Python, since only there one can see whose state a file sets.
    class Unpickler(pickle._Unpickler):
        dispatch = pickle._Unpickler.dispatch.copy()

        def load_build(self) -> None:
            if callable(owner := self.stack[-2]):
                raise pickle.UnpicklingError(f'the state of {owner!r} is not allowed')
            super().load_build()

        dispatch[pickle.BUILD[0]] = load_build

        def load_setitem(self) -> None:
            if not isinstance(owner := self.stack[-3], dict):
                raise pickle.UnpicklingError(f'an item of {type(owner)} is not allowed')
            super().load_setitem()

        dispatch[pickle.SETITEM[0]] = load_setitem

        def load_setitems(self) -> None:
            if not isinstance(owner := self.metastack[-1][-1], dict):
                raise pickle.UnpicklingError(f'an item of {type(owner)} is not allowed')
            super().load_setitems()

        dispatch[pickle.SETITEMS[0]] = load_setitems

        def find_class(self, module: str, name: str):
            # Names of Python 2, which torch.save still writes.
            names = _compat_pickle.NAME_MAPPING
            module, name = names.get((module, name), (module, name))
            module = _compat_pickle.IMPORT_MAPPING.get(module, module)
            try:
                return known[f'{module}.{name}']
            except KeyError:
                reason = f'{module}.{name} is not allowed'
                raise pickle.UnpicklingError(reason) from None

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
