"""Extents: which bytes of an image file lie in which frame.  PURE."""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple, TypeAlias

if TYPE_CHECKING:
    from cedanafs.shard.codec import Codec
    from cedanafs.shard.store import ShardFile

RUN_LEN: Final = 1024
"""Most extents in one run of an `ExtentMap`; 200,000 in falling order took 15 s in one list."""


RECORDS_OF_A_RUN: Final = 2
"""The file's name, and the data."""


class Frame:
    """Where a frame lies. `offset` and what follows are set once it has landed in its shard.

    Compared by identity: a frame is one place in one shard.
    """

    __slots__ = (
        "checksum", "home", "landed", "offset", "raw_len", "records", "shard", "stored_len",
    )  # fmt: skip

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
        self.home: tuple[Sequence[ShardFile], Codec] | None = None  # None: the checkpoint's own


@dataclass(frozen=True, slots=True)
class Slice:
    """`length` bytes at `at` in the decoded frame; `frame` None is a hole, which reads as zeros.

    With `patch`, which only extents have that are not expanded, `at` counts from its beginning.
    """

    frame: Frame | None
    at: int
    length: int
    patch: Patch | None = None

    @property
    def ends_a_run(self) -> bool:
        """Whether it is the end of a frame that holds one run of one file and nothing else."""
        frame = self.frame
        return (
            frame is not None
            and self.at + self.length == frame.raw_len
            and frame.records <= RECORDS_OF_A_RUN
        )


class Part(NamedTuple):
    """Some of a patch: `length` bytes at `at` of its own frame, of a base's image, or zeros."""

    length: int
    at: int
    own: bool = False
    extents: ExtentMap | None = None
    is_base: bool = False  # without `extents`: of a base that is not known


class Patch:
    """The bytes of one record of which some are its own and the others are a base's.

    `digests` are those of its pages, where they were computed.
    """

    __slots__ = ("_kinds", "_numbers", "digests", "frame")

    def __init__(self, frame: Frame) -> None:
        self.frame = frame
        self.digests = b""
        # Of each part where it starts, its `at`, and which of the kinds it is; then the end. An
        # index can hold millions of parts: as objects each would take ten times as much memory.
        self._numbers = array("Q")
        self._kinds: Sequence[Part] = ()

    def fill(self, parts: Sequence[Part]) -> None:
        numbers, start = array("Q"), 0
        kinds: dict[tuple[bool, ExtentMap | None, bool], int] = {}
        for length, at, own, extents, is_base in parts:
            numbers.extend((start, at, kinds.setdefault((own, extents, is_base), len(kinds))))
            start += length
        numbers.append(start)
        self._kinds, self._numbers = tuple(Part(0, 0, *kind) for kind in kinds), numbers

    def parts(self, at: int, length: int) -> Iterator[Part]:
        """What makes up bytes [at, at + length)."""
        numbers, end = self._numbers, at + length
        starts = range(0, len(numbers) - 1, 3)
        first = bisect_right(starts, at, key=numbers.__getitem__) - 1
        for n in starts[max(first, 0) :]:
            start, place, kind, stop = numbers[n : n + 4]
            if start >= end:
                return
            skip = max(at - start, 0)
            if (some := min(stop, end) - start - skip) > 0:
                yield self._kinds[kind]._replace(length=some, at=place + skip)

    def slices(self, at: int, length: int) -> Iterator[Slice]:
        """The same, as slices of frames, a base's among them, and holes."""
        for part in self.parts(at, length):
            if part.own:
                yield Slice(self.frame, part.at, part.length)
            elif part.extents is not None:
                yield from part.extents.slices(part.at, part.length)
            else:
                yield Slice(None, 0, part.length)


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

    def put(
        self, start: int, frame: Frame, at: int, length: int, patch: Patch | None = None
    ) -> None:
        """File bytes [start, start + length) now lie at *at* in *frame*, or in *patch*."""
        if length <= 0:
            return
        piece = Slice(frame, at, length, patch)
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
        """Places holding bytes [offset, offset + length), in file order, holes included.

        Where they lie in a frame that has not landed may be known only when it has.
        """
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
            if piece.patch is not None and piece.patch.frame.landed:
                yield from piece.patch.slices(piece.at + skip, length)
            else:
                yield Slice(piece.frame, piece.at + skip, length)
            offset += length
        if offset < end:
            yield Slice(None, 0, end - offset)

    def __iter__(self) -> Iterator[tuple[int, Slice]]:
        """Every place that holds bytes, with its offset in the file; holes are left out."""
        for start, piece in self.stored():
            if piece.patch is None:
                yield start, piece
                continue
            for each in piece.patch.slices(piece.at, piece.length):
                if each.frame is not None:
                    yield start, each
                start += each.length

    def stored(self) -> Iterator[tuple[int, Slice]]:
        """The extents as they are, patches not expanded."""
        for starts, slices in self._runs:
            yield from zip(starts, slices, strict=True)

    def of_a_base(self) -> Iterator[tuple[int, int, bool]]:
        """Ranges that are a base's: offset, length, whether it is known which base."""
        for start, piece in self.stored():
            if piece.patch is not None:
                for part in piece.patch.parts(piece.at, piece.length):
                    if part.is_base:
                        yield start, part.length, part.extents is not None
                    start += part.length

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
            kept.append((at, Slice(piece.frame, piece.at, start - at, piece.patch)))
        if at + piece.length > end:
            skip = end - at
            left = piece.length - skip
            kept.append((end, Slice(piece.frame, piece.at + skip, left, piece.patch)))
        last += 1
    starts[first:last] = [at for at, _ in kept]
    slices[first:last] = [piece for _, piece in kept]
