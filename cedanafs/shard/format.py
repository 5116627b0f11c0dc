"""Frame headers ⇄ bytes, and how bookkeeping hides in a shard.  PURE.

A shard is a run of frames, each behind its header, with commits in between. A header lies in a
unit that the codec's standard tool skips (`Codec.hide`), or, in codec `none`, in a field of a
record's marker. Source: docs/format.md#frames, version 1.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum, unique
from typing import Final
from uuid import UUID

import xxhash

from cedanafs.errors import CorruptShard, UnknownFeature
from cedanafs.shard.codec import Bytes, Codec
from cedanafs.shard.records import BOOKKEEPING, Marker, decode, encode

VERSION: Final = 1
MAX_SHARDS: Final = 256
MAX_FRAME_LEN: Final = 16 << 20
"""Most bytes that one frame may hold, decoded or stored; checked before any allocation.

Ours hold 2 MiB at most. A reader has several frames in memory at once, so this bounds what a
hostile shard of a few KiB can make it take.
"""

MAX_INDEX_LEN: Final = 256 << 20
"""Most bytes of index in one commit, over all its shards.

Some 70 bytes speak of 1 MiB of image, so this is enough for 3 TiB. A hostile one of 10-byte
records takes some two minutes and 4 GiB to open (tests/fuzz/test_bounds.py measures).
"""

MAX_COMMIT_LEN: Final = MAX_INDEX_LEN + MAX_INDEX_LEN // 64 + 4096
"""Most bytes that a shard's part of a commit takes, with the units that the index is cut into."""

MAX_SEQ: Final = 1 << 62
"""No sequence number is beyond it, so that whoever goes on writing has some left."""

_HEADER: Final = struct.Struct("<4sBBHIIQ16s")
_CHECK: Final = struct.Struct("<Q")
HEADER_MAGIC: Final = b"CdFr"

HEADER_LEN: Final = _HEADER.size + _CHECK.size


def checksum(*pieces: Bytes) -> int:
    """XXH3-64 of the stored bytes, one after the other; 30 GB/s, so it is checked at every read."""
    digest = xxhash.xxh3_64()
    for piece in pieces:
        digest.update(piece)
    return digest.intdigest()


@unique
class Kind(IntEnum):
    """What follows a header. A value is never reused."""

    DATA = 1
    COMMIT = 2


@dataclass(frozen=True, slots=True)
class Header:
    """Stands before each frame and each commit.

    `stored_len` bytes follow it in the shard, `checksum` is over them, and a data frame decodes
    to `raw_len` bytes of records.
    """

    kind: Kind
    shard: int
    stored_len: int
    raw_len: int
    checksum: int
    checkpoint: UUID

    def encode(self) -> bytes:
        return checked(
            _HEADER.pack(
                HEADER_MAGIC,
                VERSION,
                self.kind,
                self.shard,
                self.stored_len,
                self.raw_len,
                self.checksum,
                self.checkpoint.bytes,
            )
        )

    @classmethod
    def decode(cls, blob: bytes) -> Header:
        """Raises: CorruptShard, UnknownFeature."""
        body = unchecked(blob, HEADER_LEN, HEADER_MAGIC, "frame header")
        _, version, kind, shard, stored_len, raw_len, digest, uuid = _HEADER.unpack(body)
        known_version(version)
        if kind not in (Kind.DATA, Kind.COMMIT):
            raise CorruptShard(f"frame header of unknown kind {kind}")
        if kind == Kind.DATA and not 0 < max(stored_len, raw_len) <= MAX_FRAME_LEN:
            raise CorruptShard(f"frame header with lengths {stored_len} and {raw_len}")
        if kind == Kind.COMMIT and (stored_len > MAX_COMMIT_LEN or raw_len > MAX_INDEX_LEN):
            raise CorruptShard(f"commit header with lengths {stored_len} and {raw_len}")
        return cls(Kind(kind), shard, stored_len, raw_len, digest, UUID(bytes=uuid))


class Carrier:
    """Puts bookkeeping units into a shard of one codec, and finds them again.

    In codec `none` each unit is a record (`filename` is BOOKKEEPING, the unit a field of its
    marker) and takes a sequence number; elsewhere `seq` is ignored.
    """

    def __init__(self, codec: Codec) -> None:
        self.codec = codec
        self.seqs_per_unit = 0 if codec.hides else 1

    def hide(self, blob: bytes, seq: int = 0) -> bytes:
        if self.codec.hides:
            return self.codec.hide(blob)
        return encode(Marker(seq=seq, filename=BOOKKEEPING, hidden=blob))

    def pieces(self, blob: bytes) -> list[bytes]:
        """*blob* cut into what fits a unit."""
        most = self.codec.hide_max
        return [blob[at : at + most] for at in range(0, len(blob), most)]

    def unit_len(self, blob_len: int) -> int:
        """Most bytes that a unit with a blob of *blob_len* takes, for reading ahead."""
        codec = self.codec
        room = 0 if codec.hides else 64 + len(BOOKKEEPING)
        return codec.hide_head + blob_len + codec.hide_tail + room

    def unhide(self, data: bytes, blob_len: int) -> tuple[bytes, int]:
        """The blob in the unit at the start of *data*, and the unit's length.

        The unit must be what `hide` makes, bit for bit. Raises: CorruptShard.
        """
        codec = self.codec
        if not codec.hides:
            length = 4 + int.from_bytes(data[:4], "little")
            if len(data) < length:
                raise CorruptShard("bookkeeping record cut short")
            marker = decode(data[4:length])
            blob, seq = marker.hidden or b"", marker.seq
        else:
            blob, seq = data[codec.hide_head : codec.hide_head + blob_len], 0
        if len(blob) != blob_len or not data.startswith(unit := self.hide(blob, seq)):
            raise CorruptShard("not a bookkeeping unit")
        return blob, len(unit)

    def seq_of(self, unit: bytes) -> int | None:
        """The sequence number of *unit*, which `unhide` has found; None where units have none."""
        return decode(unit[4:]).seq if self.seqs_per_unit else None

    def unhide_pieces(self, data: bytes, total_len: int) -> tuple[bytes, int]:
        """The blob of *total_len* bytes that `pieces` cut, and the length of its units.

        Raises: CorruptShard.
        """
        blob = bytearray()
        at = 0
        while len(blob) < total_len:
            length = min(self.codec.hide_max, total_len - len(blob))
            piece, used = self.unhide(data[at : at + self.unit_len(length)], length)
            blob += piece
            at += used
        return bytes(blob), at


def checked(body: bytes) -> bytes:
    """*body* with its own checksum behind it."""
    return body + _CHECK.pack(checksum(body))


def unchecked(blob: bytes, length: int, magic: bytes, what: str) -> bytes:
    """The body that `checked` made *blob* of. Raises: CorruptShard."""
    if len(blob) != length or not blob.startswith(magic):
        raise CorruptShard(f"no {what} here")
    body = blob[: -_CHECK.size]
    if _CHECK.pack(checksum(body)) != blob[-_CHECK.size :]:
        raise CorruptShard(f"{what} damaged")
    return body


def known_version(version: int) -> None:
    """Raises: UnknownFeature."""
    if version != VERSION:
        raise UnknownFeature(
            f"format version {version}; this cedanafs reads {VERSION}: use a newer one"
        )
