"""A commit ⇄ bytes: the index of each shard, and the footer that ends it.  PURE.

    commit = header  index-piece { index-piece }  footer

The header is one of kind COMMIT: its checksum is over the index, its `raw_len` the index's
length, its `stored_len` that of the units behind it, pieces and footer.
Source: docs/format.md#commit, version 1.
"""

from __future__ import annotations

import errno
import json
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final
from uuid import UUID

import xxhash

from cedanafs.errors import CorruptShard, StoreError, UnknownFeature
from cedanafs.shard.contents import is_image_name
from cedanafs.shard.extents import Frame
from cedanafs.shard.format import (
    HEADER_LEN,
    MAX_INDEX_LEN,
    MAX_SEQ,
    MAX_SHARDS,
    VERSION,
    Carrier,
    Header,
    Kind,
    checked,
    checksum,
    known_version,
    unchecked,
)
from cedanafs.shard.records import Marker, encode, parse

BASE_FEATURE: Final = "base"
KNOWN_FEATURES: Final[frozenset[str]] = frozenset({BASE_FEATURE})

_FOOTER: Final = struct.Struct("<4sBBHQQQQ16s")
FOOTER_MAGIC: Final = b"CdEn"
_INDEX_MAGIC: Final = b"CdIx"
_INDEX_HEAD: Final = struct.Struct("<4sI")
_FRAME_ROW: Final = struct.Struct("<QIIQI")

MAX_HEAD_LEN: Final = 4 << 20
"""Most bytes of an index's JSON head, of which names of images being written can be the most."""

_MAX_WORD_LEN: Final = 100  # of what people get to see: codec, tool, a feature

FOOTER_LEN: Final = _FOOTER.size + 8
FOOTER_DEPENDS: Final = (range(32, 40), range(56, 64))
"""The bytes of a footer that the shard's own index does not determine: next_seq, checksum."""


@dataclass(frozen=True, slots=True)
class Footer:
    """The last unit of a commit.

    `commit_offset` is where the commit's units begin, `previous_end` where the commit before
    it ended (0: there was none), `next_seq` the first sequence number after it.
    """

    shard: int
    sealed: bool
    commit: int
    commit_offset: int
    previous_end: int
    next_seq: int
    checkpoint: UUID

    def encode(self) -> bytes:
        return checked(
            _FOOTER.pack(
                FOOTER_MAGIC,
                VERSION,
                self.sealed,
                self.shard,
                self.commit,
                self.commit_offset,
                self.previous_end,
                self.next_seq,
                self.checkpoint.bytes,
            )
        )

    @classmethod
    def decode(cls, blob: bytes) -> Footer:
        """Raises: CorruptShard, UnknownFeature."""
        body = unchecked(blob, FOOTER_LEN, FOOTER_MAGIC, "footer")
        _, version, sealed, shard, commit, offset, previous, seq, uuid = _FOOTER.unpack(body)
        known_version(version)
        if max(commit, seq) > MAX_SEQ:
            raise CorruptShard(f"footer with commit {commit} and sequence number {seq}")
        return cls(shard, bool(sealed), commit, offset, previous, seq, UUID(bytes=uuid))

    def belongs_to(self, index: Index) -> bool:
        return (
            (self.checkpoint, self.shard, self.commit)
            == (index.checkpoint, index.shard, index.commit)
        ) and index.content_seq <= self.next_seq


@dataclass(frozen=True, slots=True)
class FrameRow:
    """Where a frame's stored bytes lie in its shard, and how many records they hold."""

    offset: int
    stored_len: int
    raw_len: int
    checksum: int
    records: int


@dataclass(frozen=True, slots=True)
class Base:
    """The checkpoint that patches refer to, as it was then; it may have grown since.

    `name` is its directory's, beside that of the checkpoint which refers to it; of each shard
    the first `frames` frames, and `markers` bytes of markers, are meant, and `digest` is theirs.
    """

    name: str
    checkpoint: UUID
    commit: int
    frames: tuple[int, ...]
    markers: tuple[int, ...]
    digest: str

    def as_json(self) -> dict[str, object]:
        return {
            "name": self.name,
            "checkpoint": self.checkpoint.hex,
            "commit": self.commit,
            "frames": list(self.frames),
            "markers": list(self.markers),
            "digest": self.digest,
        }

    @classmethod
    def from_json(cls, said: dict[str, Any]) -> Base:
        """Raises: ValueError, KeyError, TypeError."""
        frames, markers = (
            tuple(_natural({"": each}, "") for each in said[key]) for key in ("frames", "markers")
        )
        if not is_image_name(said["name"]) or not 1 <= len(frames) == len(markers) <= MAX_SHARDS:
            raise ValueError(f"base {said['name']!r}")
        return cls(
            name=said["name"],
            checkpoint=UUID(hex=said["checkpoint"]),
            commit=_natural(said, "commit", MAX_SEQ),
            frames=frames,
            markers=markers,
            digest=_word(said["digest"], "digest"),
        )


def digest_of(shards: Iterable[tuple[Sequence[Frame | FrameRow], bytes]]) -> str:
    """XXH3-128 over the rows and the markers of each shard, one after the other."""
    state = xxhash.xxh3_128()
    for frames, markers in shards:
        for f in frames:
            state.update(_FRAME_ROW.pack(f.offset, f.stored_len, f.raw_len, f.checksum, f.records))
        state.update(markers)
    return state.hexdigest()


@dataclass(frozen=True, slots=True)
class Index:
    """What a commit says of one shard: its frames, and their records' markers in order.

    `content_end` is where the shard's frames end, and `content_seq` the first sequence number
    after their records; what comes then is the commit's own. `unfinished` names the images that
    were still being written; `first_last` says that each shard got all of the commit at once, and
    the first one after all others. All shards of one commit agree on everything but `shard`,
    `content_end`, `frames` and `markers`.
    """

    checkpoint: UUID
    shards: int
    shard: int
    codec: str
    commit: int
    created_ns: int
    committed_ns: int
    tool: str
    content_seq: int
    content_end: int
    frames: Sequence[FrameRow]
    markers: bytes
    features: tuple[str, ...] = ()
    unfinished: tuple[str, ...] = ()
    base: Base | None = None
    first_last: bool = False

    def encode(self) -> bytes:
        head: dict[str, object] = {
            "checkpoint": self.checkpoint.hex,
            "shards": self.shards,
            "shard": self.shard,
            "codec": self.codec,
            "commit": self.commit,
            "created_ns": self.created_ns,
            "committed_ns": self.committed_ns,
            "tool": self.tool,
            "content_seq": self.content_seq,
            "content_end": self.content_end,
            "frames": len(self.frames),
            "features": [*self.features, *([BASE_FEATURE] if self.base else [])],
        }
        if self.base is not None:
            head["base"] = self.base.as_json()
        if self.unfinished:
            head["unfinished"] = list(self.unfinished)
        if self.first_last:
            head["first_last"] = True
        text = json.dumps(head, separators=(",", ":")).encode()
        if len(text) > MAX_HEAD_LEN:
            raise StoreError("too many unfinished files for one index", os_errno=errno.EFBIG)
        rows = b"".join(
            _FRAME_ROW.pack(f.offset, f.stored_len, f.raw_len, f.checksum, f.records)
            for f in self.frames
        )
        return _INDEX_HEAD.pack(_INDEX_MAGIC, len(text)) + text + rows + self.markers

    @classmethod
    def decode(cls, blob: bytes) -> Index:
        """Raises: CorruptShard, UnknownFeature (naming the feature)."""
        if len(blob) < _INDEX_HEAD.size:
            raise CorruptShard("index cut short")
        magic, head_len = _INDEX_HEAD.unpack_from(blob)
        at = _INDEX_HEAD.size + head_len
        if magic != _INDEX_MAGIC or at > len(blob) or head_len > MAX_HEAD_LEN:
            raise CorruptShard("not an index")
        try:
            head = json.loads(blob[_INDEX_HEAD.size : at])
            features = tuple(_word(f, "feature") for f in head["features"])
            if unknown := sorted(set(features) - KNOWN_FEATURES):
                raise UnknownFeature(
                    f"the checkpoint needs {', '.join(unknown[:9])}, "
                    "which this version does not know: use a newer cedanafs"
                )
            if (BASE_FEATURE in features) != ("base" in head):
                raise ValueError("feature base, and no base")
            count = _natural(head, "frames")
            rows_end = at + count * _FRAME_ROW.size
            if rows_end > len(blob):
                raise CorruptShard("index with fewer frames than it says")
            return cls(
                checkpoint=UUID(hex=head["checkpoint"]),
                shards=_natural(head, "shards", MAX_SHARDS),
                shard=_natural(head, "shard", MAX_SHARDS),
                codec=_word(head["codec"], "codec"),
                commit=_natural(head, "commit", MAX_SEQ),
                created_ns=_natural(head, "created_ns"),
                committed_ns=_natural(head, "committed_ns"),
                tool=_word(head["tool"], "tool"),
                content_seq=_natural(head, "content_seq", MAX_SEQ),
                content_end=_natural(head, "content_end"),
                frames=[FrameRow(*row) for row in _FRAME_ROW.iter_unpack(blob[at:rows_end])],
                markers=blob[rows_end:],
                features=tuple(f for f in features if f != BASE_FEATURE),
                base=Base.from_json(head["base"]) if "base" in head else None,
                unfinished=tuple(str(name) for name in head.get("unfinished", ())),
                first_last=head.get("first_last") is True,
            )
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as exc:
            raise CorruptShard(f"index head does not make sense: {repr(exc)[:200]}") from exc


def units_of_commit(
    carrier: Carrier,
    indexes: Sequence[Index],
    offsets: Sequence[int],
    previous_ends: Sequence[int],
    seq: int,
    *,
    sealed: bool,
) -> tuple[list[list[bytes]], int]:
    """The units to append to each shard at *offsets*, and the first sequence number after them.

    Units take sequence numbers from *seq* on where the carrier is records; shard 0's come last,
    as a seal ends with the image_eof record there.
    Raises: StoreError(EFBIG) when no reader would take so long an index.
    """
    blobs = [index.encode() for index in indexes]
    if sum(map(len, blobs)) > MAX_INDEX_LEN:
        raise StoreError(
            f"the index would be longer than {MAX_INDEX_LEN >> 20} MiB: too many files or writes",
            os_errno=errno.EFBIG,
        )
    pieces = [carrier.pieces(blob) for blob in blobs]
    next_seq = seq + carrier.seqs_per_unit * (sum(2 + len(p) for p in pieces) + sealed)
    shards: list[list[bytes]] = [[] for _ in indexes]
    for k in reversed(range(len(indexes))):
        index = indexes[k]
        header_seq, seq = seq, seq + carrier.seqs_per_unit
        behind: list[bytes] = []
        for piece in pieces[k]:
            behind.append(carrier.hide(piece, seq))
            seq += carrier.seqs_per_unit
        footer = Footer(
            k, sealed, index.commit, offsets[k], previous_ends[k], next_seq, index.checkpoint
        )
        behind.append(footer_unit(footer, carrier, seq))
        seq += carrier.seqs_per_unit
        header = Header(
            Kind.COMMIT,
            k,
            stored_len=sum(map(len, behind)),
            raw_len=len(blobs[k]),
            checksum=checksum(blobs[k]),
            checkpoint=index.checkpoint,
        )
        shards[k] = [carrier.hide(header.encode(), header_seq), *behind]
    return shards, next_seq


def footer_in(tail: bytes, carrier: Carrier) -> Footer:
    """The footer in *tail*, the last bytes of a commit. Raises: CorruptShard."""
    end = len(tail) - carrier.codec.hide_tail
    return Footer.decode(tail[max(end - FOOTER_LEN, 0) : end])


def footer_unit(footer: Footer, carrier: Carrier, seq: int) -> bytes:
    """The bytes that end a commit; their first sequence number, if they take one, is *seq*."""
    blob = footer.encode()
    if footer.sealed and footer.shard == 0 and not carrier.codec.hides:
        # The end of the bookkeeping file, then of the image; nothing may follow.
        return encode(Marker(seq=seq, file_eof=True)) + encode(
            Marker(seq=seq + 1, image_eof=True, hidden=blob)
        )
    return carrier.hide(blob, seq)


@dataclass(frozen=True, slots=True)
class IndexUnits:
    """The units of a commit but the last: where that begins and ends among them, and its seq."""

    index: Index
    footer_at: int
    end: int
    seq: int


def index_in(units: bytes, carrier: Carrier) -> IndexUnits:
    """What the commit at the start of *units* says, whether or not its footer is there.

    All but the footer must be what was written, bit for bit. Raises: CorruptShard, UnknownFeature.
    """
    blob, at = carrier.unhide(units, HEADER_LEN)
    header = Header.decode(blob)
    if header.kind != Kind.COMMIT:
        raise CorruptShard("not a commit")
    blob, used = carrier.unhide_pieces(units[at:], header.raw_len)
    if checksum(blob) != header.checksum:
        raise CorruptShard("index damaged: its checksum does not match")
    seq = 0
    if not carrier.codec.hides:
        seqs = [marker.seq for marker, _ in parse(units[: at + used], payloads=True)]
        seq = seqs[0] + len(seqs)
        if seqs != list(range(seqs[0], seq)):
            raise CorruptShard("a commit's records are out of order")
    return IndexUnits(Index.decode(blob), at + used, at + header.stored_len, seq)


def commit_in(units: bytes, carrier: Carrier) -> tuple[Index, Footer]:
    """What *units*, all the units of one commit, say; each must be what was written, bit for bit.

    Raises: CorruptShard, UnknownFeature.
    """
    found = index_in(units, carrier)
    rest = units[found.footer_at :]
    footer = footer_in(rest, carrier)
    if found.end != len(units) or rest != footer_unit(footer, carrier, found.seq):
        raise CorruptShard("footer damaged")
    if not footer.belongs_to(found.index):
        raise CorruptShard("index and footer do not belong together")
    return found.index, footer


def _natural(head: dict[str, Any], key: str, most: int = (1 << 64) - 1) -> int:
    value = head[key]
    if type(value) is not int or not 0 <= value <= most:
        raise ValueError(f"{key} is {value!r}")
    return value


def _word(value: object, what: str) -> str:
    """*value*, which people get to see."""
    if not isinstance(value, str) or len(value) > _MAX_WORD_LEN or not value.isprintable():
        raise ValueError(f"{what} is {value!r}")
    return value
