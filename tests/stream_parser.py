"""A strict reader of criu-image-streamer's wire format, written from its description alone.

It shares no code with cedanafs, so that what both agree on is the format and not a habit. Where
the real readers are lenient (a file that never ends, a number that is skipped) it is not.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

MARKER_LIMIT = 10_240  # the real readers panic at this length
BOOKKEEPING = ".cedanafs"  # the extra, empty file in streams of codec none

SEQ, FILENAME, FILE_DATA, FILE_EOF, IMAGE_EOF = range(1, 6)
BODIES = {FILENAME: "filename", FILE_DATA: "data", FILE_EOF: "file_eof", IMAGE_EOF: "image_eof"}


class StreamError(ValueError):
    """The stream is not one that criu-image-streamer would have written."""


def files_of(shards: Iterable[bytes]) -> dict[str, bytes]:
    """The files in the decoded *shards* of one image, by name. Raises: StreamError."""
    records: dict[int, tuple[str, str | int, bytes]] = {}
    for k, stream in enumerate(shards):
        last = -1
        for seq, body, value, payload in _records(stream):
            if seq <= last:
                raise StreamError(f"shard {k}: seq {seq} after {last}")
            if seq in records:
                raise StreamError(f"seq {seq} twice")
            last = seq
            records[seq] = body, value, payload
    if sorted(records) != list(range(len(records))):
        raise StreamError("seq has a gap, or does not begin with 0")
    files: dict[str, bytearray] = {}
    ended: set[str] = set()
    current: str | None = None
    for seq in range(len(records)):
        body, value, payload = records[seq]
        if body == "image_eof":
            if seq != len(records) - 1:
                raise StreamError(f"image_eof is seq {seq}, but records follow")
            if open_files := files.keys() - ended:
                raise StreamError(f"image_eof, but no file_eof of {sorted(open_files)}")
            return {name: bytes(data) for name, data in files.items()}
        if body == "filename":
            current = str(value)
            files.setdefault(current, bytearray())
        elif current is None:
            raise StreamError(f"{body} at seq {seq}, but no file is selected")
        elif current in ended:
            raise StreamError(f"{body} at seq {seq}, but {current} has ended")
        elif body == "data":
            files[current] += payload
        else:
            ended.add(current)
            current = None
    raise StreamError("no image_eof")


def _records(stream: bytes) -> Iterator[tuple[int, str, str | int, bytes]]:
    """Each record of one shard as (seq, which body, its value, payload)."""
    at = 0
    while at < len(stream):
        length = int.from_bytes(_take(stream, at, 4), "little")
        if length >= MARKER_LIMIT:
            raise StreamError(f"marker of {length} bytes")
        seq, body, value = _marker(_take(stream, at + 4, length))
        at += 4 + length
        payload = b""
        if body == "data":
            payload = _take(stream, at, int(value))
            at += len(payload)
        yield seq, body, value, payload


def _marker(message: bytes) -> tuple[int, str, str | int]:
    seq = 0
    body: tuple[str, str | int] | None = None
    at = 0
    while at < len(message):
        key, at = _varint(message, at)
        field, wire = key >> 3, key & 7
        value: int | bytes
        if wire == 0:
            value, at = _varint(message, at)
        elif wire == 1:
            value, at = _take(message, at, 8), at + 8
        elif wire == 2:
            length, at = _varint(message, at)
            value, at = _take(message, at, length), at + length
        elif wire == 5:
            value, at = _take(message, at, 4), at + 4
        else:
            raise StreamError(f"wire type {wire}")
        if field == 0:
            raise StreamError("field number 0")
        if field > IMAGE_EOF:
            continue  # not theirs: skipped
        if (wire == 2) != (field == FILENAME) or wire in (1, 5):
            raise StreamError(f"field {field} with wire type {wire}")
        if isinstance(value, bytes):
            text: str | int = value.decode("utf-8")
        else:
            text = value
        if field == SEQ:
            assert isinstance(text, int)
            seq = text
            continue
        if body is not None:
            raise StreamError(f"a marker with both {body[0]} and {BODIES[field]}")
        if field in (FILE_EOF, IMAGE_EOF) and text != 1:
            raise StreamError(f"{BODIES[field]} is {text}")
        if (field == FILENAME and text in ("", ".", "..")) or "/" in str(text):
            raise StreamError(f"file name {text!r}")
        body = BODIES[field], text
    if body is None:
        raise StreamError("a marker that says nothing")
    return seq, *body


def _varint(message: bytes, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        byte = _take(message, at, 1)[0]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            if value >= 1 << 64:
                raise StreamError("a number of more than 64 bits")
            return value, at
    raise StreamError("a number of more than 64 bits")


def _take(data: bytes, at: int, length: int) -> bytes:
    if at + length > len(data):
        raise StreamError(f"cut short: {length} bytes wanted at {at} of {len(data)}")
    return data[at : at + length]
