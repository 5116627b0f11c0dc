"""A strict reader of criu-image-streamer's wire format, written from its description alone.

It shares no code with cedanafs, so that what both agree on is the format and not a habit. Where
the real readers are lenient (a file that never ends, a number that is skipped) it is not.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence

MARKER_LIMIT = 10_240  # the real readers panic at this length
CHUNK_LIMIT = 258_048  # as the real writers cut; readers took 8 MiB
NAMES = "metadata.json"
LARGE_FILES = (
    r"pages-\d+\.img$",
    r"ghost-file-\d+\.img$",
    r"tcp-stream-.*\.img$",
    r"rw-layer-\d+\.img$",
)
GPU_FILES = tuple(f"gpu-{kind}-" for kind in (
    "calls", "mem", "ctx", "hostmem", "ctxshm", "virtmem", "envvars",
))  # fmt: skip
BOOKKEEPING = ".cedanafs"  # the extra, empty file in streams of codec none

SEQ, FILENAME, FILE_DATA, FILE_EOF, IMAGE_EOF = range(1, 6)
BODIES = {FILENAME: "filename", FILE_DATA: "data", FILE_EOF: "file_eof", IMAGE_EOF: "image_eof"}


class StreamError(ValueError):
    """The stream is not one that criu-image-streamer would have written."""


def files_of(shards: Iterable[bytes], *, chunk_limit: int = 8 << 20) -> dict[str, bytes]:
    """The files in the decoded *shards* of one image, by name. Raises: StreamError."""
    return _applied(_in_order(shards, chunk_limit), image_ends=True)


def cedana_files_of(shards: Sequence[bytes]) -> dict[str, bytes]:
    """The same in the layout of Cedana's fork, `metadata.json` not among them."""
    if len(shards) < 2:
        raise StreamError("Cedana's sets have two shards at least")
    small = _applied(_in_order(shards[:1], CHUNK_LIMIT), image_ends=False)
    large = _applied(_in_order(shards[1:], CHUNK_LIMIT), image_ends=True)
    if not small or [*small][-1] != NAMES:
        raise StreamError(f"the last small file is not {NAMES}")
    names = json.loads(small.pop(NAMES))
    if sorted(names) != sorted([*small, *large]):
        raise StreamError(f"{NAMES} names {names}, there are {[*small, *large]}")
    for name in small:
        if _is_large(name):
            raise StreamError(f"{name} among the small files")
    for name in large:
        if not _is_large(name):
            raise StreamError(f"{name} among the large files")
    return small | large


def _is_large(name: str) -> bool:
    if name.startswith(GPU_FILES):
        return not ("gpu" in name and "size" in name)
    return any(re.match(pattern, name) for pattern in LARGE_FILES)


def _in_order(shards: Iterable[bytes], chunk_limit: int) -> list[tuple[str, str | int, bytes]]:
    """All records as (which body, its value, payload), in the order of their numbers."""
    records: dict[int, tuple[str, str | int, bytes]] = {}
    for k, stream in enumerate(shards):
        last = -1
        for seq, body, value, payload in _records(stream):
            if seq <= last:
                raise StreamError(f"shard {k}: seq {seq} after {last}")
            if seq in records:
                raise StreamError(f"seq {seq} twice")
            if len(payload) > chunk_limit:
                raise StreamError(f"seq {seq}: a chunk of {len(payload)} bytes")
            if last >= 0 and records[last][0] == "image_eof":
                raise StreamError(f"shard {k}: records behind image_eof")
            last = seq
            records[seq] = body, value, payload
    if sorted(records) != list(range(len(records))):
        raise StreamError("seq has a gap, or does not begin with 0")
    return [records[seq] for seq in range(len(records))]


def _applied(
    records: Sequence[tuple[str, str | int, bytes]], *, image_ends: bool
) -> dict[str, bytes]:
    """The files that *records* make, in the order in which they ended."""
    files: dict[str, bytearray] = {}
    ended: dict[str, bytes] = {}
    current: str | None = None
    for seq, (body, value, payload) in enumerate(records):
        if body == "image_eof":
            if seq != len(records) - 1 or not image_ends:
                raise StreamError(f"image_eof is seq {seq}, where the image does not end")
            if open_files := files.keys() - ended.keys():
                raise StreamError(f"image_eof, but no file_eof of {sorted(open_files)}")
            return ended
        if body == "filename":
            current = str(value)
            if current in ended:
                raise StreamError(f"{current} is selected at seq {seq}, but has ended")
            files.setdefault(current, bytearray())
        elif current is None:
            raise StreamError(f"{body} at seq {seq}, but no file is selected")
        elif body == "data":
            files[current] += payload
        else:
            ended[current] = bytes(files[current])
            current = None
    if image_ends:
        raise StreamError("no image_eof")
    if open_files := files.keys() - ended.keys():
        raise StreamError(f"no file_eof of {sorted(open_files)}")
    return ended


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
