"""What an earlier server left: durable when a later one says so."""

import errno
import os

import pytest
from fault import Fault
from faulty import FaultyStore
from host import Host


def test_fsync_of_what_was_found(host: Host, faulty: FaultyStore) -> None:
    """Its server may have been killed between the last write and the last fsync."""
    with host.mounted(faulty.path) as mnt:
        (mnt / "x").mkdir()
        (mnt / "x" / "a.img").write_bytes(b"bytes")
    with host.mounted(faulty.path) as mnt:
        fd = os.open(mnt / "x", os.O_RDONLY | os.O_DIRECTORY)
        try:
            faulty.fail(Fault("fsync", error=errno.EIO, where="/x/img-2"))
            with pytest.raises(OSError, match="Input/output error"):
                os.fsync(fd)
            faulty.heal()
            os.fsync(fd)
        finally:
            os.close(fd)
