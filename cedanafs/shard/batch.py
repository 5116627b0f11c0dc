"""Records on their way into one frame of one shard."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from cedanafs.shard.codec import Bytes
from cedanafs.shard.extents import Frame, Patch
from cedanafs.shard.pages import Pages
from cedanafs.shard.patches import MAX_RUNS_LEN, Kind, Run, encode_runs, parts_of
from cedanafs.shard.records import Marker, encode


class Batch:
    """Their bytes in stream order. `payload_len` counts what was written, stored or not."""

    def __init__(self, shard: int, header_seq: int) -> None:
        self.shard = shard
        self.header_seq = header_seq
        self.frame = Frame(shard)
        self.pieces: list[Bytes] = []
        self.markers = bytearray()
        self.payload_len = 0

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

    def add_compared(
        self, marker: Marker, payload: Sequence[Bytes], name: str, start: int, pages: Pages
    ) -> Patch:
        """Take the record, whose bytes go to *start* in image *name*, without what a base holds."""
        patch = Patch(self.frame)
        runs, patch.digests = pages.cut(name, start, payload)
        blob = encode_runs(runs, start)
        written = marker.payload_len
        if len(blob) > MAX_RUNS_LEN or all(run.kind == Kind.OWN for run in runs):
            patch.fill(parts_of([Run(Kind.OWN, written)], self.add(marker, payload), None))
            return patch
        own: list[memoryview] = []
        position = 0
        for run in runs:
            if run.kind == Kind.OWN:
                own += _cut(payload, position, run.length)
            position += run.length
        length = sum(map(len, own))
        marker = replace(marker, file_data=None, patch_data=length, runs=blob)
        patch.fill(parts_of(runs, self.add(marker, own), pages.base_images))
        self.payload_len += written - length
        return patch


def _cut(pieces: Sequence[Bytes], at: int, length: int) -> Iterator[memoryview]:
    """Bytes [at, at + length) of *pieces*."""
    for piece in pieces:
        if at + length > 0 and at < len(piece):
            yield memoryview(piece)[max(at, 0) : at + length]
        at -= len(piece)
