# Copyright (c) mmpsvit contributors.
"""Files are whole or absent, whatever happens while they are written."""

import errno
import os
import stat

import pytest

from mmpsvit.guard.files import AtomicBackend, remove_leftovers, write_atomically


def test_file_is_written(tmp_path):
    backend = AtomicBackend()
    backend.put(b'weights', tmp_path / 'new' / 'a.pth')
    backend.put_text('text', tmp_path / 'new' / 'last_checkpoint')

    assert (tmp_path / 'new' / 'a.pth').read_bytes() == b'weights'
    assert (tmp_path / 'new' / 'last_checkpoint').read_text() == 'text'
    assert len(list((tmp_path / 'new').iterdir())) == 2


def test_full_disk_is_named(tmp_path, monkeypatch):
    def fail(*args):
        raise OSError(errno.ENOSPC, 'no space')

    monkeypatch.setattr(os, 'fsync', fail)
    with pytest.raises(OSError, match=r'no space: .*a\.pth'):
        AtomicBackend().put(b'weights', tmp_path / 'a.pth')
    assert not list(tmp_path.iterdir())


def test_folders_that_cannot_be_written_through(tmp_path, monkeypatch):
    """On some network drives."""

    def fail(handle: int) -> None:
        if stat.S_ISDIR(os.fstat(handle).st_mode):
            raise OSError(errno.EINVAL, 'invalid argument')

    monkeypatch.setattr(os, 'fsync', fail)
    AtomicBackend().put(b'weights', tmp_path / 'a.pth')
    assert (tmp_path / 'a.pth').read_bytes() == b'weights'


def test_modes_are_those_of_other_files(tmp_path):
    AtomicBackend().put(b'weights', tmp_path / 'a.pth')
    (tmp_path / 'b.pth').write_bytes(b'weights')

    assert (tmp_path / 'a.pth').stat().st_mode == (tmp_path / 'b.pth').stat().st_mode


@pytest.mark.parametrize('fault', [OSError(errno.ENOSPC, 'disk'), KeyboardInterrupt()])
def test_failure_keeps_the_old_file_and_leaves_nothing(tmp_path, fault):
    target = tmp_path / 'picture.png'
    target.write_bytes(b'old')

    with pytest.raises(type(fault)), write_atomically(target) as temporary:
        assert temporary.suffix == '.png'
        temporary.write_bytes(b'ha')
        raise fault

    assert target.read_bytes() == b'old'
    assert list(tmp_path.iterdir()) == [target]


def test_two_writers_do_not_meet(tmp_path):
    target = tmp_path / 'last_checkpoint'
    with write_atomically(target) as first:
        first.write_text('first')
        with write_atomically(target) as second:
            second.write_text('second')
        assert target.read_text() == 'second'

    assert target.read_text() == 'first'


def test_content_reaches_the_disk_before_the_name(tmp_path, monkeypatch):
    done = []

    def record(name: str) -> None:
        call = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *args: done.append(name) or call(*args))

    record('fsync')
    record('replace')
    AtomicBackend().put(b'weights', tmp_path / 'a.pth')

    # The file, its name, the folder that has the name.
    assert done == ['fsync', 'replace', 'fsync']


def test_leftovers_go_unless_somebody_may_write_them(tmp_path):
    with pytest.raises(RuntimeError), write_atomically(tmp_path / 'a.pth') as old:
        raise RuntimeError
    with pytest.raises(RuntimeError), write_atomically(tmp_path / 'a.pth') as new:
        raise RuntimeError
    mine = [tmp_path / '.a.tmp', tmp_path / '.settings.tmp.py', tmp_path / 'a.pth']
    for path in (old, new, *mine):
        path.write_bytes(b'half')
    for path in (old, *mine):
        os.utime(path, (0, 0))

    remove_leftovers(tmp_path)

    assert set(tmp_path.iterdir()) == {new, *mine}
