"""Directories on a POSIX store, and which shards are in them. Blocking; knows no frames.

Needed of a store: append, read at an offset, fsync, listing; truncate only to cut off a torn
tail. No rename, lock or mmap. Any thread may read; one thread at a time appends to a shard.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from cedanafs.errors import CheckpointIncomplete, StoreError
from cedanafs.shard.asking import asking
from cedanafs.shard.at_once import on_each
from cedanafs.shard.filesystems import S3FS, filesystem_of, require_sound
from cedanafs.shard.local import LocalShard, flock, store_errors, sync_directory
from cedanafs.shard.row import Row
from cedanafs.shard.segments import segment_name, segment_of

_renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)  # nor is this
if _renameat2 is not None:
    _renameat2.argtypes = (
        ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint,
    )  # fmt: skip
_AT_FDCWD: Final = -100
_RENAME_EXCHANGE: Final = 2


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
        """The names of the directories in it, and of all else; a shard's segments are one."""
        directories, others = self._entries()
        return sorted(directories), sorted({segment_of(name)[0] for name in others})

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

    def create_shards(self, names: Sequence[str], buffer_bytes: int) -> list[LocalShard | Row]:
        """New, empty shards, and their names durable. All of them or none."""
        kind = Row if _sends_whole_files(self.path) else LocalShard
        made: list[LocalShard | Row] = []

        def create(name: str) -> LocalShard | Row:
            shard = kind.create(self.path / name)
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
    ) -> list[LocalShard | Row]:
        """The shards. Raises: CorruptShard when one is no regular file, CheckpointIncomplete when
        a segment is missing.
        """
        made: list[LocalShard | Row] = []
        numbers = self._segments()
        in_row = writable and _sends_whole_files(self.path)

        def open_one(name: str) -> LocalShard | Row:
            count = self._count(name, numbers.get(name, {0}))
            shard = (
                Row.open(self.path / name, count)
                if in_row or count > 1
                else LocalShard.open(self.path / name, writable=writable)
            )
            made.append(shard)
            return shard

        try:
            return on_each(open_one, names)
        except BaseException:
            for shard in made:
                shard.close()
            raise

    def remove_files(self, names: Sequence[str]) -> None:
        """Remove the files *names*, a shard's segments with it; what is not there is no error."""
        numbers = self._segments()
        with store_errors("remove the shards of", self.path):
            for name in names:
                for number in sorted(numbers.get(name, {0}), reverse=True):
                    (self.path / segment_name(name, number)).unlink(missing_ok=True)

    def sync(self) -> None:
        """Make the names in it durable; a store that cannot (EINVAL) has nothing to sync."""
        sync_directory(self.path)

    @contextlib.contextmanager
    def locked(self, why: str) -> Iterator[None]:
        """Hold it for writing against other servers on this machine.

        Raises: StoreBusy with *why* when another holds it.
        """
        with store_errors("open", self.path):
            fd = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            flock(fd, self.path, why)
            yield
        finally:
            os.close(fd)

    def lock_path(self) -> Path:
        """What is locked for that."""
        return self.path

    def _entries(self) -> tuple[list[str], list[str]]:
        directories: list[str] = []
        others: list[str] = []
        with store_errors("list", self.path), os.scandir(self.path) as entries:
            for entry in entries:
                inner = entry.is_dir(follow_symlinks=False)
                (directories if inner else others).append(entry.name)
        return directories, others

    def _segments(self) -> dict[str, set[int]]:
        """By name of what is there, which numbers its segments have."""
        found: dict[str, set[int]] = {}
        for name, number in map(segment_of, self._entries()[1]):
            found.setdefault(name, set()).add(number)
        return found

    def _count(self, name: str, numbers: set[int]) -> int:
        """How many segments a shard has. Raises: CheckpointIncomplete."""
        missing = next((n for n in range(max(numbers)) if n not in numbers), None)
        if missing is not None:
            raise CheckpointIncomplete(
                f"{self.path}: {segment_name(name, missing)} is missing: bring it back"
            )
        return len(numbers)


def _sends_whole_files(path: Path) -> bool:
    """Whether what is on *path* sends a file as a whole each time that it is synced."""
    return filesystem_of(path).kind == S3FS
