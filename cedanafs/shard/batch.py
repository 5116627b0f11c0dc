"""Records on their way into one frame of one shard."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from cedanafs.shard.codec import Bytes
from cedanafs.shard.extents import Frame, Patch
from cedanafs.shard.pages import Pages
from cedanafs.shard.patches import MAX_RUNS_LEN, Kind, Run, encode_runs, parts_of
from cedanafs.shard.records import Marker, encode


@dataclass(frozen=True, slots=True)
class _Deferred:
    marker: Marker
    payload: Sequence[Bytes]
    patch: Patch | None
    name: str
    start: int


class Batch:
    """Their bytes in stream order.

    Where they are compared with a base they are put off until the lane has them: `defer` instead
    of `add`, and then `settle`.
    """

    def __init__(self, shard: int, header_seq: int) -> None:
        self.shard = shard
        self.header_seq = header_seq
        self.frame = Frame(shard)
        self.pieces: list[Bytes] = []
        self.markers = bytearray()
        self.payload_len = 0
        self.deferred: list[_Deferred] = []

    def add(self, marker: Marker, payload: Sequence[Bytes] = ()) -> int:
        """Take the record; returns where its payload will lie in the decoded frame."""
        encoded = encode(marker)
        self.pieces.append(encoded)
        self.pieces.extend(payload)
        self.markers += encoded
        at = self.frame.raw_len + len(encoded)
        self.frame.raw_len = at + marker.payload_len
        self.frame.records += 1
        self.payload_len += marker.payload_len
        return at

    def defer(
        self, marker: Marker, payload: Sequence[Bytes], patch: Patch | None, name: str, start: int
    ) -> None:
        """Take the record, whose bytes go to *start* in image *name*, to be settled later."""
        self.deferred.append(_Deferred(marker, payload, patch, name, start))
        self.frame.raw_len += 128 + marker.payload_len  # about, until it is settled
        self.payload_len += marker.payload_len

    def settle(self, pages: Pages) -> None:
        """On the lane: find out what the base holds, and make the records and their patches."""
        self.frame.raw_len = 0
        for each in self.deferred:
            if each.patch is None:
                self.add(each.marker)
                continue
            runs, each.patch.digests = pages.cut(each.name, each.start, each.payload)
            blob = encode_runs(runs, each.start)
            written = each.marker.payload_len
            if len(blob) > MAX_RUNS_LEN or all(run.kind == Kind.OWN for run in runs):
                at = self.add(each.marker, each.payload)
                each.patch.fill(parts_of([Run(Kind.OWN, written)], at, None))
                continue
            own: list[memoryview] = []
            position = 0
            for run in runs:
                if run.kind == Kind.OWN:
                    own += _cut(each.payload, position, run.length)
                position += run.length
            length = sum(map(len, own))
            marker = replace(each.marker, file_data=None, patch_data=length, runs=blob)
            each.patch.fill(parts_of(runs, self.add(marker, own), pages.base_images))


def _cut(pieces: Sequence[Bytes], at: int, length: int) -> Iterator[memoryview]:
    """Bytes [at, at + length) of *pieces*."""
    for piece in pieces:
        if at + length > 0 and at < len(piece):
            yield memoryview(piece)[max(at, 0) : at + length]
        at -= len(piece)
