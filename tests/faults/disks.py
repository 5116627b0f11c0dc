"""Real disks, which fail as such do: ext4 in a file, to be aborted, cut off or frozen."""

from __future__ import annotations

import contextlib
import fcntl
import os
import struct
from collections.abc import Iterator
from typing import Final

from host import Host

_EXT4_IOC_SHUTDOWN: Final = 0x8004587D
_NO_LOG_FLUSH: Final = 2


class Disk:
    """An ext4 filesystem in a file of its own."""

    def __init__(self, host: Host, name: str, size_mib: int) -> None:
        self.path = host.make(name)
        self._host = host
        self._image = host.base / f"{name}.ext4"
        with self._image.open("wb") as image:
            image.truncate(size_mib << 20)
        host.stock("mkfs.ext4", "-q", "-F", self._image)

    def attach(self) -> None:
        self._host.stock("mount", "-o", "loop", self._image, self.path)

    def detach(self) -> None:
        self._host.stock("umount", self.path)

    def abort(self) -> None:
        """What the kernel does after an error of the disk's: read-only, whoever is writing."""
        self._host.stock("mount", "-o", "remount,abort", self.path)

    def cut_off(self) -> None:
        """The disk is gone: EIO for everybody, and what was not written is lost."""
        fd = os.open(self.path, os.O_RDONLY)
        try:
            fcntl.ioctl(fd, _EXT4_IOC_SHUTDOWN, struct.pack("I", _NO_LOG_FLUSH))
        finally:
            os.close(fd)

    @contextlib.contextmanager
    def frozen(self) -> Iterator[None]:
        """Whoever writes waits; only the end of the block lets go of it, not even a SIGKILL."""
        self._host.stock("fsfreeze", "-f", self.path)
        try:
            yield
        finally:
            self._host.stock("fsfreeze", "-u", self.path)


@contextlib.contextmanager
def ext4_disk(host: Host, name: str, *, size_mib: int) -> Iterator[Disk]:
    """One of *size_mib*, attached."""
    disk = Disk(host, name, size_mib)
    disk.attach()
    try:
        yield disk
    finally:
        host.stock("umount", "-l", disk.path)
