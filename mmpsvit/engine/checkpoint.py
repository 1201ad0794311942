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

import mmengine.runner.checkpoint as mmengine_checkpoint
import numpy as np
import torch
from mmengine.dist import barrier, get_rank
from mmengine.logging import HistoryBuffer
from mmengine.runner.checkpoint import CheckpointLoader
from mmengine.utils.dl_utils import load_url


class CheckpointError(RuntimeError):
    """A checkpoint cannot be read."""


class UnsafeCheckpointError(CheckpointError):
    """A checkpoint holds objects other than weights and MMEngine's training state."""


def _allowed_globals() -> list[Callable | tuple[Callable, str]]:
    """What training checkpoints of MMEngine hold besides tensors."""
    multiarray = (np._core if hasattr(np, '_core') else np.core).multiarray
    scalars = {type(np.dtype(code)) for code in '?bBhHiIlLqQefdUS'}
    return [
        HistoryBuffer,
        getattr,  # with it, HistoryBuffer names its own methods
        slice,
        _codecs.encode,
        np.ndarray,
        np.dtype,
        *scalars,
        multiarray._reconstruct,
        multiarray.scalar,
        # under the names that numpy 1 wrote into its files
        (multiarray._reconstruct, 'numpy.core.multiarray._reconstruct'),
        (multiarray.scalar, 'numpy.core.multiarray.scalar'),
    ]


@contextlib.contextmanager
def _refusing(filename: str, allowed: Sequence[type] = ()) -> Iterator[None]:
    """Allow MMEngine's training state, and name the file in every refusal."""
    try:
        with torch.serialization.safe_globals([*_allowed_globals(), *allowed]):
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

    Args:
        filename (str | os.PathLike): Path of a local file.
        map_location (str, optional): As in ``torch.load``. Defaults to None.
        allowed (Sequence[type]): Other harmless classes that the file may hold.

    Returns:
        dict: The checkpoint.

    Raises:
        FileNotFoundError: If there is no such file.
        UnsafeCheckpointError: If the file holds objects that could execute code.
            Nothing has been executed then.
        CheckpointError: If the file is damaged, or no checkpoint at all.
    """
    path = Path(filename).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f'checkpoint {filename} does not exist')
    with _refusing(str(filename), allowed):
        return torch.load(path, map_location=map_location, weights_only=True)


def load_from_local(filename: str, map_location: str | None = None) -> dict:
    """MMEngine's loader of local files, see :func:`load_checkpoint`."""
    return load_checkpoint(filename, map_location)


def load_from_http(filename: str, map_location: str | None = None) -> dict:
    """MMEngine's loader of URLs: rank 0 downloads, then every rank loads."""
    checkpoint = None
    for is_my_turn in (get_rank() == 0, get_rank() != 0):
        if is_my_turn:
            with _refusing(filename):
                checkpoint = load_url(
                    filename, map_location=map_location, weights_only=True
                )
        barrier()
    return checkpoint


def use_safe_loading() -> None:
    """Make MMEngine load every checkpoint safely in this process.

    This covers ``load_from``, ``resume`` and ``init_cfg`` alike, local files and URLs.
    """
    CheckpointLoader.register_scheme('', load_from_local, force=True)
    CheckpointLoader.register_scheme(
        ('http://', 'https://'), load_from_http, force=True
    )
    # The loaders of the other schemes (torchvision, open-mmlab, s3, ...) call these.
    mmengine_checkpoint.load_from_http = load_from_http
    mmengine_checkpoint._safe_torch_load = _load_file


def _load_file(
    file, map_location: str | None = None, weights_only: bool = True
) -> dict:
    """Load a path or an open file; never in full, whatever ``weights_only`` says."""
    with _refusing(str(file)):
        return torch.load(file, map_location=map_location, weights_only=True)
