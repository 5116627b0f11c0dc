"""Shards on a POSIX directory: the only file that opens an img-k there. Blocking; knows no frames.

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
from cedanafs.shard.at_once import on_each
from cedanafs.shard.codec import Bytes
from cedanafs.shard.filesystems import (
    SCRATCH_MARGIN,
    filesystem_of,
    require_sound,
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

_renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)  # nor is this
if _renameat2 is not None:
    _renameat2.argtypes = (
        ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint,
    )  # fmt: skip
_AT_FDCWD: Final = -100
_RENAME_EXCHANGE: Final = 2


class LocalShard:
    """One img-k. Every failure comes as StoreError that names the file and keeps the errno."""

    atomic: Final = False

    def __init__(self, path: Path, fd: int, *, writable: bool = False) -> None:
        self.path = path
        self.checkpoint: UUID | None = None
        self._fd = fd
        self._scratch = scratch_of(filesystem_of(path)) if writable else None
        self._begun = 0  # before it the disk was told to begin

    @classmethod
    def create(cls, path: Path) -> LocalShard:
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
        with _store_errors("create", path):
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
        with _store_errors("open", path):
            fd = os.open(path, flags | (os.O_RDWR if writable else os.O_RDONLY))
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)
            raise CorruptShard(f"{path} is not a regular file")
        return cls(path, fd, writable=writable)

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def whole(self) -> bool:
        return self._scratch is not None

    def length(self) -> int:
        with _store_errors("stat", self.path):
            return os.fstat(self._fd).st_size

    def read_at(self, offset: int, length: int) -> bytes:
        """Exactly *length* bytes. Raises: CorruptShard when the file ends before."""
        data = b""
        with _store_errors("read", self.path):
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
        with _store_errors("read", self.path):
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
        with _store_errors("write", self.path):
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
        with _store_errors("fsync", self.path):
            os.fdatasync(self._fd)

    def truncate(self, length: int) -> None:
        with _store_errors("truncate", self.path):
            os.ftruncate(self._fd, length)
        self._begun = min(self._begun, length)

    def lock_shared(self) -> None:
        """Keep whoever writes or removes it out, until it is closed. Raises: StoreBusy."""
        _flock(self._fd, self.path, "is being written just now: no base yet", fcntl.LOCK_SH)
        self._require_there()

    def lock(self) -> None:
        """Keep other writers on this machine out, until it is closed. Raises: StoreBusy."""
        _flock(self._fd, self.path, "another server is writing to this checkpoint")
        self._require_there()

    def _require_there(self) -> None:
        """Who had the lock before may have put another file in its place."""
        with _store_errors("stat", self.path):
            if os.fstat(self._fd).st_nlink == 0:
                raise StoreBusy(f"{self.path}: was removed or replaced just now: try again")

    def close(self) -> None:
        with _store_errors("close", self.path):
            fd, self._fd = self._fd, -1
            if fd >= 0:
                os.close(fd)


class LocalDirectory:
    """A directory of a store."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def check(self, *, writable: bool) -> None:
        """Raises: StoreError when it is no store that can be read, or written if *writable*."""
        with asking(f"look at {self.path}"):
            require_sound(self.path, writable=writable)
        if not self.path.is_dir():
            raise StoreError(f"store {self.path} is not a directory: mkdir -m 700 makes one")
        wanted = os.R_OK | os.X_OK | (os.W_OK if writable else 0)
        read_only = os.statvfs(self.path).f_flag & os.ST_RDONLY
        if not os.access(self.path, wanted) or (read_only and writable):
            what = "write" if writable else "read"
            raise StoreError(
                f"store {self.path}: no permission to {what}; --read-only mounts it to read"
            )

    def space(self) -> os.statvfs_result:
        return os.statvfs(self.path)

    def exists(self) -> bool:
        with asking(f"look at {self.path}"):
            return self.path.is_dir()

    def entries(self) -> tuple[list[str], list[str]]:
        """The names of the directories in it, and of all else, each sorted."""
        directories: list[str] = []
        others: list[str] = []
        with _store_errors("list", self.path), os.scandir(self.path) as entries:
            for entry in entries:
                inner = entry.is_dir(follow_symlinks=False)
                (directories if inner else others).append(entry.name)
        return sorted(directories), sorted(others)

    def walk(self) -> Iterator[tuple[Path, list[str]]]:
        """Itself and each directory below, by path, with the names of what else is in it."""
        left = [self.path]
        while left:  # os.walk calls itself for each level, which may be thousands
            directory = left.pop()
            directories, others = LocalDirectory(directory).entries()
            yield directory, others
            left += [directory / name for name in reversed(directories)]

    def make(self) -> None:
        """Make it. Raises: OSError, FileExistsError among them."""
        with asking(f"make {self.path}"):
            self.path.mkdir(mode=0o700)

    def remove(self) -> None:
        """Remove it, which is empty. Raises: OSError."""
        self.path.rmdir()

    def rename(self, new: Path) -> None:
        """Give it the path *new*, durably. Raises: OSError."""
        os.rename(self.path, new)
        LocalDirectory(new.parent).sync()

    def exchange(self, other: Path) -> None:
        """Give it the path *other*, and what is there its own, at once and durably.

        Raises: OSError; EINVAL or ENOSYS where the filesystem cannot.
        """
        if _renameat2 is None:
            raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS), str(self.path))
        if _renameat2(
            _AT_FDCWD, os.fsencode(self.path), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE
        ):
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), str(self.path))
        LocalDirectory(self.path.parent).sync()

    def create_shards(self, names: Sequence[str], buffer_bytes: int) -> list[LocalShard]:
        """New, empty shards, and their names durable. All of them or none."""
        made: list[LocalShard] = []

        def create(name: str) -> LocalShard:
            shard = LocalShard.create(self.path / name)
            made.append(shard)
            return shard

        try:
            created = on_each(create, names)
            self.sync()
        except BaseException:
            for shard in made:
                with contextlib.suppress(StoreError):
                    shard.close()
                with contextlib.suppress(OSError):
                    shard.path.unlink()
            raise
        return created

    def open_shards(
        self, names: Sequence[str], *, writable: bool = False, buffer_bytes: int = 0
    ) -> list[LocalShard]:
        """The shards. Raises: CorruptShard when one is no regular file."""
        made: list[LocalShard] = []

        def open_one(name: str) -> LocalShard:
            shard = LocalShard.open(self.path / name, writable=writable)
            made.append(shard)
            return shard

        try:
            return on_each(open_one, names)
        except BaseException:
            for shard in made:
                shard.close()
            raise

    def remove_files(self, names: Sequence[str]) -> None:
        """Remove the files *names*; those that are not there are no error."""
        with _store_errors("remove the shards of", self.path):
            for name in names:
                (self.path / name).unlink(missing_ok=True)

    def sync(self) -> None:
        """Make the names in it durable; a store that cannot (EINVAL) has nothing to sync."""
        with _store_errors("fsync", self.path):
            fd = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                os.fsync(fd)
            except OSError as exc:
                if exc.errno not in (errno.EINVAL, errno.ENOTSUP):
                    raise
            finally:
                os.close(fd)

    @contextlib.contextmanager
    def locked(self, why: str) -> Iterator[None]:
        """Hold it for writing against other servers on this machine.

        Raises: StoreBusy with *why* when another holds it.
        """
        with _store_errors("open", self.path):
            fd = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            _flock(fd, self.path, why)
            yield
        finally:
            os.close(fd)

    def lock_path(self) -> Path:
        """What is locked for that."""
        return self.path


def _flock(fd: int, path: Path, why: str, kind: int = fcntl.LOCK_EX) -> None:
    try:
        fcntl.flock(fd, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        raise StoreBusy(f"{path}: {why}") from None
    except OSError as exc:
        if exc.errno not in _NO_LOCKS:
            raise StoreError(f"{path}: cannot lock: {exc.strerror}", os_errno=exc.errno) from exc
        logger.info("%s: its store has no locks (%s): nobody is kept out", path, exc.strerror)


@contextlib.contextmanager
def _store_errors(what: str, path: Path) -> Iterator[None]:
    try:
        with asking(f"{what} {path}"):
            yield
    except OSError as exc:
        raise StoreError(f"cannot {what} {path}: {exc.strerror}", os_errno=exc.errno) from exc
