"""Extents: which bytes of an image file lie in which frame.  PURE."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, TypeAlias

RUN_LEN: Final = 1024
"""Most extents in one run of an `ExtentMap`; 200,000 in falling order took 15 s in one list."""


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


_Run: TypeAlias = tuple[list[int], list[Slice]]
"""Starts and slices of neighbouring extents."""


class ExtentMap:
    """The extents of one image file, in file order, never overlapping; later ones win.

    They are kept in runs of bounded length, so that a change in the middle of millions, which
    a file written backwards or a hostile index makes, does not move all that come after it.
    """

    __slots__ = ("_firsts", "_runs")

    def __init__(self) -> None:
        self._firsts: list[int] = []  # where each run's first extent starts
        self._runs: list[_Run] = []  # none is empty

    @property
    def end(self) -> int:
        """First offset after the last extent."""
        if not self._runs:
            return 0
        starts, slices = self._runs[-1]
        return starts[-1] + slices[-1].length

    def put(self, start: int, frame: Frame, at: int, length: int) -> None:
        """File bytes [start, start + length) now lie at *at* in *frame*."""
        if length <= 0:
            return
        piece = Slice(frame, at, length)
        if start >= self.end:
            if not self._runs or len(self._runs[-1][0]) >= RUN_LEN:
                self._firsts.append(start)
                self._runs.append(([], []))
            starts, slices = self._runs[-1]
            starts.append(start)
            slices.append(piece)
            return
        self._carve(start, start + length)
        if not self._runs:
            self._firsts.append(start)
            self._runs.append(([], []))
        number = self._run_of(start)
        starts, slices = self._runs[number]
        here = bisect_right(starts, start)
        starts.insert(here, start)
        slices.insert(here, piece)
        self._firsts[number] = starts[0]
        if len(starts) > RUN_LEN:
            half = len(starts) // 2
            self._firsts.insert(number + 1, starts[half])
            self._runs.insert(number + 1, (starts[half:], slices[half:]))
            del starts[half:], slices[half:]

    def truncate(self, size: int) -> None:
        """Forget everything from *size* on."""
        if size < self.end:
            self._carve(size, self.end)

    def slices(self, offset: int, length: int) -> Iterator[Slice]:
        """Places holding bytes [offset, offset + length), in file order, holes included."""
        end = offset + length
        for start, piece in self._from(offset):
            if offset >= end:
                return
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
        if offset < end:
            yield Slice(None, 0, end - offset)

    def following(self, offset: int) -> Iterator[Slice]:
        """Extents from the one at *offset* on, whole, for read-ahead."""
        return (piece for _, piece in self._from(offset))

    def __iter__(self) -> Iterator[tuple[int, Slice]]:
        for starts, slices in self._runs:
            yield from zip(starts, slices, strict=True)

    def _run_of(self, offset: int) -> int:
        """The last run that does not begin behind *offset*, or the first."""
        return max(bisect_right(self._firsts, offset) - 1, 0)

    def _from(self, offset: int) -> Iterator[tuple[int, Slice]]:
        """Extents with their starts, from the last that does not start behind *offset* on."""
        number = self._run_of(offset)
        if number < len(self._runs):
            starts, slices = self._runs[number]
            here = max(bisect_right(starts, offset) - 1, 0)
            yield from zip(starts[here:], slices[here:], strict=True)
            for starts, slices in self._runs[number + 1 :]:
                yield from zip(starts, slices, strict=True)

    def _carve(self, start: int, end: int) -> None:
        """Take [start, end) out, cutting the extents at its borders."""
        first = last = self._run_of(start)
        kept: list[_Run] = []
        while last < len(self._runs) and self._firsts[last] < end:
            starts, slices = self._runs[last]
            _carve_run(starts, slices, start, end)
            if starts:
                kept.append((starts, slices))
            last += 1
        self._firsts[first:last] = [starts[0] for starts, _ in kept]
        self._runs[first:last] = kept


def _carve_run(starts: list[int], slices: list[Slice], start: int, end: int) -> None:
    first = max(bisect_right(starts, start) - 1, 0)
    if starts[first] + slices[first].length <= start:
        first += 1
    last = first
    kept: list[tuple[int, Slice]] = []
    while last < len(starts) and starts[last] < end:
        at, piece = starts[last], slices[last]
        if at < start:
            kept.append((at, Slice(piece.frame, piece.at, start - at)))
        if at + piece.length > end:
            skip = end - at
            kept.append((end, Slice(piece.frame, piece.at + skip, piece.length - skip)))
        last += 1
    starts[first:last] = [at for at, _ in kept]
    slices[first:last] = [piece for _, piece in kept]
