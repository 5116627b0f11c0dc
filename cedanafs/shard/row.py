"""A shard in several files, its segments, one behind the other. Blocking; knows no frames.

So it lies on a store that sends a file as a whole, such as s3fs: what was sent is not written to
again, which would send it once more. And so it comes down from an object store, by whatever
copies objects. Source: docs/format.md#segments.
"""

from __future__ import annotations

import errno
import os
import stat
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from uuid import UUID

from cedanafs.errors import CorruptShard, StoreBusy, StoreError
from cedanafs.shard.codec import Bytes
from cedanafs.shard.local import LocalShard, store_errors, sync_directory
from cedanafs.shard.segments import MAX_SEGMENTS, segment_name


@dataclass(slots=True, eq=False)
class _Segment:
    """*file* is there while it is written, and once it was read."""

    path: Path
    start: int
    file: LocalShard | None = None

    def opened(self) -> LocalShard:
        file = self.file
        if file is None:  # two at once may open it: one of them is closed after its read
            self.file = file = LocalShard.open(self.path)
        return file


class Row:
    """One shard. Every failure comes as StoreError that names the file and keeps the errno."""

    atomic: Final = False
    whole: Final = True

    def __init__(self, path: Path, lengths: Sequence[int]) -> None:
        """The shard at *path*, whose segments are there, *lengths* bytes each."""
        self.path = path
        self.checkpoint: UUID | None = None
        self._segments: list[_Segment] = []
        self._end = 0
        for length in lengths:
            self._segments.append(_Segment(self._next_path(), self._end))
            self._end += length
        self._growing = False  # whether the last is still written to
        self._synced = 0  # segments that are durable for certain
        self._renamed = False  # whether names have come or gone
        self._lock: LocalShard | None = None

    @classmethod
    def create(cls, path: Path) -> Row:
        """A new one, of one segment that is empty."""
        row = cls(path, [])
        row._begin()
        return row

    @classmethod
    def open(cls, path: Path, count: int) -> Row:
        """The shard at *path* that has *count* segments. Raises: CorruptShard, StoreError."""
        names = [segment_name(path.name, number) for number in range(count)]
        return cls(path, [_length(path.with_name(name)) for name in names])

    @property
    def name(self) -> str:
        return self.path.name

    def length(self) -> int:
        return self._end

    def read_at(self, offset: int, length: int) -> bytes:
        """Exactly *length* bytes. Raises: CorruptShard when the shard ends before."""
        if offset + length > self._end:
            raise CorruptShard(
                f"{self.name} at offset {offset}: {length} bytes wanted, the shard ends "
                f"after {self._end}: it was cut short"
            )
        data = b""
        while len(data) < length:
            begin = offset + len(data)
            segment, end = self._at(begin)
            end = min(end, offset + length)
            piece = segment.opened().read_at(begin - segment.start, end - begin)
            data = data + piece if data else piece
        return data

    def next_data(self, offset: int) -> int:
        """Where from *offset* on something was written; the shard's length, where nothing was."""
        while offset < self._end:
            segment, end = self._at(offset)
            found = segment.start + segment.opened().next_data(offset - segment.start)
            if found < end:
                return found
            offset = end
        return offset

    def write_at(self, offset: int, buffers: Sequence[Bytes]) -> None:
        """All of *buffers* one after the other at the end, which is at *offset*."""
        if offset != self._end:
            raise StoreError(f"{self.path}: can only be appended to", os_errno=errno.EINVAL)
        if not self._growing:
            self._begin()
        segment = self._segments[-1]
        segment.opened().write_at(offset - segment.start, buffers)
        self._end += sum(map(len, buffers))

    def sync(self) -> None:
        """Make durable what was written; what comes now is in another segment."""
        for segment in self._segments[self._synced :]:
            segment.opened().sync()
        if self._end:  # the first is there in any case, and may as well be used
            self._segments[-1].file = None  # s3fs keeps what is open on its disk
            self._growing = False
            self._synced = len(self._segments)
        if self._renamed:
            sync_directory(self.path.parent)
            self._renamed = False

    def truncate(self, length: int) -> None:
        # The last one first: what is left is a row at any time.
        while len(self._segments) > 1 and self._segments[-1].start >= length:
            segment = self._segments.pop()
            segment.file = None
            with store_errors("remove", segment.path):
                segment.path.unlink(missing_ok=True)
            self._end = segment.start
            self._growing, self._renamed = False, True
        self._synced = min(self._synced, len(self._segments))
        if length < self._end:
            segment = self._segments[-1]
            if not self._growing:
                segment.file = LocalShard.open(segment.path, writable=True)
                self._growing = True
            segment.opened().truncate(length - segment.start)
            self._end = length
            self._synced = len(self._segments) - 1

    def lock_shared(self) -> None:
        """Keep whoever writes or removes it out, until it is closed. Raises: StoreBusy."""
        self._lock = LocalShard.open(self.path)
        self._lock.lock_shared()

    def lock(self) -> None:
        """Keep other writers on this machine out, until it is closed. Raises: StoreBusy."""
        self._lock = LocalShard.open(self.path, writable=True)
        self._lock.lock()

    def close(self) -> None:
        last = self._segments[-1].file
        if self._growing and last is not None:
            last.close()
        for segment in self._segments:
            segment.file = None
        if self._lock is not None:
            self._lock.close()

    def _begin(self) -> None:
        """Have another segment, to write to."""
        number = len(self._segments)
        if number >= MAX_SEGMENTS:
            raise StoreError(
                f"{self.path}: has {number} segments, no shard has more: write a new checkpoint",
                os_errno=errno.EFBIG,
            )
        path = self._next_path()
        try:
            file = LocalShard.create(path)
        except FileExistsError:
            if number == 0:
                raise
            raise StoreBusy(f"{path}: another server is writing to this checkpoint") from None
        self._segments.append(_Segment(path, self._end, file))
        self._growing = self._renamed = True

    def _next_path(self) -> Path:
        return self.path.with_name(segment_name(self.name, len(self._segments)))

    def _at(self, offset: int) -> tuple[_Segment, int]:
        """The segment that holds the byte at *offset*, and where in the shard that ends."""
        at = bisect_right(self._segments, offset, key=lambda segment: segment.start) - 1
        following = self._segments[at + 1 : at + 2]
        return self._segments[at], following[0].start if following else self._end


def _length(path: Path) -> int:
    """Raises: CorruptShard when it is no regular file, StoreError."""
    with store_errors("open", path):
        found = os.lstat(path)
    if not stat.S_ISREG(found.st_mode):
        raise CorruptShard(f"{path} is not a regular file")
    return found.st_size
