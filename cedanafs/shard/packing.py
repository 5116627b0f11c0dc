"""Plain images in: a directory as CRIU has written it becomes a checkpoint. Blocking, no mount."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from cedanafs.errors import (
    CheckpointIncomplete,
    StoreError,
    UsageError,
)
from cedanafs.shard.audit import INVENTORY, Progress, verify
from cedanafs.shard.checkpoint import Checkpoint
from cedanafs.shard.codec import Codec
from cedanafs.shard.contents import is_image_name, is_link_target
from cedanafs.shard.lanes import Lanes
from cedanafs.shard.log import Log
from cedanafs.shard.place import Place
from cedanafs.shard.segments import is_shard_name
from cedanafs.shard.store import directory_at, remove_shards, require_there

_PIECE_BYTES: Final = 1 << 20


def pack(
    source: Path,
    directory: Place,
    *,
    shards: int,
    codec: Codec,
    budget_bytes: int,
    upload_bytes: int = 0,
    progress: Progress = lambda _: None,
) -> int:
    """Write the images in *source* into *directory*, a new checkpoint; returns how many.

    Bytes, holes, links, modes, owners and times are kept. When this returns the checkpoint is
    durable, and every byte of it was read back; when it raises, nothing of it is left.
    *budget_bytes* bounds what is read and not yet written.
    Raises: UsageError, CheckpointMissing and CheckpointIncomplete about what *source* is no dump
    for, StoreError, also when the store does not give back what it was given.
    """
    names = _names(source)
    with new_directory(directory):
        with (
            new_log(directory, shards, codec, budget_bytes, upload_bytes) as sink,
            _reading(source) as root,
        ):
            for name in names:
                _take(root, name, sink, progress)
        require_as_written(directory)
    return len(names)


@contextlib.contextmanager
def new_directory(directory: Place) -> Iterator[None]:
    """Around what makes a set of shards in *directory*, new or empty: all of it, or nothing."""
    made = _make(directory)
    try:
        yield
        directory_at(directory.absolute().parent).sync()
    except BaseException:
        with contextlib.suppress(OSError, StoreError):
            remove_shards(directory)
            if made:
                directory_at(directory).remove()
        raise


@contextlib.contextmanager
def new_log(
    directory: Place,
    shards: int,
    codec: Codec,
    budget_bytes: int,
    upload_bytes: int,
    base: str | None = None,
    dated: tuple[int, int] | None = None,
) -> Iterator[Sink]:
    """The log of a new checkpoint, which is committed and sealed at the end.

    With *dated* it says that it was made and committed then.
    """
    with Lanes(shards, budget_bytes=budget_bytes, upload_bytes=upload_bytes) as lanes:
        checkpoint = Checkpoint(directory)
        try:
            log = checkpoint.begin_writing(
                lanes, shards=shards, codec=codec, base=base, dated=dated
            )
            yield Sink(log, lanes)
            log.prepare_commit()
            checkpoint.commit(seal=True)
        finally:
            checkpoint.close()


def require_as_written(directory: Place) -> None:
    """Raises: StoreError."""
    if damages := verify(directory).damages:
        raise StoreError(f"{directory} is not what was written: {damages[0]}")


def _names(source: Path) -> list[str]:
    """What is to be packed, `inventory.img` last, as CRIU writes it."""
    require_there(source)
    with _reading(source) as root:
        names = sorted(os.listdir(root))
        if any(map(is_shard_name, names)):
            raise UsageError(f"{source} is a checkpoint already: it holds {names[0]}")
        if INVENTORY not in names:
            raise CheckpointIncomplete(f"{source}: no {INVENTORY} in it: not a whole dump of CRIU")
        for name in names:
            mode = os.stat(name, dir_fd=root, follow_symlinks=False).st_mode
            if not (stat.S_ISREG(mode) or stat.S_ISLNK(mode)):
                raise UsageError(f"{source}/{name} is neither a file nor a link: no image of CRIU")
            if not is_image_name(name):
                raise UsageError(f"{source}/{name}: no image file can have that name")
    return sorted(names, key=lambda name: name == INVENTORY)


def _make(directory: Place) -> bool:
    """Make *directory*, or find that it is there and empty. Whether it was made."""
    place = directory_at(directory)
    try:
        place.make()
    except FileExistsError:
        if not place.exists() or place.entries() != ([], []):
            raise UsageError(f"{directory} is there already: pack into a new directory") from None
        return False
    except FileNotFoundError:
        raise UsageError(f"{directory.parent} does not exist: mkdir it") from None
    except OSError as exc:
        raise StoreError(f"cannot make {directory}: {exc.strerror}", os_errno=exc.errno) from exc
    return True


@contextlib.contextmanager
def _reading(source: Path) -> Iterator[int]:
    """*source*, open; what cannot be read of it is no fault of the store's."""
    try:
        root = os.open(source, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            yield root
        finally:
            os.close(root)
    except OSError as exc:
        raise UsageError(f"cannot read {source}: {exc.strerror}") from exc


class Sink:
    """A log that takes as much as there is room for in memory, and lets wait for it."""

    def __init__(self, log: Log, lanes: Lanes) -> None:
        self.log = log
        self._lanes = lanes
        self._progress = threading.Event()
        lanes.on_progress = self._progress.set

    def reserve(self, length: int) -> None:
        while True:
            self._progress.clear()
            if self._lanes.try_reserve(length):
                return
            self.log.flush()
            self._progress.wait()


def _take(root: int, name: str, sink: Sink, progress: Progress) -> None:
    found = os.stat(name, dir_fd=root, follow_symlinks=False)
    owner = {"uid": found.st_uid, "gid": found.st_gid}
    if stat.S_ISLNK(found.st_mode):
        target = os.readlink(name, dir_fd=root)
        if not is_link_target(target):
            raise UsageError(
                f"the link {name} leads to {target[:60]!r}: no image can be such a link"
            )
        image = sink.log.symlink(name, target, **owner)
    else:
        image = sink.log.create_image(name, mode=stat.S_IMODE(found.st_mode), **owner)
        fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=root)
        try:
            for start, end in _data(fd, found.st_size):
                for offset in range(start, end, _PIECE_BYTES):
                    data = _read(fd, offset, min(_PIECE_BYTES, end - offset), name)
                    sink.reserve(len(data))
                    sink.log.write(image, offset, data)
                    progress(len(data))
        finally:
            os.close(fd)
        sink.log.truncate(image, found.st_size)
    image.mtime_ns = found.st_mtime_ns
    sink.log.touch(image)


def _read(fd: int, offset: int, length: int, name: str) -> bytes:
    data = b""
    while len(data) < length:
        more = os.pread(fd, length - len(data), offset + len(data))
        if not more:
            raise UsageError(f"{name} became shorter while it was read: is CRIU still at it?")
        data = data + more if data else more
    return data


def _data(fd: int, size: int) -> Iterator[tuple[int, int]]:
    """Where *fd* holds bytes, and no hole."""
    end = 0
    while end < size:
        try:
            start = os.lseek(fd, end, os.SEEK_DATA)
            end = os.lseek(fd, start, os.SEEK_HOLE)
        except OSError as exc:
            if exc.errno == errno.ENXIO:  # a hole to the end
                return
            if exc.errno != errno.EINVAL:
                raise
            start, end = end, size  # a filesystem that knows no holes
        yield start, min(end, size)
