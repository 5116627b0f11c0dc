"""Shards in an object store: each is a row of immutable objects, its segments. Blocking.

What is written from one `sync` to the next becomes one segment, sent while it is written, and
appears when all of it is there. Source: docs/format.md#segments.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import tempfile
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Final
from uuid import UUID

from cedanafs.errors import CheckpointIncomplete, CorruptShard, StoreBusy, StoreError
from cedanafs.shard.at_once import on_each
from cedanafs.shard.bucket import MAX_PARTS, MIN_PART_BYTES, Object, bucket_at
from cedanafs.shard.codec import Bytes
from cedanafs.shard.place import ObjectPath
from cedanafs.shard.segments import MAX_SEGMENTS, is_shard_name, segment_name, segment_of
from cedanafs.shard.upload import Upload

_TAIL_BYTES: Final = 64 << 10
_PLAIN_BYTES: Final = 1 << 20
"""What is no longer is made by one request. To begin an upload takes a round trip or two, which are
over when its first part is full."""

_AT_ONCE: Final = 3
"""Parts of one upload that are on their way; another is being filled."""

_READ_AT_ONCE: Final = 8
"""Segments; a shard's end is in several, as each commit is one."""


class ObjectShard:
    """One shard. What was written and not yet synced cannot be read."""

    atomic: Final = True
    whole: Final = True

    def __init__(
        self,
        path: ObjectPath,
        segments: Sequence[Object] = (),
        torn: Sequence[Object] = (),
        buffer_bytes: int = 0,
    ) -> None:
        """*torn* are segments of a commit that was cut short, removed by whoever writes."""
        self.path = path
        self.checkpoint: UUID | None = None
        self._bucket = bucket_at(path)
        self._segments = list(segments)
        self._torn = list(torn)
        self._part_bytes = max(buffer_bytes // (_AT_ONCE + 1), MIN_PART_BYTES)
        self._at_once = max(min(buffer_bytes // self._part_bytes - 1, _AT_ONCE), 1)
        self._begun: list[bytes] = []  # as long as it may be made by one request
        self._begun_bytes = 0
        self._tail = b""
        self._upload: Upload | None = None
        self._lock: contextlib.ExitStack = contextlib.ExitStack()

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def torn_objects(self) -> int:
        return len(self._torn)

    def length(self) -> int:
        return self._committed + self._begun_bytes

    @property
    def _committed(self) -> int:
        return sum(segment.size for segment in self._segments)

    def read_at(self, offset: int, length: int) -> bytes:
        """Exactly *length* bytes. Raises: CorruptShard when the shard ends before."""
        ends = list(accumulate(segment.size for segment in self._segments))
        if offset + length > (ends[-1] if ends else 0):
            raise CorruptShard(
                f"{self.name} at offset {offset}: {length} bytes wanted, the shard ends "
                f"after {ends[-1] if ends else 0}: it was cut short, or not committed"
            )
        if length == 0:
            return b""
        parts: list[tuple[int, int, int]] = []
        for at in range(bisect_right(ends, offset), bisect_left(ends, offset + length) + 1):
            begin = ends[at] - self._segments[at].size
            parts.append((at, max(offset - begin, 0), min(offset + length, ends[at]) - begin))
        if len(parts) == 1:
            return self._read_in(*parts[0])
        data = b""
        for first in range(0, len(parts), _READ_AT_ONCE):
            some = parts[first : first + _READ_AT_ONCE]
            data += b"".join(on_each(lambda part: self._read_in(*part), some, far=True))
        return data

    def _read_in(self, at: int, start: int, end: int) -> bytes:
        """Bytes *start* to *end* of a segment."""
        segment = self._segments[at]
        data, e_tag = self._bucket.read(segment, start, end)
        if segment.e_tag is None:  # our own: from now on it is this object and no other
            self._segments[at] = replace(segment, e_tag=e_tag)
        return data

    def next_data(self, offset: int) -> int:
        return offset

    def write_at(self, offset: int, buffers: Sequence[Bytes]) -> None:
        """All of *buffers* one after the other at the end, which is at *offset*."""
        if offset != self.length():
            raise StoreError(f"{self.path}: can only be appended to", os_errno=errno.EINVAL)
        if self._torn:
            self._remove(self._torn)
        piece = b"".join(buffers)
        self._begun_bytes += len(piece)
        if self._begun_bytes > MAX_PARTS * self._part_bytes:
            raise StoreError(
                f"{self.path}: more than {MAX_PARTS} parts in one upload: "
                "use more shards, or a larger --memory-limit",
                os_errno=errno.EFBIG,
            )
        if self._upload is None:
            self._begun.append(piece)
            if self._begun_bytes <= _PLAIN_BYTES:
                return
            self._upload = Upload(
                partial(
                    self._bucket.create_of,
                    self._next_key(),
                    part_bytes=self._part_bytes,
                    at_once=self._at_once,
                ),
                name=f"upload-{self.name}",
            )
            begun, self._begun = self._begun, []
        else:
            begun = [piece]
        self._tail = (
            piece[-_TAIL_BYTES:]
            if len(piece) >= _TAIL_BYTES
            else (self._tail + piece)[-_TAIL_BYTES:]
        )
        try:
            for each in begun:
                self._upload.write(each)
        except Exception as exc:
            raise self._bucket.error("write", self._next_key(), exc) from exc

    def sync(self) -> None:
        """Make what was written a segment. Raises: StoreError; it may be there all the same."""
        if not self._begun_bytes:
            return
        key = self._next_key()
        if self._upload is None:
            self._bucket.create(key, b"".join(self._begun))
        else:
            if self._bucket.head(key) is not None:
                self._bucket.refuse(key)
            try:
                self._upload.finish()
            except Exception as exc:
                if not self._is_there(key):
                    raise self._bucket.error("write", key, exc) from exc
        self._segments.append(Object(key, self._begun_bytes))
        self._forget_begun()

    def _is_there(self, key: str) -> bool:
        """Whether the upload was completed, though the answer to that was lost."""
        with contextlib.suppress(StoreError):
            found = self._bucket.head(key)
            if found is not None and found.size == self._begun_bytes:
                start = found.size - len(self._tail)
                return self._bucket.read(found, start, found.size)[0] == self._tail
        return False

    def truncate(self, length: int) -> None:
        """Remove what is behind *length*, where a segment ends."""
        if self._upload is not None:
            self._upload.abort()
        self._forget_begun()
        ends = list(accumulate(segment.size for segment in self._segments))
        kept = 0 if length == 0 else bisect_right(ends, length)
        if length != (ends[kept - 1] if kept else 0):
            raise StoreError(
                f"{self.path}: cannot be cut at {length}, inside an object", os_errno=errno.EINVAL
            )
        self._remove(self._segments[kept:])
        del self._segments[kept:]

    def _remove(self, objects: Sequence[Object]) -> None:
        # The first one first: those behind it are no part of the shard without it.
        self._bucket.delete([each.key for each in objects[:1]])
        self._bucket.delete([each.key for each in objects[1:]])
        self._torn = []

    def _next_key(self) -> str:
        number = len(self._segments)
        if number >= MAX_SEGMENTS:
            raise StoreError(
                f"{self.path}: has {number} segments, no shard has more: write a new checkpoint",
                os_errno=errno.EFBIG,
            )
        return (self.path.parent / segment_name(self.name, number)).key

    def _forget_begun(self) -> None:
        self._begun, self._begun_bytes, self._tail, self._upload = [], 0, b"", None

    def lock_shared(self) -> None:
        raise StoreError(f"{self.path}: no base in an object store", os_errno=errno.EOPNOTSUPP)

    def lock(self) -> None:
        """Keep other writers on this machine out, until it is closed. Raises: StoreBusy."""
        self._lock.enter_context(_locked(self.path, "another server is writing to this checkpoint"))

    def close(self) -> None:
        """Give it back; what was written and not synced is lost, and no part of it left."""
        if self._upload is not None:
            self._upload.abort()
        self._forget_begun()
        self._lock.close()


class ObjectDirectory:
    """A directory: the objects whose keys begin with its own."""

    def __init__(self, path: ObjectPath) -> None:
        self.path = path
        self._bucket = bucket_at(path)

    def check(self, *, writable: bool) -> None:
        """Raises: StoreError when the store cannot be listed."""
        bucket_at(self.path.patient(min(self.path.timeout_s or 30.0, 30.0))).listing(self.path.key)

    def space(self) -> os.statvfs_result:
        """There is no end to it."""
        return os.statvfs_result((1 << 20, 1 << 20, *[1 << 40] * 6, 0, 255))

    def exists(self) -> bool:
        return self._bucket.listing(self.path.key) != ([], [])

    def entries(self) -> tuple[list[str], list[str]]:
        """The names of the directories in it, and of all else; a shard's segments are one."""
        directories, objects = self._bucket.listing(self.path.key)
        return directories, _names(objects)

    def walk(self) -> Iterator[tuple[ObjectPath, list[str]]]:
        """Itself and each directory below in which there is something, with the names of that."""
        below: dict[str, list[Object]] = {self.path.key: []}
        for each in self._bucket.objects(self.path.key):
            below.setdefault(each.key.rpartition("/")[0], []).append(each)
        for key in sorted(below):
            yield replace(self.path, key=key), _names(below[key])

    def make(self) -> None:
        """There is nothing to make. Raises: FileExistsError when something is in it."""
        if self.exists():
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(self.path))

    def remove(self) -> None:
        """There is nothing to remove where nothing is in it."""

    def rename(self, new: ObjectPath) -> None:
        raise OSError(errno.EXDEV, "an object store cannot rename", str(self.path))

    def exchange(self, other: ObjectPath) -> None:
        raise OSError(errno.EXDEV, "an object store cannot rename", str(self.path))

    def create_shards(self, names: Sequence[str], buffer_bytes: int) -> list[ObjectShard]:
        """New, empty shards. What a first commit that was cut short has left is removed.

        Raises: StoreBusy when there is a checkpoint.
        """
        _, objects = self._bucket.listing(self.path.key)
        if any(map(is_shard_name, _names(objects))):
            raise StoreBusy(f"{self.path}: another server has just written a checkpoint there")
        self._bucket.delete([each.key for each in objects if is_shard_name(_shard_of(each))])
        share = buffer_bytes // len(names)
        return [ObjectShard(self.path / name, buffer_bytes=share) for name in names]

    def open_shards(
        self, names: Sequence[str], *, writable: bool = False, buffer_bytes: int = 0
    ) -> list[ObjectShard]:
        """The shards, as far as the first of them has segments: its are the last to appear.

        Raises: CheckpointIncomplete.
        """
        _, objects = self._bucket.listing(self.path.key)
        found: dict[str, dict[int, Object]] = {name: {} for name in names}
        for each in objects:
            name, number = segment_of(each.key.rpartition("/")[2])
            if name in found:
                found[name][number] = each
        count = 0
        while names and count in found[names[0]]:
            count += 1
        if names and count == 0:
            raise CheckpointIncomplete(f"{self.path}: {names[0]} is missing: bring it back")
        shards = []
        for name, segments in found.items():
            missing = [number for number in range(count) if number not in segments]
            if missing:
                raise CheckpointIncomplete(
                    f"{self.path}: {segment_name(name, missing[0])} is missing, which was there "
                    f"before {segment_name(names[0], missing[0])}: bring it back"
                )
            torn = [segments[number] for number in sorted(segments) if number >= count]
            shards.append(
                ObjectShard(
                    self.path / name,
                    [segments[number] for number in range(count)],
                    torn,
                    buffer_bytes // len(names),
                )
            )
        return shards

    def remove_files(self, names: Sequence[str]) -> None:
        """Remove the files *names*, a shard's segments with it, the first shard's first.

        With them goes what a first commit that was cut short has left.
        """
        _, objects = self._bucket.listing(self.path.key)
        shown = _names(objects)
        doomed = [
            each
            for each in objects
            if _shard_of(each) in names or _shard_of(each) not in shown  # or it is of no commit
        ]
        doomed.sort(key=lambda each: not _is_first(_shard_of(each)))
        self._bucket.delete([each.key for each in doomed[:1]])
        self._bucket.delete([each.key for each in doomed[1:]])

    def sync(self) -> None:
        """What is there is durable."""

    def locked(self, why: str) -> contextlib.AbstractContextManager[None]:
        """Hold it for writing against other servers on this machine. Raises: StoreBusy."""
        return _locked(self.path, why)

    def lock_path(self) -> Path:
        return _lock_path(self.path)


def _shard_of(found: Object) -> str:
    return segment_of(found.key.rpartition("/")[2])[0]


def _is_first(name: str) -> bool:
    return name.partition(".")[0] == "img-0"


def _names(objects: Sequence[Object]) -> list[str]:
    """The names of shards and of all else, without what a first commit that never was has left."""
    found = [segment_of(each.key.rpartition("/")[2]) for each in objects]
    begun = any(number or _is_first(name) for name, number in found if is_shard_name(name))
    return sorted({name for name, _ in found if begun or not is_shard_name(name)})


def _lock_path(path: ObjectPath) -> Path:
    """The local file that is locked for *path*, as an object store knows no locks."""
    base = Path("/run/lock") if os.access("/run/lock", os.W_OK) else Path(tempfile.gettempdir())
    digest = hashlib.sha256(str(path).encode()).hexdigest()[:32]
    return base / f"cedanafs-{os.geteuid()}-{digest}"


@contextlib.contextmanager
def _locked(path: ObjectPath, why: str) -> Iterator[None]:
    lock = _lock_path(path)
    try:
        while True:
            fd = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if lock.exists() and os.path.samestat(os.fstat(fd), lock.stat()):
                    break
            except BaseException:
                os.close(fd)
                raise
            os.close(fd)  # of one who has just removed it
    except BlockingIOError:
        raise StoreBusy(f"{path}: {why}") from None
    except OSError as exc:
        raise StoreError(f"{lock}: cannot lock: {exc.strerror}", os_errno=exc.errno) from exc
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            lock.unlink()
        os.close(fd)
