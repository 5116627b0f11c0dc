"""Patches ⇄ bytes: what a record says of bytes that are in part a base's.  PURE.

    runs = number of names { length name } { length << 2 | kind [ which name, distance ] }

All numbers are varints. Kind 0 is the next bytes of the payload, 1 a base's, 2 zeros. A base's
lie in its image of that name, at the place of the same offset in the file and a distance
further, given (zigzag) as the difference to that of the base's run before.
Source: docs/format.md#patches.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import IntEnum, unique
from typing import Final, NamedTuple, Protocol

from cedanafs.errors import CorruptShard
from cedanafs.shard.extents import ExtentMap, Part
from cedanafs.shard.records import get_varint, put_varint

PAGE: Final = 4096
"""A run is whole pages, but for the last of a record."""

MAX_PATCH_LEN: Final = 16 << 20
"""Most bytes of a file that one record speaks of."""

MAX_RUNS_LEN: Final = 9_000
"""What a writer puts into one marker at most, which may have 10,239 bytes."""


@unique
class Kind(IntEnum):
    """Where the bytes of a run come from. A value is never reused."""

    OWN = 0
    BASE = 1
    ZEROS = 2


class Run(NamedTuple):
    """*length* bytes; of kind BASE those of image *name* from *offset* on."""

    kind: Kind
    length: int
    name: str = ""
    offset: int = 0


class BaseImage(Protocol):
    """What a base holds under one name."""

    size: int
    symlink_to: str | None
    extents: ExtentMap


def encode_runs(runs: Sequence[Run], start: int) -> bytes:
    """The runs of a record whose bytes go to *start* on in their file."""
    names = list(dict.fromkeys(run.name for run in runs if run.kind == Kind.BASE))
    out = bytearray()
    put_varint(out, len(names))
    for name in names:
        raw = name.encode("utf-8", "surrogateescape")
        put_varint(out, len(raw))
        out += raw
    distance, at = 0, start
    for run in runs:
        put_varint(out, run.length << 2 | run.kind)
        if run.kind == Kind.BASE:
            change = run.offset - at - distance
            distance += change
            put_varint(out, names.index(run.name))
            put_varint(out, change << 1 if change >= 0 else (-change << 1) - 1)
        at += run.length
    return bytes(out)


def decode_runs(blob: bytes, start: int, own_len: int) -> list[Run]:
    """What `encode_runs` made *blob* of, for a payload of *own_len* bytes. Raises: CorruptShard."""
    count, at = get_varint(blob, 0)
    names: list[str] = []
    for _ in range(count):
        length, at = get_varint(blob, at)
        if length > len(blob) - at:
            raise CorruptShard("a patch is cut short in a name")
        names.append(blob[at : at + length].decode("utf-8", "surrogateescape"))
        at += length
    runs: list[Run] = []
    distance, position = 0, start
    while at < len(blob):
        word, at = get_varint(blob, at)
        length, kind = word >> 2, word & 3
        if (position - start) % PAGE:
            raise CorruptShard("a patch with a run of half a page, and more behind it")
        if length == 0 or position + length - start > MAX_PATCH_LEN or kind > Kind.ZEROS:
            raise CorruptShard(f"a patch with a run of {length} bytes, of kind {kind}")
        if kind == Kind.BASE:
            which, at = get_varint(blob, at)
            zigzag, at = get_varint(blob, at)
            distance += (zigzag >> 1) ^ -(zigzag & 1)
            if which >= len(names) or position + distance < 0:
                raise CorruptShard("a patch refers to what no base can hold")
            runs.append(Run(Kind.BASE, length, names[which], position + distance))
        else:
            runs.append(Run(Kind(kind), length))
        position += length
    if sum(run.length for run in runs if run.kind == Kind.OWN) != own_len:
        raise CorruptShard("a patch does not use its payload exactly")
    return runs


def parts_of(runs: Sequence[Run], at: int, base: Mapping[str, BaseImage] | None) -> list[Part]:
    """Where the bytes of *runs* lie: their own at *at* in the frame, the others in *base*.

    Without *base* what is a base's is marked as not known. Raises: CorruptShard.
    """
    parts: list[Part] = []
    for run in runs:
        if run.kind == Kind.OWN:
            parts.append(Part(run.length, at, own=True))
            at += run.length
        elif run.kind == Kind.ZEROS:
            parts.append(Part(run.length, 0))
        elif base is None:
            parts.append(Part(run.length, 0, is_base=True))
        else:
            image = base.get(run.name)
            if image is None or image.symlink_to or run.offset + run.length > image.size:
                raise CorruptShard(
                    f"{run.length} bytes of {run.name[:60]!r} at {run.offset}: "
                    "its base does not have them"
                )
            parts.append(Part(run.length, run.offset, extents=image.extents, is_base=True))
    return parts
