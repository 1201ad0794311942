# Copyright (c) mmpsvit contributors.
"""Writes files so that, whenever the process is killed, they are whole or absent."""

import os
from pathlib import Path

from mmengine.fileio import LocalBackend, register_backend

_TEMPORARY = '.{}.tmp'


@register_backend('mmpsvit.atomic')
class AtomicBackend(LocalBackend):
    """MMEngine's backend of local files, which renames what it has written in full."""

    def put(self, obj: bytes, filepath: str | os.PathLike) -> None:
        """Write bytes to a file, which then survives a power failure too."""
        path = Path(filepath)
        path.parent.mkdir(parents=True, exist_ok=True)
        # The name is fixed: the next process reuses what a killed one left.
        temporary = path.with_name(_TEMPORARY.format(path.name))
        with open(temporary, 'wb') as file:
            file.write(obj)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _sync_folder(path.parent)

    def put_text(
        self, obj: str, filepath: str | os.PathLike, encoding: str = 'utf-8'
    ) -> None:
        """Write a text to a file, see :meth:`put`."""
        self.put(obj.encode(encoding), filepath)


def remove_leftovers(folder: str | os.PathLike, names: str) -> None:
    """Remove what a killed process left of files that it was writing.

    Args:
        folder (str | os.PathLike): Folder of the files.
        names (str): Their names, as a glob pattern.
    """
    for path in Path(folder).glob(_TEMPORARY.format(names)):
        path.unlink()


def _sync_folder(folder: Path) -> None:
    """Make a rename durable; where folders cannot be opened (Windows), leave it."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
