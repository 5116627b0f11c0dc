"""Extents: which bytes of an image file lie in which frame.  PURE."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass


class Frame:
    """Where a frame lies. `offset` and what follows are set once it has landed in its shard.

    Compared by identity: a frame is one place in one shard.
    """

    __slots__ = ("checksum", "landed", "offset", "raw_len", "records", "shard", "stored_len")

    def __init__(
        self,
        shard: int,
        *,
        raw_len: int = 0,
        records: int = 0,
        offset: int = 0,
        stored_len: int = 0,
        checksum: int = 0,
        landed: bool = False,
    ) -> None:
        self.shard = shard
        self.raw_len = raw_len
        self.records = records
        self.offset = offset
        self.stored_len = stored_len
        self.checksum = checksum
        self.landed = landed


@dataclass(frozen=True, slots=True)
class Slice:
    """`length` bytes at `at` in the decoded frame; `frame` None is a hole, which reads as zeros."""

    frame: Frame | None
    at: int
    length: int


class ExtentMap:
    """The extents of one image file, in file order, never overlapping; later ones win."""

    __slots__ = ("_slices", "_starts")

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._slices: list[Slice] = []

    @property
    def end(self) -> int:
        """First offset after the last extent."""
        return self._starts[-1] + self._slices[-1].length if self._starts else 0

    def put(self, start: int, frame: Frame, at: int, length: int) -> None:
        """File bytes [start, start + length) now lie at *at* in *frame*."""
        if length <= 0:
            return
        if start < self.end:
            self._carve(start, start + length)
        here = bisect_right(self._starts, start)
        self._starts.insert(here, start)
        self._slices.insert(here, Slice(frame, at, length))

    def truncate(self, size: int) -> None:
        """Forget everything from *size* on."""
        if size < self.end:
            self._carve(size, self.end)

    def slices(self, offset: int, length: int) -> Iterator[Slice]:
        """Places holding bytes [offset, offset + length), in file order, holes included."""
        end = offset + length
        here = max(bisect_right(self._starts, offset) - 1, 0)
        while offset < end:
            if here >= len(self._starts):
                yield Slice(None, 0, end - offset)
                return
            start, piece = self._starts[here], self._slices[here]
            here += 1
            if start + piece.length <= offset:
                continue
            if start > offset:
                hole = min(start, end) - offset
                yield Slice(None, 0, hole)
                offset += hole
                if offset == end:
                    return
            skip = offset - start
            length = min(piece.length - skip, end - offset)
            yield Slice(piece.frame, piece.at + skip, length)
            offset += length

    def following(self, offset: int) -> Iterator[Slice]:
        """Extents from the one at *offset* on, whole, for read-ahead."""
        here = max(bisect_right(self._starts, offset) - 1, 0)
        yield from self._slices[here:]

    def __iter__(self) -> Iterator[tuple[int, Slice]]:
        return zip(self._starts, self._slices, strict=True)

    def _carve(self, start: int, end: int) -> None:
        """Take [start, end) out, cutting the extents at its borders."""
        first = max(bisect_right(self._starts, start) - 1, 0)
        if self._starts[first] + self._slices[first].length <= start:
            first += 1
        last = first
        kept: list[tuple[int, Slice]] = []
        while last < len(self._starts) and self._starts[last] < end:
            at, piece = self._starts[last], self._slices[last]
            if at < start:
                kept.append((at, Slice(piece.frame, piece.at, start - at)))
            if at + piece.length > end:
                skip = end - at
                kept.append((end, Slice(piece.frame, piece.at + skip, piece.length - skip)))
            last += 1
        self._starts[first:last] = [at for at, _ in kept]
        self._slices[first:last] = [piece for _, piece in kept]
