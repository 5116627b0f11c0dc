"""Shard files on a local disk."""

import ctypes
import errno
import fcntl
import os
import struct
from pathlib import Path

import pytest

from cedanafs.errors import StoreError
from cedanafs.shard.directory import LocalDirectory
from cedanafs.shard.local import LocalShard

MIB = 1 << 20
CACHESTAT = 451  # Linux 6.5


def dirty_pages(path: Path) -> int:
    """Pages of *path* that the disk was not yet told to write."""
    fd = os.open(path, os.O_RDONLY)
    try:
        counts = ctypes.create_string_buffer(40)
        everything = struct.pack("QQ", 0, 0)
        failed = ctypes.CDLL(None).syscall(CACHESTAT, fd, everything, counts, 0)
        assert not failed, "the test wants Linux 6.5 or later"
        return struct.unpack_from("QQ", counts)[1]
    finally:
        os.close(fd)


def test_the_disk_begins_before_it_is_asked_to_end(tmp_path: Path) -> None:
    path = tmp_path / "img-0"
    shard = LocalShard.create(path)
    data = os.urandom(MIB)
    shard.write_at(0, [data])
    assert dirty_pages(path) == 256
    for number in range(1, 20):
        shard.write_at(number * MIB, [data])
    assert 0 < dirty_pages(path) <= 8 * 256
    shard.truncate(MIB // 2)
    for number in range(20):
        shard.write_at(MIB // 2 + number * MIB, [data])
    assert 0 < dirty_pages(path) <= 8 * 256
    shard.sync()
    assert dirty_pages(path) == 0
    shard.close()
    assert path.read_bytes() == data[: MIB // 2] + 20 * data


def test_where_there_are_no_locks_none_is_needed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", refused)
    shard = LocalShard.create(tmp_path / "img-0")
    code = errno.ENOLCK  # NFS without its lock server
    shard.lock()
    with LocalDirectory(tmp_path).locked("busy"):
        pass
    code = errno.EIO
    with pytest.raises(StoreError, match="cannot lock"):
        shard.lock()
    shard.close()
