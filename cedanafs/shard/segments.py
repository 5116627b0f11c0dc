"""What shards are called, and their segments, where a store keeps them in immutable pieces.

Source: docs/format.md#segments.
"""

from __future__ import annotations

import re
from typing import Final

from cedanafs.shard.codec import EXTENSIONS

MAX_SEGMENTS: Final = 100_000

SHARD_NAME: Final = re.compile(r"img-(0|[1-9][0-9]{0,2})(\.[a-z0-9]+)?")
_SEGMENT: Final = re.compile(r"(img-[^.]+(?:\.[a-z][a-z0-9]*)?)\.([0-9]{5})")


def is_shard_name(name: str) -> bool:
    """Whether *name* is what a shard is called: `img-3`, `img-3.zst`, …"""
    match = SHARD_NAME.fullmatch(name)
    return match is not None and (match[2] or "") in EXTENSIONS


def segment_name(shard: str, number: int) -> str:
    """What segment *number*, from 0, of a shard is called: `img-0.zst`, `img-0.zst.00001`, …"""
    return f"{shard}.{number:05}" if number else shard


def segment_of(name: str) -> tuple[str, int]:
    """The shard's name and the number of the segment that is called *name*."""
    match = _SEGMENT.fullmatch(name)
    return (match[1], int(match[2])) if match and int(match[2]) else (name, 0)
