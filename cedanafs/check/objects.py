"""Whether checkpoints can be kept in an object store: an object really made, read and removed."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from typing import TYPE_CHECKING

from cedanafs.check.findings import Finding, State
from cedanafs.errors import StoreBusy, StoreError
from cedanafs.shard.place import ObjectPath
from cedanafs.shard.store import directory_at

if TYPE_CHECKING:
    from cedanafs.shard.bucket import Bucket

_MARGIN = 100


def findings(store: ObjectPath) -> Iterator[Finding]:
    """Of *store*; what is wrong is said, not raised."""
    store = store.patient(min(store.timeout_s, 20))
    try:
        directory_at(store).check(writable=True)
    except StoreError as exc:
        yield Finding("store", State.ERROR, str(exc))
        return
    yield Finding("store", State.OK, f"{store} can be listed")
    from cedanafs.shard.bucket import Object, bucket_at  # what `check` has found to be there

    bucket, data = bucket_at(store), os.urandom(4096)
    key = (store / f".cedanafs-check-{secrets.token_hex(8)}").key
    try:
        bucket.create(key, data)
        try:
            part, _ = bucket.read(Object(key, len(data)), _MARGIN, len(data) - _MARGIN)
            twice = _made_twice(bucket, key)
        finally:
            bucket.delete([key])
    except StoreError as exc:
        yield Finding("store access", State.ERROR, str(exc))
        return
    if part != data[_MARGIN:-_MARGIN]:
        message = "gives other bytes than were written"
        yield Finding("store access", State.ERROR, message, "use another store")
        return
    yield Finding("store access", State.OK, "written, read in part and removed")
    if twice:
        yield Finding(
            "one writer",
            State.WARNING,
            "the store makes an object anew though it is to be made only if there is none: two "
            "machines that write into one checkpoint are noticed later",
            "give each dump a name of its own",
        )


def _made_twice(bucket: Bucket, key: str) -> bool:
    try:
        bucket.create(key, os.urandom(4096))
    except StoreBusy:
        return False
    return True
