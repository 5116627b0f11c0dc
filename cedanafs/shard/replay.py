"""The indexes of a commit → what they say: frames, and contents by applying every record."""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence
from typing import TypeAlias

from cedanafs.errors import CheckpointError, CorruptShard
from cedanafs.shard.commit import Index
from cedanafs.shard.contents import Contents
from cedanafs.shard.extents import Frame
from cedanafs.shard.format import MAX_FRAME_LEN
from cedanafs.shard.records import Marker, parse
from cedanafs.shard.store import ShardFile


def frames_of(file: ShardFile, index: Index) -> list[Frame]:
    frames: list[Frame] = []
    at = 0
    for row in index.frames:
        if not 0 < max(row.raw_len, row.stored_len) <= MAX_FRAME_LEN or row.records == 0:
            raise CorruptShard(f"{file.path}: the index has a frame of impossible size")
        if row.offset < at or row.offset + row.stored_len > index.content_end:
            raise CorruptShard(f"{file.path}: the index has frames that overlap")
        at = row.offset + row.stored_len
        frames.append(
            Frame(
                index.shard,
                raw_len=row.raw_len,
                records=row.records,
                offset=row.offset,
                stored_len=row.stored_len,
                checksum=row.checksum,
                landed=True,
            )
        )
    return frames


Record: TypeAlias = tuple[int, Marker, Frame, int]
"""seq, marker, frame, where the payload lies in the decoded frame."""


def records_of(file: ShardFile, frames: Sequence[Frame], index: Index) -> Iterator[Record]:
    """The records of a shard, in order. Raises: CorruptShard."""
    markers = parse(index.markers, payloads=False)
    last_seq, last_at = -1, 0
    for frame in frames:
        at = 0
        for _ in range(frame.records):
            marker, marker_end = next(markers, (None, 0))
            if marker is None or marker.seq <= last_seq or marker.seq >= index.content_seq:
                raise CorruptShard(f"{file.path}: the index's records are out of order")
            last_seq = marker.seq
            at += marker_end - last_at
            last_at = marker_end
            yield marker.seq, marker, frame, at
            at += marker.payload_len
        if at != frame.raw_len:
            raise CorruptShard(f"{file.path}: the index's records do not fill their frame")
    if next(markers, None) is not None:
        raise CorruptShard(f"{file.path}: the index has records without a frame")


def replayed(
    files: Sequence[ShardFile],
    frames: Sequence[Sequence[Frame]],
    indexes: Sequence[Index],
    base: Contents | None,
) -> Contents:
    contents = Contents()
    contents.base = base
    streams = [records_of(*each) for each in zip(files, frames, indexes, strict=True)]
    last_seq = -1
    try:
        for seq, marker, frame, at in heapq.merge(*streams, key=lambda record: record[0]):
            if seq == last_seq:
                raise CorruptShard(f"two records have the sequence number {seq}")
            last_seq = seq
            contents.apply(marker, frame, at)
        if base is None:
            contents.check_resolved()
    except CheckpointError as exc:
        if str(exc).startswith(str(files[0].path.parent)):
            raise
        raise CorruptShard(f"{files[0].path.parent}: {exc}") from exc
    contents.drop_hidden()
    for name in indexes[0].unfinished:
        if (image := contents.images.get(name)) is not None:
            image.unfinished = True
    return contents
