"""Opening a checkpoint: the last commit that is complete on every shard, and what it says.

Reads the end of each shard, and walks from its beginning only where the end is torn. Nothing
is written here; what a writer has to cut off is reported. Source: docs/format.md#opening.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from uuid import UUID

from cedanafs.errors import (
    CheckpointError,
    CheckpointIncomplete,
    CorruptShard,
    MixedShards,
    UnknownFeature,
    UsageError,
)
from cedanafs.shard.codec import EXTENSIONS, Codec, codec_of
from cedanafs.shard.commit import FOOTER_LEN, Footer, Index, commit_in, footer_in
from cedanafs.shard.contents import Contents
from cedanafs.shard.extents import Frame
from cedanafs.shard.format import HEADER_LEN, MAX_FRAME_LEN, Carrier, Header, Kind
from cedanafs.shard.records import Marker, parse
from cedanafs.shard.store import ShardFile, require_shards


@dataclass(frozen=True, slots=True)
class Opened:
    """What the last complete commit says, shard by shard, and how the shards end.

    `commit` 0 means that no commit ever completed: the contents are empty. `ends` is where the
    next writer goes on (behind the commit, or before the seal that it cuts off), `lengths` the
    shards' lengths; what lies between is not part of the checkpoint.
    """

    directory: Path
    files: list[ShardFile]
    codec: Codec
    commit: int = 0
    sealed: bool = False
    checkpoint: UUID | None = None
    created_ns: int = 0
    committed_ns: int = 0
    tool: str = ""
    next_seq: int = 0
    contents: Contents = field(default_factory=Contents)
    frames: list[list[Frame]] = field(default_factory=list)
    markers: list[bytes] = field(default_factory=list)
    commit_ends: list[int] = field(default_factory=list)
    ends: list[int] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)

    @property
    def torn_bytes(self) -> int:
        """Bytes behind the last complete commit, which a crash or a running writer left."""
        return sum(self.lengths) - sum(self.commit_ends)

    def close(self) -> None:
        for file in self.files:
            file.close()


def open_checkpoint(directory: Path) -> Opened:
    """Open the checkpoint in *directory* for reading.

    Raises: CheckpointMissing, CheckpointIncomplete, MixedShards, CorruptShard, UnknownFeature,
    StoreError; each names the shard.
    """
    files: list[ShardFile] = []
    try:
        for path in require_shards(directory):
            files.append(ShardFile.open(path))
        return _opened(directory, files)
    except BaseException:
        for file in files:
            file.close()
        raise


def walk(
    file: ShardFile, carrier: Carrier, end: int, at: int = 0
) -> Iterator[tuple[int, Header, int]]:
    """Each frame and commit from *at* on: where its header begins, the header, where its body.

    Stops at *end*. Raises: CorruptShard at the first byte that is not what was written.
    """
    unit_len = carrier.unit_len(HEADER_LEN)
    while at < end:
        with at_place(file, at):
            data = file.read_at(at, min(unit_len, end - at))
            blob, used = carrier.unhide(data, HEADER_LEN)
            header = Header.decode(blob)
            body = at + used
            if header.stored_len > end - body:
                raise CorruptShard(f"a frame of {header.stored_len} bytes does not end in the file")
        yield at, header, body
        at = body + header.stored_len


class at_place:
    """Adds shard and offset to the CorruptShard that leaves the block."""

    def __init__(self, file: ShardFile, offset: int) -> None:
        self._file, self._offset = file, offset

    def __enter__(self) -> None:
        pass

    def __exit__(self, _: object, exc: BaseException | None, __: object) -> None:
        if type(exc) is CorruptShard and not str(exc).startswith(str(self._file.path)):
            raise CorruptShard(f"{self._file.path} at offset {self._offset}: {exc}") from None


def _opened(directory: Path, files: list[ShardFile]) -> Opened:
    codec = codec_of(EXTENSIONS[files[0].path.suffix])
    carrier = Carrier(codec)
    lengths = [file.length() for file in files]
    found = [
        _last_commit(file, carrier, length) for file, length in zip(files, lengths, strict=True)
    ]
    commit = _common_commit(directory, files, found)
    if commit == 0:
        zeros = [0] * len(files)
        return Opened(
            directory, files, codec, lengths=lengths, commit_ends=zeros, ends=zeros,
            frames=[[] for _ in files], markers=[b"" for _ in files],
        )  # fmt: skip
    places = [
        _at_commit(file, carrier, place, commit)
        for file, place in zip(files, found, strict=True)
        if place is not None
    ]
    footers = [footer for footer, _ in places]
    indexes = [
        _read_index(file, carrier, footer, end)
        for file, (footer, end) in zip(files, places, strict=True)
    ]
    _check_set(directory, files, footers, indexes)
    frames = [_frames(file, index) for file, index in zip(files, indexes, strict=True)]
    first = indexes[0]
    sealed = footers[0].sealed
    return Opened(
        directory,
        files,
        _codec_said(files[0], codec, first),
        commit=commit,
        sealed=sealed,
        checkpoint=first.checkpoint,
        created_ns=first.created_ns,
        committed_ns=first.committed_ns,
        tool=first.tool,
        next_seq=first.content_seq if sealed else footers[0].next_seq,
        contents=_replay(files, frames, indexes),
        frames=frames,
        markers=[index.markers for index in indexes],
        commit_ends=[end for _, end in places],
        ends=[
            index.content_end if sealed else end
            for index, (_, end) in zip(indexes, places, strict=True)
        ],
        lengths=lengths,
    )


def _last_commit(file: ShardFile, carrier: Carrier, length: int) -> tuple[Footer, int] | None:
    """The footer of the shard's last whole commit and where it ends; None where there is none."""
    if length == 0:
        return None
    footer = _footer_before(file, carrier, length)
    if footer is not None:
        return footer, length
    last: tuple[Footer, int] | None = None
    try:
        for _, header, body in walk(file, carrier, length):
            end = body + header.stored_len
            if header.kind == Kind.COMMIT and (footer := _footer_before(file, carrier, end)):
                last = footer, end
    except CorruptShard as torn:
        if last is None:
            # Nothing of ours at the very beginning: not a torn shard, but something else.
            try:
                next(walk(file, carrier, length))
            except CorruptShard:
                raise CorruptShard(
                    f"{file.path} is not a shard of cedanafs, or its beginning is damaged: {torn}"
                ) from None
    return last


def _footer_before(file: ShardFile, carrier: Carrier, end: int) -> Footer | None:
    length = FOOTER_LEN + carrier.codec.hide_tail
    if end < length:
        return None
    try:
        footer = footer_in(file.read_at(end - length, length), carrier)
        return footer if footer.commit_offset < end else None
    except CorruptShard:
        return None


def _common_commit(
    directory: Path, files: Sequence[ShardFile], found: Sequence[tuple[Footer, int] | None]
) -> int:
    """The last commit that every shard has; 0 where none has one.

    A crash leaves shards at most one commit apart, and no footer before every shard has its
    index: anything else was put together wrongly.
    """
    present = [place[0] for place in found if place is not None]
    if not present:
        return 0
    owner, _ = Counter(footer.checkpoint for footer in present).most_common(1)[0]
    for k, (file, place) in enumerate(zip(files, found, strict=True)):
        if place is None:
            continue
        footer = place[0]
        if footer.checkpoint != owner:
            raise MixedShards(f"{file.path} belongs to another checkpoint than its neighbours")
        if footer.shard != k:
            raise MixedShards(
                f"{file.path} is shard {footer.shard} of this checkpoint, not {k}: "
                "shards were swapped or renamed"
            )
    commits = [place[0].commit if place else 0 for place in found]
    low, high = min(commits), max(commits)
    behind = files[commits.index(low)]
    empty = low < high and behind.length() == 0
    if high - low > 1 or empty:
        what = "is empty" if empty else f"is at commit {low}"
        raise MixedShards(
            f"{behind.path} {what}, other shards are at commit {high}: "
            "it was cut short, or comes from an older copy"
        )
    return low


def _at_commit(
    file: ShardFile, carrier: Carrier, place: tuple[Footer, int], commit: int
) -> tuple[Footer, int]:
    footer, end = place
    if footer.commit != commit:
        end = footer.previous_end
        previous = _footer_before(file, carrier, end)
        if previous is None or previous.commit != commit:
            raise CorruptShard(
                f"{file.path} at offset {end}: the footer of commit {commit} is gone"
            )
        footer = previous
    return footer, end


def _read_index(file: ShardFile, carrier: Carrier, footer: Footer, end: int) -> Index:
    with at_place(file, footer.commit_offset):
        units = file.read_at(footer.commit_offset, end - footer.commit_offset)
        index, said = commit_in(units, carrier, whole=False)
        if said != footer:
            raise CorruptShard("the footer is not the one that was found")
        if index.content_end > footer.commit_offset:
            raise CorruptShard("the index speaks of bytes behind it")
        return index


def _codec_said(file: ShardFile, expected: Codec, index: Index) -> Codec:
    try:
        codec = codec_of(index.codec)
    except UsageError as exc:
        raise UnknownFeature(f"{file.path}: {exc}: use a newer cedanafs") from None
    if codec.name != expected.name:
        raise CorruptShard(
            f"{file.path} holds {codec.name}, not {expected.name}: "
            f"rename the shards to img-k{codec.extension}"
        )
    return codec


def _check_set(
    directory: Path,
    files: Sequence[ShardFile],
    footers: Sequence[Footer],
    indexes: Sequence[Index],
) -> None:
    first = indexes[0]
    if first.shards > len(files):
        suffix = files[0].path.suffix
        names = ", ".join(f"img-{k}{suffix}" for k in range(len(files), first.shards))
        raise CheckpointIncomplete(
            f"{directory}: {names} missing: the checkpoint has {first.shards} shards"
        )
    if first.shards < len(files):
        raise MixedShards(
            f"{files[first.shards].path} is one too many: the checkpoint has {first.shards} shards"
        )
    agreed = _common(first, footers[0])
    for file, index, footer in zip(files, indexes, footers, strict=True):
        if _common(index, footer) != agreed:
            raise MixedShards(f"{file.path} does not agree with its neighbours on the commit")


def _common(index: Index, footer: Footer) -> tuple[object, ...]:
    """What all shards of one commit say alike."""
    return (
        (index.shards, index.codec, index.content_seq, index.created_ns, index.committed_ns),
        index.unfinished,
        (footer.sealed, footer.next_seq),
    )


def _frames(file: ShardFile, index: Index) -> list[Frame]:
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


def _records(
    file: ShardFile, frames: Sequence[Frame], index: Index
) -> Iterator[tuple[int, Marker, Frame, int]]:
    """Each record of a shard as (seq, marker, frame, where its payload lies in the frame)."""
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


def _replay(
    files: Sequence[ShardFile], frames: Sequence[Sequence[Frame]], indexes: Sequence[Index]
) -> Contents:
    contents = Contents()
    streams = [_records(*each) for each in zip(files, frames, indexes, strict=True)]
    last_seq = -1
    try:
        for seq, marker, frame, at in heapq.merge(*streams, key=lambda record: record[0]):
            if seq == last_seq:
                raise CorruptShard(f"two records have the sequence number {seq}")
            last_seq = seq
            contents.apply(marker, frame, at)
    except CheckpointError as exc:
        if str(exc).startswith(str(files[0].path.parent)):
            raise
        raise CorruptShard(f"{files[0].path.parent}: {exc}") from exc
    contents.drop_hidden()
    for name in indexes[0].unfinished:
        if (image := contents.images.get(name)) is not None:
            image.unfinished = True
    return contents
