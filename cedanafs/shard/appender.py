"""One shard's end: what happens to its file, on its lane and nowhere else."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final
from uuid import UUID

from cedanafs.shard.codec import Bytes
from cedanafs.shard.commit import FrameRow
from cedanafs.shard.extents import Frame
from cedanafs.shard.format import Carrier, Header, Kind, checksum
from cedanafs.shard.store import ShardFile

GATHER_BYTES: Final = 64 << 10


@dataclass(frozen=True, slots=True)
class ShardFigures:
    """A shard that is being written. `stored_bytes` is its length; of the frames in it `raw_bytes`
    were compressed. The times are those of its lane, since it was opened for writing."""

    raw_bytes: int
    stored_bytes: int
    frames: int
    compress_s: float
    write_s: float


class Appender:
    """Appends to one shard from *end* on; its frames and their markers are kept for the index.

    `frames` and `markers` belong to the caller, in the order of dealing; everything else is
    touched on the shard's lane only, or while the lane is known to be idle.
    """

    def __init__(
        self,
        k: int,
        file: ShardFile,
        carrier: Carrier,
        checkpoint: UUID,
        *,
        end: int = 0,
        frames: Sequence[Frame] = (),
        markers: bytes = b"",
    ) -> None:
        self.k = k
        self.file = file
        self.end = end
        self.committed_end = end
        self.frames = list(frames)
        self.markers = bytearray(markers)
        self._footer_at = end
        self._raw_bytes = sum(frame.raw_len for frame in self.frames)
        self._compress_s = self._write_s = 0.0
        self._held_back: list[Frame] = []  # not to be read before they are committed
        self._carrier = carrier
        self._checkpoint = checkpoint

    def pack(self, frame: Frame, pieces: Sequence[Bytes], seq: int) -> list[Bytes]:
        """The records in *pieces*, compressed, behind the frame's header: as they are stored."""
        begun_s = time.perf_counter()
        stored = self._carrier.codec.compress(_gathered(pieces))
        frame.stored_len = sum(map(len, stored))
        frame.checksum = checksum(*stored)
        header = Header(
            Kind.DATA, self.k, frame.stored_len, frame.raw_len, frame.checksum, self._checkpoint
        )
        self._compress_s += time.perf_counter() - begun_s
        return [self._carrier.hide(header.encode(), seq), *stored]

    def append(self, frame: Frame, packed: Sequence[Bytes]) -> None:
        """Append what `pack` has made of *frame*."""
        begun_s = time.perf_counter()
        self.file.write_at(self.end, packed)
        self._write_s += time.perf_counter() - begun_s
        self._raw_bytes += frame.raw_len
        self.end += sum(map(len, packed))
        frame.offset = self.end - frame.stored_len
        frame.landed = not self.file.atomic
        if not frame.landed:
            self._held_back.append(frame)

    def append_index(self, units: Sequence[bytes]) -> None:
        """Append a commit's units but the footer; make them and all before them durable.

        Where all that a sync covers appears at once, with the footer it does.
        """
        self._append(units)
        if not self.file.whole:
            self.file.sync()

    def append_footer(self, unit: bytes) -> None:
        """Append the unit that completes a commit, and make it durable."""
        self._footer_at = self.end
        self._append([unit])
        self.file.sync()
        self.committed_end = self.end
        for frame in self._held_back:
            frame.landed = True
        self._held_back.clear()

    def cut_footer(self, end: int) -> None:
        """Undo `append_footer`; on every shard before `cut` to *end* on any.

        Where a commit appears at once, the first shard has it last and loses it first, as a whole.
        """
        if not self.file.whole:
            cut(self.file, self._footer_at)
        elif self.k == 0:
            cut(self.file, end)

    def cut(self, end: int) -> None:
        """Take off what a seal has appended behind *end*."""
        cut(self.file, end)
        self.end = self.committed_end = end

    def _append(self, units: Sequence[bytes]) -> None:
        self.file.write_at(self.end, units)
        self.end += sum(len(unit) for unit in units)

    def figures(self) -> ShardFigures:
        """On any thread, while the lane is at work, too."""
        return ShardFigures(
            raw_bytes=self._raw_bytes,
            stored_bytes=self.end,
            frames=len(self.frames),
            compress_s=round(self._compress_s, 6),
            write_s=round(self._write_s, 6),
        )

    def rows(self) -> list[FrameRow]:
        return [
            FrameRow(f.offset, f.stored_len, f.raw_len, f.checksum, f.records) for f in self.frames
        ]


def _gathered(pieces: Iterable[Bytes]) -> list[Bytes]:
    """*pieces*, the small ones joined; copying a large one would hold the interpreter lock."""
    gathered: list[Bytes] = []
    small: list[Bytes] = []
    for piece in pieces:
        if len(piece) < GATHER_BYTES:
            small.append(piece)
            continue
        if small:
            gathered.append(b"".join(small))
            small.clear()
        gathered.append(piece)
    if small:
        gathered.append(b"".join(small))
    return gathered


def cut(file: ShardFile, end: int) -> None:
    """Take off what is behind *end*, for good; what is before it is durable, too.

    A footer vouches for the indexes of all shards, and a crash may clear what was to be cut off
    and leave its length: so the footers go first, on all shards, and then the rest. And a crash
    may keep bytes written later but not the cut, or what a killed writer left before it: so
    nothing is written before both are durable.
    """
    if file.length() > end:
        file.truncate(end)
    file.sync()
