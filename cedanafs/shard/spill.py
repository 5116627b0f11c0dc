"""Compressed frames that a slow store has not taken yet, in local files meanwhile. Blocking.

The files have no name, so that a crash leaves nothing of them, and nobody else can read them. A
full or failing directory is no failure: what it does not take stays in memory, and whoever writes
waits for the store.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import tempfile
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cedanafs.errors import StoreError, UsageError
from cedanafs.shard.codec import Bytes
from cedanafs.shard.format import checksum
from cedanafs.shard.local import LocalShard

logger = logging.getLogger("cedanafs.spill")  # `log.without_server` is about others: it is seen

FILE_BYTES: Final = 64 << 20
"""Most in one file: what its frames took comes back to the disk when the last of them is gone."""

LEFT_FREE_BYTES: Final = 16 << 20
"""Of the disk, for whoever else needs some."""


class _File:
    def __init__(self, directory: Path) -> None:
        with tempfile.TemporaryFile(dir=directory) as nameless:
            self.bytes = LocalShard(directory, os.dup(nameless.fileno()))
        self.end = 0
        self.frames = 0


@dataclass(frozen=True, slots=True)
class Spilled:
    """Some bytes in a spill's file."""

    spill: Spill
    file: _File
    at: int
    length: int
    digest: int

    def read(self) -> bytes:
        """Them. Raises: StoreError, CorruptShard."""
        data = self.file.bytes.read_at(self.at, self.length)
        if checksum(data) != self.digest:
            raise StoreError(f"--spill {self.spill.directory} gives back other bytes than it got")
        return data

    def give_back(self) -> None:
        """Their place; they are not read any more."""
        self.spill.give_back(self.file)


class Spill:
    """Files in *directory*. Use as a context manager. Raises: UsageError when it cannot be used."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._lock = threading.Lock()
        self._takes = True  # what was offered last
        self._files: set[_File] = set()
        try:
            self._newest = self._new_file()
        except OSError as exc:
            raise UsageError(
                f"--spill {directory}: cannot make a file in it: {exc.strerror}"
            ) from exc

    def __enter__(self) -> Spill:
        return self

    def __exit__(self, *_: object) -> None:
        for file in self._files:
            file.bytes.close()

    def put(self, buffers: Sequence[Bytes]) -> Spilled | None:
        """Take *buffers*, one after the other; None when there is no room for them."""
        length = sum(map(len, buffers))
        file = None
        try:
            with self._lock:
                file, at = self._place(length)
            file.bytes.write_at(at, buffers)
        except (OSError, StoreError) as exc:
            if file is not None:
                self.give_back(file)
            if self._takes:
                logger.warning(
                    "--spill %s takes no more, so dumps wait for the store: %s", self.directory, exc
                )
            self._takes = False
            return None
        self._takes = True
        return Spilled(self, file, at, length, checksum(*buffers))

    def give_back(self, file: _File) -> None:
        """Somebody has had a frame that is in *file*, or it never came to be there."""
        with self._lock, contextlib.suppress(StoreError):
            file.frames -= 1
            if file.frames == 0 and file is self._newest:
                file.end = 0
                file.bytes.truncate(0)
            elif file.frames == 0:
                self._files.remove(file)
                file.bytes.close()

    def _place(self, length: int) -> tuple[_File, int]:
        """Where *length* bytes may go. Raises: OSError."""
        space = os.statvfs(self.directory)
        if space.f_bavail * space.f_frsize < length + LEFT_FREE_BYTES:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        if self._newest.frames and self._newest.end + length > FILE_BYTES:
            self._newest = self._new_file()
        file, at = self._newest, self._newest.end
        file.end += length
        file.frames += 1
        return file, at

    def _new_file(self) -> _File:
        file = _File(self.directory)
        self._files.add(file)
        return file
