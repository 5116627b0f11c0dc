"""Shard files on a POSIX directory: the only file that opens an img-k. Blocking; knows no frames.

Needed of a store: append, read at an offset, fsync, listing; truncate only to cut off a torn
tail. No rename, lock or mmap. Any thread may read; one thread at a time appends to a shard.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from cedanafs.errors import (
    CheckpointIncomplete,
    CheckpointMissing,
    CorruptShard,
    MixedShards,
    StoreBusy,
    StoreError,
)
from cedanafs.shard.codec import EXTENSIONS, Bytes, Codec
from cedanafs.shard.format import MAX_SHARDS

MAX_OFFSET: Final = 1 << 62
"""No file reaches it, and not every number of a shard can be an offset for the kernel."""

PAGES_NAME: Final = ".cedanafs-pages"
"""What may lie beside the shards and can be made again, see `pages`."""

_SHARD_NAME: Final = re.compile(r"img-(0|[1-9][0-9]{0,2})(\.[a-z0-9]+)?")


def is_shard_name(name: str) -> bool:
    """Whether *name* is what a shard file is called: `img-3`, `img-3.zst`, …"""
    match = _SHARD_NAME.fullmatch(name)
    return match is not None and (match[2] or "") in EXTENSIONS


class ShardFile:
    """One img-k. Every failure comes as StoreError that names the file and keeps the errno."""

    def __init__(self, path: Path, fd: int) -> None:
        self.path = path
        self._fd = fd

    @classmethod
    def create(cls, path: Path) -> ShardFile:
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
        with _store_errors("create", path):
            try:
                return cls(path, os.open(path, flags, 0o600))
            except FileExistsError:
                raise
            except OSError:  # a network filesystem may fail behind it: then it is there
                with contextlib.suppress(OSError):
                    path.unlink()
                raise

    @classmethod
    def open(cls, path: Path, *, writable: bool = False) -> ShardFile:
        # Without O_NONBLOCK a FIFO of that name would be waited for.
        flags = os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
        with _store_errors("open", path):
            fd = os.open(path, flags | (os.O_RDWR if writable else os.O_RDONLY))
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)
            raise CorruptShard(f"{path} is not a regular file")
        return cls(path, fd)

    @property
    def name(self) -> str:
        return self.path.name

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

    def sync(self) -> None:
        with _store_errors("fsync", self.path):
            os.fdatasync(self._fd)

    def truncate(self, length: int) -> None:
        with _store_errors("truncate", self.path):
            os.ftruncate(self._fd, length)

    def lock_shared(self) -> None:
        """Keep whoever writes or removes it out, until it is closed. Raises: StoreBusy."""
        _flock(self._fd, self.path, "is being written just now: no base yet", fcntl.LOCK_SH)

    def lock(self) -> None:
        """Keep other writers on this machine out, until it is closed. Raises: StoreBusy."""
        _flock(self._fd, self.path, "another server is writing to this checkpoint")

    def close(self) -> None:
        with _store_errors("close", self.path):
            fd, self._fd = self._fd, -1
            if fd >= 0:
                os.close(fd)


def create_shards(directory: Path, count: int, codec: Codec) -> list[ShardFile]:
    """N new, empty shards, and their names durable in *directory*. All of them or none."""
    made: list[ShardFile] = []
    try:
        for k in range(count):
            made.append(ShardFile.create(directory / f"img-{k}{codec.extension}"))
        sync_directory(directory)
    except BaseException:
        for shard in made:
            with contextlib.suppress(StoreError):
                shard.close()
            with contextlib.suppress(OSError):
                shard.path.unlink()
        raise
    return made


def shard_paths(directory: Path) -> list[Path]:
    """The shard files in *directory*, in order of k; empty where there is no checkpoint.

    Raises: CheckpointIncomplete (a shard between others is missing), MixedShards (two
    extensions), StoreError.
    """
    found: dict[int, list[Path]] = {}
    with _store_errors("list", directory), os.scandir(directory) as entries:
        for entry in entries:
            if is_shard_name(entry.name) and not entry.is_dir(follow_symlinks=False):
                k = int(_SHARD_NAME.fullmatch(entry.name)[1])  # type: ignore[index]
                found.setdefault(k, []).append(directory / entry.name)
    if not found:
        return []
    paths = [path for k in sorted(found) for path in found[k]]
    suffixes = {path.suffix for path in paths}
    if len(suffixes) > 1 or len(paths) != len(found):
        raise MixedShards(
            f"{directory}: shards of two checkpoints lie together: "
            + ", ".join(path.name for path in paths)
        )
    top = max(found)
    if top >= MAX_SHARDS:
        raise MixedShards(f"{directory}: {found[top][0].name} is no shard, {MAX_SHARDS} is most")
    missing = [k for k in range(top) if k not in found]
    if missing:
        suffix = suffixes.pop()
        names = ", ".join(f"img-{k}{suffix}" for k in missing)
        raise CheckpointIncomplete(f"{directory}: {names} missing: bring all shards together")
    return paths


def require_shards(directory: Path) -> list[Path]:
    """Like `shard_paths`. Raises: CheckpointMissing where there is none."""
    if not directory.is_dir():
        raise CheckpointMissing(f"{directory}: no such directory")
    paths = shard_paths(directory)
    if not paths:
        raise CheckpointMissing(f"{directory}: no checkpoint here (no img-0 file)")
    return paths


def remove_shards(directory: Path) -> None:
    """Remove every shard file of *directory*, whatever state they are in."""
    with _store_errors("remove the shards of", directory):
        (directory / PAGES_NAME).unlink(missing_ok=True)
        for name in sorted(os.listdir(directory)):
            if is_shard_name(name):
                os.unlink(directory / name)


def sync_shards(directory: Path) -> None:
    """Make every shard file of *directory*, as it is, and their names durable."""
    with _store_errors("list", directory):
        names = sorted(filter(is_shard_name, os.listdir(directory)))
    for name in names:
        file = ShardFile.open(directory / name)
        try:
            file.sync()
        finally:
            file.close()
    sync_directory(directory)


def sync_directory(directory: Path) -> None:
    """Make the names in *directory* durable; a store that cannot (EINVAL) has nothing to sync."""
    with _store_errors("fsync", directory):
        fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        except OSError as exc:
            if exc.errno not in (errno.EINVAL, errno.ENOTSUP):
                raise
        finally:
            os.close(fd)


@contextlib.contextmanager
def locked(directory: Path, why: str) -> Iterator[None]:
    """Hold *directory* for writing against other servers on this machine.

    Raises: StoreBusy with *why* when another holds it.
    """
    with _store_errors("open", directory):
        fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        _flock(fd, directory, why)
        yield
    finally:
        os.close(fd)


def _flock(fd: int, path: Path, why: str, kind: int = fcntl.LOCK_EX) -> None:
    try:
        fcntl.flock(fd, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        raise StoreBusy(f"{path}: {why}") from None
    except OSError as exc:
        raise StoreError(f"{path}: cannot lock: {exc.strerror}", os_errno=exc.errno) from exc


@contextlib.contextmanager
def _store_errors(what: str, path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as exc:
        raise StoreError(f"cannot {what} {path}: {exc.strerror}", os_errno=exc.errno) from exc
