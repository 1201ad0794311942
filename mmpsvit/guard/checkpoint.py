# Copyright (c) mmpsvit contributors.
"""Loads checkpoints without executing what is in them.

MMEngine falls back to full unpickling, which runs code of the file's author,
whenever a checkpoint holds more than it expects. Here such a file is refused.
"""

import contextlib
import os
import pickle
from collections.abc import Iterator, Sequence
from io import BytesIO
from pathlib import Path
from typing import BinaryIO
from urllib.parse import urlparse

import mmengine.runner.checkpoint as mmengine_checkpoint
import torch
from mmengine.dist import barrier, get_rank
from mmengine.fileio import get_file_backend
from mmengine.runner.checkpoint import CheckpointLoader, find_latest_checkpoint
from torch import Tensor

from .unpickling import load_weights


class CheckpointError(RuntimeError):
    """A checkpoint cannot be read."""


class MissingCheckpointError(CheckpointError, FileNotFoundError):
    """There is no such checkpoint."""


class UnsafeCheckpointError(CheckpointError):
    """A checkpoint holds objects other than weights and MMEngine's training state."""


def load_checkpoint(
    filename: str | os.PathLike,
    map_location: str | None = None,
    allowed: Sequence[type] = (),
) -> dict:
    """Load a checkpoint file: weights and the training state of MMEngine, no more.

    Left out is ``meta.config``, the text of a config, which MMEngine would run when it
    resumes. ``meta.cfg`` is left in; do not build anything from that of a stranger.

    Args:
        filename (str | os.PathLike): Path of a local file, also of ``.safetensors``.
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


def use_safe_loading() -> None:
    """Make MMEngine load every checkpoint safely in this process.

    This covers ``load_from``, ``resume`` and ``init_cfg``, MMPretrain's ``get_model``
    and inferencers, local files and URLs. Files of plain weights come as MMEngine's
    hooks expect them, under ``state_dict``.
    """
    for loader, *prefixes in (
        (load_from_local, ''),
        (load_from_http, 'http://', 'https://'),
        (load_from_ceph, r'(\S+\:)?s3://', r'(\S+\:)?petrel://', 'pavi://'),
        (load_from_names, 'modelzoo://', 'torchvision://', 'mmcls://'),
        (load_from_names, 'open-mmlab://', 'openmmlab://'),
    ):
        CheckpointLoader.register_scheme(prefixes, loader, force=True)


def load_from_local(filename: str, map_location: str | None = None) -> dict:
    """Load a local file as MMEngine's hooks expect it: weights under ``state_dict``."""
    checkpoint = load_checkpoint(filename, map_location)
    if all(isinstance(v, Tensor) for v in checkpoint.values()):
        return dict(state_dict=checkpoint)
    return checkpoint


def load_from_http(filename: str, map_location: str | None = None) -> dict:
    """Load a URL: rank 0 downloads it first, then who lacks the file."""
    folder = Path(torch.hub.get_dir()) / 'checkpoints'
    path = folder / os.path.basename(urlparse(filename).path)
    with _refusing(filename):
        for is_my_turn in (get_rank() == 0, get_rank() != 0):
            if is_my_turn and not path.is_file():
                folder.mkdir(parents=True, exist_ok=True)
                # Under another name until it is complete.
                torch.hub.download_url_to_file(filename, str(path))
            barrier()
    return load_from_local(str(path), map_location)


def load_from_ceph(filename: str, map_location: str | None = None) -> dict:
    """Load a file of MMEngine's storage backend 'petrel'."""
    with _refusing(filename):
        backend = get_file_backend(filename, backend_args=dict(backend='petrel'))
        content = BytesIO(backend.get(filename))
    return _load(filename, content, map_location)


def load_from_names(filename: str, map_location: str | None = None) -> dict:
    """Load weights of torchvision, OpenMMLab or MMClassification by their name."""
    scheme, name = filename.split('://', 1)
    urls = {
        'mmcls': mmengine_checkpoint.get_mmcls_models,
        'open-mmlab': mmengine_checkpoint.get_external_models,
        'openmmlab': mmengine_checkpoint.get_external_models,
    }.get(scheme, mmengine_checkpoint.get_torchvision_models)()
    name = mmengine_checkpoint.get_deprecated_model_names().get(name, name)
    if name not in urls:
        raise MissingCheckpointError(f'checkpoint {filename}: MMEngine knows no {name}')
    url = urls[name]
    if '://' not in url:
        url = os.path.join(mmengine_checkpoint._get_mmengine_home(), url)
    checkpoint = CheckpointLoader.load_checkpoint(url, map_location)
    if scheme == 'mmcls':  # of classifiers, the backbone
        checkpoint = mmengine_checkpoint._process_mmcls_checkpoint(checkpoint)
    return checkpoint


def _load(
    filename: str,
    file: str | os.PathLike | BinaryIO,
    map_location: str | None,
    allowed: Sequence[type] = (),
) -> dict:
    if filename.endswith('.safetensors'):
        try:
            from safetensors.torch import load_file
        except ImportError:
            raise CheckpointError(
                f'checkpoint {filename} needs safetensors: pip install safetensors'
            ) from None
        with _refusing(filename):
            return load_file(file, str(map_location or 'cpu'))
    with _refusing(filename):
        checkpoint = load_weights(file, map_location, allowed)
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
