"""A file of a shard on a POSIX store: nothing else opens one there. Blocking; knows no frames.

Needed of a store: append, read at an offset, fsync, listing; truncate only to cut off a torn
tail. No rename, lock or mmap. Any thread may read; one thread at a time appends to a shard.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import logging
import mmap
import os
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final
from uuid import UUID

from cedanafs.errors import CorruptShard, StoreBusy, StoreError
from cedanafs.shard.asking import asking
from cedanafs.shard.codec import Bytes
from cedanafs.shard.filesystems import (
    SCRATCH_MARGIN,
    filesystem_of,
    room_in,
    scratch_of,
)

logger = logging.getLogger(__name__)

_NO_LOCKS: Final = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
"""NFS without its lock server, and filesystems that know none: nothing else needs them."""

MAX_OFFSET: Final = 1 << 62
"""No file reaches it, and not every number of a shard can be an offset for the kernel."""

WRITE_BEHIND_BYTES: Final = 8 << 20
"""After as many bytes the disk is told to begin with them; a commit then finds little left to do.

In a dump of 1000 MiB the commit took 0.02 s instead of 0.2 s, and the dump itself no longer.
"""

_sync_file_range = getattr(ctypes.CDLL(None), "sync_file_range", None)  # not in every libc
if _sync_file_range is not None:
    _sync_file_range.argtypes = (ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)
_SYNC_FILE_RANGE_WRITE: Final = 2


class LocalShard:
    """One img-k. Every failure comes as StoreError that names the file and keeps the errno."""

    atomic: Final = False
    whole: Final = False

    def __init__(self, path: Path, fd: int, *, writable: bool = False) -> None:
        self.path = path
        self.checkpoint: UUID | None = None
        self._fd = fd
        self._scratch = scratch_of(filesystem_of(path)) if writable else None
        self._begun = 0  # before it the disk was told to begin

    @classmethod
    def create(cls, path: Path) -> LocalShard:
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
        with store_errors("create", path):
            try:
                return cls(path, os.open(path, flags, 0o600), writable=True)
            except FileExistsError:
                raise
            except OSError:  # a network filesystem may fail behind it: then it is there
                with contextlib.suppress(OSError):
                    path.unlink()
                raise

    @classmethod
    def open(cls, path: Path, *, writable: bool = False) -> LocalShard:
        # Without O_NONBLOCK a FIFO of that name would be waited for.
        flags = os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
        with store_errors("open", path):
            fd = os.open(path, flags | (os.O_RDWR if writable else os.O_RDONLY))
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)
            raise CorruptShard(f"{path} is not a regular file")
        return cls(path, fd, writable=writable)

    @property
    def name(self) -> str:
        return self.path.name

    def length(self) -> int:
        with store_errors("stat", self.path):
            return os.fstat(self._fd).st_size

    def read_at(self, offset: int, length: int) -> bytes:
        """Exactly *length* bytes. Raises: CorruptShard when the file ends before."""
        data = b""
        with store_errors("read", self.path):
            while len(data) < length and offset + len(data) < MAX_OFFSET:
                more = os.pread(self._fd, length - len(data), offset + len(data))
                if not more:
                    break
                data = data + more if data else more
        if len(data) != length:
            raise CorruptShard(
                f"{self.name} at offset {offset}: {length} bytes wanted, the file ends "
                f"after {len(data)}: it was cut short"
            )
        return data

    def next_data(self, offset: int) -> int:
        """Where from *offset* on something was written: zeros of a hole take no time to skip.

        The file's length, where nothing was.
        """
        with store_errors("read", self.path):
            try:
                return os.lseek(self._fd, offset, os.SEEK_DATA)
            except OSError as exc:
                if exc.errno == errno.ENXIO:  # behind the last of it
                    return max(os.fstat(self._fd).st_size, offset)
                if exc.errno == errno.EINVAL:  # a store that knows no holes
                    return offset
                raise

    def write_at(self, offset: int, buffers: Sequence[Bytes]) -> None:
        """All of *buffers* one after the other from *offset*, short writes continued."""
        with store_errors("write", self.path):
            self._require_room(sum(map(len, buffers)))
            left = [memoryview(b) for b in buffers]
            while left:
                done = os.pwritev(self._fd, left, offset)
                if done == 0:
                    raise OSError(errno.EIO, "write took no bytes")
                offset += done
                while left and done >= len(left[0]):
                    done -= len(left.pop(0))
                if done:
                    left[0] = left[0][done:]
        self._write_behind(offset)

    def _require_room(self, length: int) -> None:
        """Where s3fs keeps what is written: full, it would hang for ever. Raises: StoreError."""
        if self._scratch is not None and room_in(self._scratch) < length + SCRATCH_MARGIN:
            raise StoreError(
                f"cannot write {self.path}: {self._scratch} is full, where s3fs keeps what it has "
                "not uploaded: mount it with -o tmpdir=DIRECTORY on a larger disk",
                os_errno=errno.ENOSPC,
            )

    def _write_behind(self, end: int) -> None:
        """Waits for nothing; what the disk fails at then, `sync` reports."""
        end -= end % mmap.PAGESIZE  # the last page will be written to once more
        if end - self._begun >= WRITE_BEHIND_BYTES and _sync_file_range is not None:
            _sync_file_range(self._fd, self._begun, end - self._begun, _SYNC_FILE_RANGE_WRITE)
            self._begun = end

    def sync(self) -> None:
        with store_errors("fsync", self.path):
            os.fdatasync(self._fd)

    def truncate(self, length: int) -> None:
        with store_errors("truncate", self.path):
            os.ftruncate(self._fd, length)
        self._begun = min(self._begun, length)

    def lock_shared(self) -> None:
        """Keep whoever writes or removes it out, until it is closed. Raises: StoreBusy."""
        flock(self._fd, self.path, "is being written just now: no base yet", fcntl.LOCK_SH)
        self._require_there()

    def lock(self) -> None:
        """Keep other writers on this machine out, until it is closed. Raises: StoreBusy."""
        flock(self._fd, self.path, "another server is writing to this checkpoint")
        self._require_there()

    def _require_there(self) -> None:
        """Who had the lock before may have put another file in its place."""
        with store_errors("stat", self.path):
            if os.fstat(self._fd).st_nlink == 0:
                raise StoreBusy(f"{self.path}: was removed or replaced just now: try again")

    def close(self) -> None:
        with store_errors("close", self.path):
            fd, self._fd = self._fd, -1
            if fd >= 0:
                os.close(fd)

    def __del__(self) -> None:
        with contextlib.suppress(StoreError):
            self.close()


def sync_directory(path: Path) -> None:
    """Make the names in *path* durable; a store that cannot (EINVAL) has nothing to sync."""
    with store_errors("fsync", path):
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        except OSError as exc:
            if exc.errno not in (errno.EINVAL, errno.ENOTSUP):
                raise
        finally:
            os.close(fd)


def flock(fd: int, path: Path, why: str, kind: int = fcntl.LOCK_EX) -> None:
    """Lock what is open as *fd*. Raises: StoreBusy with *why* when another holds it, StoreError."""
    try:
        fcntl.flock(fd, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        raise StoreBusy(f"{path}: {why}") from None
    except OSError as exc:
        if exc.errno not in _NO_LOCKS:
            raise StoreError(f"{path}: cannot lock: {exc.strerror}", os_errno=exc.errno) from exc
        logger.info("%s: its store has no locks (%s): nobody is kept out", path, exc.strerror)


@contextlib.contextmanager
def store_errors(what: str, path: Path) -> Iterator[None]:
    """Around what asks the store to *what* (a verb) *path*. Raises: StoreError for OSError."""
    try:
        with asking(f"{what} {path}"):
            yield
    except OSError as exc:
        raise StoreError(f"cannot {what} {path}: {exc.strerror}", os_errno=exc.errno) from exc
