# Copyright (c) mmpsvit contributors.
"""Writes files so that, whenever the process ends, they are whole or absent."""

import contextlib
import os
import re
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

from mmengine.fileio import LocalBackend, register_backend

# Names of files that are being written: a killed process leaves them behind.
_TEMPORARY = re.compile(r'\..+\.[0-9a-f]{12}\.tmp(\..*)?')
# Nobody pauses for so long while it writes one file.
_SECONDS_TO_WRITE = 3600


@contextlib.contextmanager
def write_atomically(path: str | os.PathLike) -> Iterator[Path]:
    """Give a path to write to, whose file takes its place when it is written in full.

    The file survives a power failure then. Where the block fails, what it wrote is
    removed, and a file that was there before stays.

    Args:
        path (str | os.PathLike): Where the file is to be. Missing folders are made.

    Yields:
        Path: A path beside it with a name of its own and the same extension.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    token = uuid.uuid4().hex[:12]
    temporary = path.with_name(f'.{path.stem}.{token}.tmp{path.suffix}')
    try:
        yield temporary
        _sync(temporary, os.O_RDWR)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise
    # Makes the rename durable, where folders can be opened and written through: not on
    # Windows, nor on some network drives.
    with contextlib.suppress(OSError):
        _sync(path.parent, os.O_RDONLY)


@register_backend('mmpsvit.atomic')
class AtomicBackend(LocalBackend):
    """MMEngine's backend of local files, with :func:`write_atomically`."""

    def put(self, obj: bytes, filepath: str | os.PathLike) -> None:
        """Write bytes to a file."""
        try:
            with write_atomically(filepath) as temporary:
                temporary.write_bytes(obj)
        except OSError as error:
            error.filename = str(filepath)  # that of a full disk names none
            raise

    def put_text(
        self, obj: str, filepath: str | os.PathLike, encoding: str = 'utf-8'
    ) -> None:
        """Write a text to a file."""
        self.put(obj.encode(encoding), filepath)


def remove_leftovers(folder: str | os.PathLike) -> None:
    """Remove what killed processes left of files that they were writing.

    Args:
        folder (str | os.PathLike): Folder of the files. Temporary ones that somebody
            may still be writing stay.
    """
    latest = time.time() - _SECONDS_TO_WRITE
    for path in Path(folder).glob('.*.tmp*'):
        # Another process may be faster.
        with contextlib.suppress(FileNotFoundError):
            if _TEMPORARY.fullmatch(path.name) and path.stat().st_mtime < latest:
                path.unlink()


def _sync(path: Path, flags: int) -> None:
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
