"""Sets of shards that criu-image-streamer or Cedana's fork of it has written. Blocking.

They have no index and no checksums, so they are read through once, when they are opened. What is
compressed as one stream has no place where reading could begin: it is kept, cut into frames of
ours, in temporary files that vanish with their last user. Source: docs/interoperation.md.
"""

from __future__ import annotations

import errno
import heapq
import json
import os
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Final
from uuid import UUID

from cedanafs.errors import (
    CheckpointError,
    CheckpointIncomplete,
    CorruptShard,
    MixedShards,
    StoreError,
)
from cedanafs.shard.at_once import on_each
from cedanafs.shard.codec import Bytes, Codec, codec_of
from cedanafs.shard.commit import MAX_HEAD_LEN, FrameRow, Index
from cedanafs.shard.contents import Contents
from cedanafs.shard.extents import Frame
from cedanafs.shard.format import MAX_INDEX_LEN, MAX_SEQ, checksum
from cedanafs.shard.local import LocalShard
from cedanafs.shard.place import Place
from cedanafs.shard.reader import load_frame
from cedanafs.shard.records import MAX_MARKER_LEN, Marker, decode
from cedanafs.shard.replay import Record, frames_of, records_of
from cedanafs.shard.store import ShardFile
from cedanafs.shard.streams import Decoded

STREAMER: Final = "criu-image-streamer"
CEDANA: Final = "Cedana's streamer"

NAMES_FILE: Final = "metadata.json"
"""The last file on Cedana's first shard: a JSON array of the names of all others."""

MAX_CHUNK_LEN: Final = 8 << 20
"""Theirs are 258,048 bytes at most as they are written; their readers took this much (tried)."""

FRAME_BYTES: Final = 256 << 10
"""Decoded bytes at which a frame is cut: one of their chunks, which take turns on the shards.

With larger frames a reader would keep some from each shard at a time.
"""

_AT_ONCE: Final = min(os.cpu_count() or 1, 4)
"""Shards that are unpacked at a time; a hostile zstd stream takes 128 MiB for each."""

_KEPT_AS: Final = codec_of("lz4")
_NONE: Final = codec_of("none")


class Unpacked:
    """A shard of which the unpacked frames are read from a temporary file."""

    atomic: Final = True
    whole: Final = True

    def __init__(self, shard: ShardFile, length: int) -> None:
        self.checkpoint: UUID | None = None
        self.path, self.name = shard.path, shard.name
        self._length = length
        self._frames = temporary_file()

    def length(self) -> int:
        """Of the shard itself."""
        return self._length

    def read_at(self, offset: int, length: int) -> bytes:
        return self._frames.read_at(offset, length)

    def next_data(self, offset: int) -> int:
        return offset

    def write_at(self, offset: int, buffers: Sequence[Bytes]) -> None:
        try:
            self._frames.write_at(offset, buffers)
        except StoreError as exc:
            if exc.os_errno == errno.ENOSPC:
                raise StoreError(
                    f"no room in {self._frames.path} for what {self.path} unpacks to: set TMPDIR",
                    os_errno=errno.ENOSPC,
                ) from exc
            raise

    def sync(self) -> None:
        raise StoreError(f"{self.path}: {REFUSED}", os_errno=errno.EROFS)

    def truncate(self, length: int) -> None:
        self.sync()

    def lock_shared(self) -> None:
        pass

    def lock(self) -> None:
        self.sync()

    def close(self) -> None:
        self._frames.close()


REFUSED: Final = (
    "written by another streamer, and only read here: cedanafs convert makes a copy of ours"
)


def temporary_file() -> LocalShard:
    """A file without a name, in the directory that TMPDIR says or in /var/tmp; nobody else's.

    Not in /tmp, which is memory on many machines. Raises: StoreError.
    """
    directory = os.environ.get("TMPDIR") or "/var/tmp"
    try:
        with tempfile.TemporaryFile(dir=directory) as nameless:
            return LocalShard(Path(directory), os.dup(nameless.fileno()))
    except OSError as exc:
        raise StoreError(
            f"cannot make a temporary file in {directory}: {exc.strerror}: set TMPDIR",
            os_errno=exc.errno,
        ) from exc


@dataclass(frozen=True, slots=True)
class Found:
    """What a set of another streamer holds; frames of `files`, by `codec` if that is not none."""

    tool: str
    contents: Contents
    files: list[ShardFile]
    frames: list[list[Frame]]
    markers: list[bytes]


@dataclass(slots=True)
class _Shard:
    """A shard that was read to its end.

    It `begins` a sequence with number 0; `ends_with_names`: its last file is Cedana's list.
    """

    file: ShardFile
    index: Index
    frames: list[Frame]
    begins: bool
    ends_with_names: bool

    def records(self) -> Iterator[Record]:
        return records_of(self.file, self.frames, self.index)


def read_through(
    directory: Place, files: Sequence[ShardFile], codec: Codec, lengths: Sequence[int]
) -> Found:
    """The set in *directory*, whose shards have these *lengths*.

    Where they are compressed the result has files of its own. Raises: CorruptShard, MixedShards,
    CheckpointIncomplete, StoreError.
    """
    unpacked: list[ShardFile] = []
    try:
        for file, length in zip(files, lengths, strict=True):
            unpacked.append(file if codec.name == "none" else Unpacked(file, length))
        shards = _all_scanned(directory, files, unpacked, codec, lengths)
        if unpacked[0] is not files[0]:
            for frame in chain.from_iterable(shard.frames for shard in shards):
                frame.home = unpacked, _KEPT_AS
        contents = Contents()
        try:
            tool = _replay(shards, contents)
        except (CorruptShard, MixedShards, CheckpointIncomplete) as exc:
            if str(exc).startswith(str(directory)):
                raise
            raise type(exc)(f"{directory}: {exc}") from None
        contents.drop_hidden()
    except BaseException as exc:
        for file in unpacked:
            if file not in files:
                file.close()
        if isinstance(exc, CheckpointError):
            exc.repairable = False  # that is for what has commits
        raise
    return Found(
        tool,
        contents,
        unpacked,
        [shard.frames for shard in shards],
        [shard.index.markers for shard in shards],
    )


def _all_scanned(
    directory: Place,
    files: Sequence[ShardFile],
    unpacked: list[ShardFile],
    codec: Codec,
    lengths: Sequence[int],
) -> list[_Shard]:
    shards: list[_Shard] = []
    jobs = list(zip(range(len(files)), files, unpacked, lengths, strict=True))
    for first in range(0, len(jobs), _AT_ONCE):
        shards += on_each(lambda job: _scanned(*job, codec), jobs[first : first + _AT_ONCE])
        if sum(len(shard.index.markers) for shard in shards) > MAX_INDEX_LEN:
            raise CorruptShard(f"{directory}: more than {MAX_INDEX_LEN} bytes of markers")
    return shards


def _scanned(k: int, file: ShardFile, unpacked: ShardFile, length: int, codec: Codec) -> _Shard:
    frames = _Cutter(unpacked, keep=unpacked is not file)
    stream = Decoded(file, codec, length)
    begins = False
    last: Marker | None = None
    last_name = ""
    try:
        while (record := _next_record(stream)) is not None:
            marker, head, payload = record
            if last is None:
                begins = marker.seq == 0
            elif last.image_eof:
                raise CorruptShard("records behind the end of the image")
            last, last_name = marker, marker.filename or last_name
            frames.add(head, payload)
        frames.cut()
    except CorruptShard as exc:
        raise CorruptShard(f"{file.path}, decoded up to offset {frames.taken}: {exc}") from None
    index = Index(
        checkpoint=UUID(int=0), shards=0, shard=k, codec=codec.name, commit=1, created_ns=0,
        committed_ns=0, tool="", content_seq=MAX_SEQ, content_end=frames.end, frames=frames.rows,
        markers=bytes(frames.markers),
    )  # fmt: skip
    named = last is not None and last.file_eof and last_name == NAMES_FILE
    return _Shard(unpacked, index, frames_of(unpacked, index), begins, named)


class _Cutter:
    """Cuts records into frames, and has *file* *keep* them, where they are not in it already."""

    def __init__(self, file: ShardFile, *, keep: bool) -> None:
        self._file, self._keep = file, keep
        self.rows: list[FrameRow] = []
        self.markers = bytearray()
        self.taken = 0
        self.end = 0
        self._pieces: list[Bytes] = []
        self._raw_len = self._records = 0

    def add(self, head: bytes, payload: bytes) -> None:
        self.markers += head
        if len(self.markers) > MAX_INDEX_LEN:
            raise CorruptShard(f"more than {MAX_INDEX_LEN} bytes of markers")
        self._pieces += (head, payload)
        self._records += 1
        length = len(head) + len(payload)
        self._raw_len += length
        self.taken += length
        if self._raw_len >= FRAME_BYTES:
            self.cut()

    def cut(self) -> None:
        if not self._records:
            return
        # Joined, as it is not much, and may be in thousands of pieces.
        stored: Sequence[Bytes] = [b"".join(self._pieces)]
        if self._keep:
            stored = _KEPT_AS.compress(stored)
            self._file.write_at(self.end, stored)
        stored_len = sum(map(len, stored))
        row = FrameRow(self.end, stored_len, self._raw_len, checksum(*stored), self._records)
        self.rows.append(row)
        self.end += stored_len
        self._pieces = []
        self._raw_len = self._records = 0


def _next_record(stream: Decoded) -> tuple[Marker, bytes, bytes] | None:
    """The next record: what it says, its marker with the length before it, its payload."""
    prefix = stream.take(4)
    if not prefix:
        return None
    length = int.from_bytes(prefix, "little")
    if len(prefix) == 4 and length > MAX_MARKER_LEN:
        raise CorruptShard(f"a marker of {length} bytes, at most {MAX_MARKER_LEN}")
    body = stream.take(length)
    if len(prefix) < 4 or len(body) < length:
        raise CorruptShard("cut short in a marker")
    marker = decode(body)
    if marker.payload_len > MAX_CHUNK_LEN:
        raise CorruptShard(f"a chunk of {marker.payload_len} bytes, at most {MAX_CHUNK_LEN}")
    payload = stream.take(marker.payload_len)
    if len(payload) < marker.payload_len:
        raise CorruptShard("cut short in a chunk")
    return marker, prefix + body, payload


def _replay(shards: Sequence[_Shard], contents: Contents) -> str:
    """Let all records take effect. Returns who has written them."""
    first, *others = shards
    two_sequences = first.begins and any(shard.begins for shard in others)
    if not two_sequences and not (first.ends_with_names and others):
        _apply(shards, contents, last=True)
        contents.check_resolved()
        return STREAMER
    _apply([first], contents, last=False)
    _apply(others, contents, last=True)
    contents.check_resolved()
    _check_names(shards, contents)
    return CEDANA


def _apply(shards: Sequence[_Shard], contents: Contents, *, last: bool) -> None:
    """Apply the records of *shards*, which are one sequence; *last*: it ends the image."""
    ended = False
    records = heapq.merge(*(shard.records() for shard in shards), key=lambda record: record[0])
    for expected, (seq, marker, frame, at) in enumerate(records):
        if seq < expected:
            raise MixedShards(f"record {seq} is there twice: shards of two images lie together")
        if seq > expected:
            raise CheckpointIncomplete(
                f"record {expected} is missing: a shard is missing, or was cut short"
            )
        if ended:
            raise CorruptShard("records behind the end of the image")
        contents.apply(marker, frame, at)
        ended = marker.image_eof
    if ended != last:
        raise CheckpointIncomplete("the end of the image is missing, or not where it belongs")


def _check_names(shards: Sequence[_Shard], contents: Contents) -> None:
    """What Cedana's last small file names is there; CRIU never sees that file."""
    image = contents.images.pop(NAMES_FILE, None)
    if image is None or contents.current_name is not None or image.size > MAX_HEAD_LEN:
        raise CheckpointIncomplete(
            f"no {NAMES_FILE} at the end of img-0: it was cut short, or is of another image"
        )
    raw = bytearray()
    for piece in image.extents.slices(0, image.size):
        assert piece.frame is not None
        files, codec = piece.frame.home or ([shard.file for shard in shards], _NONE)
        records = load_frame(files[piece.frame.shard], codec, piece.frame)
        raw += records[piece.at : piece.at + piece.length]
    try:
        names = json.loads(raw)
    except (ValueError, RecursionError):
        names = None
    if not isinstance(names, list):
        raise CorruptShard(f"{NAMES_FILE} is no list of names")
    for name in names:
        if name not in contents.images:
            raise CheckpointIncomplete(f"{str(name)[:60]!r} is missing, which {NAMES_FILE} names")
