# Copyright (c) mmpsvit contributors.
"""Files that are whole or absent; being killed is in test_exact_checkpoint_hook.py."""

import os

from mmpsvit.engine.atomic_backend import AtomicBackend


def test_atomic_backend(tmp_path):
    backend = AtomicBackend()
    backend.put_text('Grüße', tmp_path / 'new' / 'file')
    backend.put(b'more', tmp_path / 'new' / 'file')
    assert (tmp_path / 'new' / 'file').read_bytes() == b'more'
    assert os.listdir(tmp_path / 'new') == ['file']
