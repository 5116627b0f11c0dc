"""Records: one marker, then its payload; the truth that every shard holds.  PURE.

A marker is a small protobuf message behind a `u32 LE` length, as criu-image-streamer writes it.
Fields 1 to 5 are its own; fields from 101 on are ours, and every other reader skips them.
Source: docs/format.md#records.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, NewType

from cedanafs.errors import CorruptShard

Seq = NewType("Seq", int)
"""Position of a record in the order over all shards of a checkpoint; from 0, without gaps."""

MAX_MARKER_LEN: Final = 10_239
"""criu-image-streamer's readers panic at 10,240 bytes (tried)."""

BOOKKEEPING: Final = ".cedanafs"
"""Name of the file that carries bookkeeping in codec `none`; never an image file's name."""

_LENGTH: Final = struct.Struct("<I")
_U64_MAX: Final = (1 << 64) - 1

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5

_NUMBERS: Final = {
    1: "seq",
    3: "file_data",
    4: "file_eof",
    5: "image_eof",
    101: "offset",
    102: "mode",
    103: "uid",
    104: "gid",
    105: "mtime_ns",
    106: "truncate",
    107: "unlink",
    111: "patch_data",
}
_STRINGS: Final = {2: "filename", 108: "rename_to", 109: "symlink_to"}
_BLOBS: Final = {110: "hidden", 112: "runs"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Marker:
    """What one record says.

    Exactly one of filename, file_data, file_eof, image_eof, patch_data is set.

    `filename` selects the file that following records speak of, and creates it if it is new;
    with one of truncate, unlink, rename_to, symlink_to, mode, … it also changes that file.
    `file_data` is the payload's length in bytes; `offset` where it goes (absent: at the end).
    `patch_data` is the same of bytes that are in part a base's, as `runs` says; see `patches`.
    """

    seq: int
    filename: str | None = None
    file_data: int | None = None
    file_eof: bool = False
    image_eof: bool = False
    offset: int | None = None
    mode: int | None = None
    uid: int | None = None
    gid: int | None = None
    mtime_ns: int | None = None
    truncate: int | None = None
    unlink: bool = False
    rename_to: str | None = None
    symlink_to: str | None = None
    hidden: bytes | None = None
    patch_data: int | None = None
    runs: bytes | None = None

    @property
    def payload_len(self) -> int:
        """Bytes of payload that follow this marker."""
        return self.file_data or self.patch_data or 0


def encode(marker: Marker) -> bytes:
    """The marker with its length in front; the payload is the caller's to append."""
    body = bytearray()
    for number, name in _NUMBERS.items():
        value = getattr(marker, name)
        # False and None are left out; so is seq 0, as proto3 does. Other zeros mean something.
        if value is None or value is False or (number == 1 and value == 0):
            continue
        put_varint(body, number << 3 | _VARINT)
        put_varint(body, int(value))
    for number, name in _STRINGS.items():
        text = getattr(marker, name)
        if text is not None:
            _put_bytes(body, number, text.encode("utf-8", "surrogateescape"))
    for number, name in _BLOBS.items():
        blob = getattr(marker, name)
        if blob is not None:
            _put_bytes(body, number, blob)
    if len(body) > MAX_MARKER_LEN:
        raise ValueError(f"marker of {len(body)} bytes, at most {MAX_MARKER_LEN}")
    return _LENGTH.pack(len(body)) + bytes(body)


def decode(body: bytes) -> Marker:
    """The marker in *body* (without its length prefix). Unknown fields are skipped.

    Raises: CorruptShard when it is not a marker.
    """
    fields: dict[str, int | str | bytes | bool] = {"seq": 0}
    at, end = 0, len(body)
    while at < end:
        key, at = get_varint(body, at)
        number, wire = key >> 3, key & 7
        if wire == _VARINT:
            value, at = get_varint(body, at)
            if name := _NUMBERS.get(number):
                fields[name] = bool(value) if number in (4, 5, 107) else value
        elif wire == _BYTES:
            length, at = get_varint(body, at)
            if length > end - at:
                raise CorruptShard("marker: a field is longer than the marker")
            raw = body[at : at + length]
            at += length
            if name := _STRINGS.get(number):
                fields[name] = raw.decode("utf-8", "surrogateescape")
            elif name := _BLOBS.get(number):
                fields[name] = raw
        elif wire in (_FIXED64, _FIXED32):
            at += 8 if wire == _FIXED64 else 4
            if at > end:
                raise CorruptShard("marker: a field is longer than the marker")
        else:
            raise CorruptShard(f"marker: protobuf wire type {wire} is not known")
    marker = Marker(**fields)  # type: ignore[arg-type]
    bodies = (marker.filename is not None) + (marker.file_data is not None)
    bodies += marker.patch_data is not None
    if bodies + marker.file_eof + marker.image_eof != 1:
        raise CorruptShard("marker: not exactly one of filename, file_data, file_eof, image_eof")
    if marker.payload_len >= 1 << 32:
        raise CorruptShard(f"marker: payload of {marker.payload_len} bytes does not fit 32 bits")
    return marker


def parse(stream: bytes | memoryview, *, payloads: bool) -> Iterator[tuple[Marker, int]]:
    """Each marker of *stream* with the position after it, where its payload begins.

    With *payloads* the stream is the records themselves; without, the index's copy of the
    markers, in which no payload follows.
    Raises: CorruptShard when the stream ends inside a record or holds what is none.
    """
    at, end = 0, len(stream)
    while at < end:
        if end - at < _LENGTH.size:
            raise CorruptShard("record cut short in its length")
        (length,) = _LENGTH.unpack_from(stream, at)
        at += _LENGTH.size
        if length > MAX_MARKER_LEN:
            raise CorruptShard(f"marker of {length} bytes, at most {MAX_MARKER_LEN}")
        if length > end - at:
            raise CorruptShard("record cut short in its marker")
        marker = decode(bytes(stream[at : at + length]))
        at += length
        yield marker, at
        if payloads:
            if marker.payload_len > end - at:
                raise CorruptShard("record cut short in its payload")
            at += marker.payload_len


def put_varint(out: bytearray, value: int) -> None:
    if not 0 <= value <= _U64_MAX:
        raise ValueError(f"{value} does not fit an unsigned 64-bit field")
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)


def _put_bytes(out: bytearray, number: int, value: bytes) -> None:
    put_varint(out, number << 3 | _BYTES)
    put_varint(out, len(value))
    out += value


def get_varint(body: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while at < len(body):
        byte = body[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            if value > _U64_MAX:
                break
            return value, at
        shift += 7
        if shift > 63:
            break
    raise CorruptShard("marker: a number is cut short or too long")
