# Copyright (c) mmpsvit contributors.
"""Loads checkpoints without executing what is in them.

MMEngine falls back to full unpickling, which runs code of the file's author,
whenever a checkpoint holds more than it expects. Here such a file is refused.
"""

import _codecs
import contextlib
import os
import pickle
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO
from urllib.parse import urlparse

import mmengine.runner.checkpoint as mmengine_checkpoint
import numpy as np
import torch
from mmengine.dist import barrier, get_rank
from mmengine.logging import HistoryBuffer
from mmengine.runner.checkpoint import CheckpointLoader, find_latest_checkpoint

from mmpsvit.compat import (
    Allowed,
    load_weights,
    numpy_multiarray,
    replace_torch_load,
)


class CheckpointError(RuntimeError):
    """A checkpoint cannot be read."""


class MissingCheckpointError(CheckpointError, FileNotFoundError):
    """There is no such checkpoint."""


class UnsafeCheckpointError(CheckpointError):
    """A checkpoint holds objects other than weights and MMEngine's training state."""


def _history_method(owner: type, name: str) -> Callable:
    """What HistoryBuffer names its own methods with: ``getattr``, for these only."""
    if owner is not HistoryBuffer or name.startswith('_'):
        raise pickle.UnpicklingError(f'an attribute {name} is not allowed')
    return getattr(owner, name)


def _allowed_globals() -> list[Allowed]:
    """What training checkpoints of MMEngine hold besides tensors."""
    multiarray = numpy_multiarray()
    scalars = {type(np.dtype(code)) for code in '?bBhHiIlLqQefdUS'}
    return [
        HistoryBuffer,
        (_history_method, 'builtins.getattr'),
        slice,
        _codecs.encode,
        np.ndarray,
        np.dtype,
        *scalars,
        # under the names that numpy 1 and numpy 2 write into their files
        *(
            (getattr(multiarray, name), f'numpy.{core}.multiarray.{name}')
            for core in ('core', '_core')
            for name in ('_reconstruct', 'scalar')
        ),
    ]


def _load(
    filename: str,
    file: str | os.PathLike | BinaryIO,
    map_location: str | None,
    allowed: Sequence[type] = (),
) -> dict:
    """Load a file, and take out of it what MMEngine would run.

    Args:
        filename (str): How errors call the file.
        file (str | os.PathLike | BinaryIO): A path or an open file.
        map_location (str, optional): As in ``torch.load``.
        allowed (Sequence[type]): As in :func:`load_checkpoint`.
    """
    with _refusing(filename):
        checkpoint = load_weights(file, map_location, [*_allowed_globals(), *allowed])
    if not isinstance(checkpoint, dict):
        kind = type(checkpoint).__name__
        raise CheckpointError(f'checkpoint {filename} holds a {kind}, no weights')
    meta = checkpoint.get('meta')
    if isinstance(meta, dict):
        # Text that MMEngine, when it resumes, would run as a Python config. It writes
        # none itself; files from before MMEngine have it.
        meta.pop('config', None)
    return checkpoint


@contextlib.contextmanager
def _refusing(filename: str) -> Iterator[None]:
    """Name the file in every refusal."""
    try:
        yield
    except pickle.UnpicklingError as error:
        reason = str(error).split('\n')[0]
        raise UnsafeCheckpointError(
            f'checkpoint {filename} is refused: it is damaged, or holds objects that '
            f'could run code when loaded ({reason})'
        ) from None
    # What a damaged file makes the unpickler raise can be anything.
    except Exception as error:
        reason = str(error).split('\n')[0]
        raise CheckpointError(
            f'checkpoint {filename} cannot be read; it may be damaged '
            f'({type(error).__name__}: {reason})'
        ) from None


def load_checkpoint(
    filename: str | os.PathLike,
    map_location: str | None = None,
    allowed: Sequence[type] = (),
) -> dict:
    """Load a checkpoint file: weights and the training state of MMEngine, no more.

    Left out is ``meta.config``, the text of a config, which MMEngine would run when it
    resumes. ``meta.cfg`` is left in; do not build anything from that of a stranger.

    Args:
        filename (str | os.PathLike): Path of a local file.
        map_location (str, optional): As in ``torch.load``. Defaults to None.
        allowed (Sequence[type]): Other harmless classes that the file may hold.

    Returns:
        dict: The checkpoint.

    Raises:
        MissingCheckpointError: If there is no such file.
        UnsafeCheckpointError: If the file holds objects that could execute code.
            Nothing has been executed then.
        CheckpointError: If the file is damaged, or no checkpoint at all.
    """
    path = Path(filename).expanduser()
    if path.is_dir():
        raise CheckpointError(f'checkpoint {filename} is a folder, not a file')
    if not path.is_file():
        raise MissingCheckpointError(f'checkpoint {filename} does not exist')
    return _load(str(filename), path, map_location, allowed)


def latest_checkpoint(work_dir: str | os.PathLike) -> str | None:
    """Find the checkpoint that a training would resume from.

    Args:
        work_dir (str | os.PathLike): The training's work dir.

    Returns:
        str | None: What the file ``last_checkpoint`` names, or if that is gone what has
        its name in ``work_dir``, which may have moved. None without that file.
    """
    named = find_latest_checkpoint(str(work_dir))
    if named is None or '://' in named or os.path.exists(named):
        return named
    moved = os.path.join(work_dir, os.path.basename(named))
    return moved if os.path.exists(moved) else named


def load_from_local(filename: str, map_location: str | None = None) -> dict:
    """MMEngine's loader of local files, see :func:`load_checkpoint`."""
    return load_checkpoint(filename, map_location)


def load_from_http(filename: str, map_location: str | None = None) -> dict:
    """MMEngine's loader of URLs: rank 0 downloads first, then who lacks the file."""
    folder = Path(torch.hub.get_dir()) / 'checkpoints'
    path = folder / os.path.basename(urlparse(filename).path)
    with _refusing(filename):
        for is_my_turn in (get_rank() == 0, get_rank() != 0):
            if is_my_turn and not path.is_file():
                folder.mkdir(parents=True, exist_ok=True)
                # Under another name until it is complete.
                torch.hub.download_url_to_file(filename, str(path))
            barrier()
    return _load(filename, path, map_location)


def use_safe_loading() -> None:
    """Make MMEngine load every checkpoint safely in this process.

    This covers ``load_from``, ``resume`` and ``init_cfg`` alike, local files and URLs.
    """
    ours = {'': load_from_local, 'http://': load_from_http, 'https://': load_from_http}
    for prefix, loader in ours.items():
        CheckpointLoader.register_scheme(prefix, loader, force=True)
    # The loaders of the other schemes (torchvision, open-mmlab, s3, ...) call these.
    mmengine_checkpoint.load_from_http = load_from_http
    replace_torch_load(_load_file)


def _load_file(
    file, map_location: str | None = None, weights_only: bool = True
) -> dict:
    """Load a path or an open file; never in full, whatever ``weights_only`` says."""
    return _load(str(file), file, map_location)
