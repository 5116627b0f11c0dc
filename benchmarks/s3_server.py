"""moto's S3 server, but that a request for a part of an object costs that part, not all of it.

    python -m benchmarks.s3_server PORT

moto reads the object as a whole for each GET, of a range, too: with four shards of 90 MB it, and
not the link, was what a restore of some hundred requests waited for.
"""

from __future__ import annotations

import sys
from typing import Any, Final

from moto.s3.models import FakeKey
from moto.server import main

KEPT: Final = "_kept_for_ranges"
ORIGINAL: Final[Any] = vars(FakeKey)["value"]


def value(key: FakeKey) -> bytes:
    """All of it, read once."""
    kept: bytes | None = vars(key).get(KEPT)
    if kept is None:
        kept = vars(key)[KEPT] = ORIGINAL.fget(key)
    return kept


def set_value(key: FakeKey, new: bytes) -> None:
    vars(key).pop(KEPT, None)
    ORIGINAL.fset(key, new)


if __name__ == "__main__":
    setattr(FakeKey, "value", property(value, set_value))  # noqa: B010 - mypy takes it for a method
    main(["-H", "127.0.0.1", "-p", sys.argv[1]])
