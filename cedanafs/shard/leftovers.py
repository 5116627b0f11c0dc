"""What crashes have left in an object store: uploads that nobody will end, and commits cut short.

Nothing of it is part of any checkpoint. Blocking.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from cedanafs.errors import StoreError
from cedanafs.shard.bucket import Object, bucket_at
from cedanafs.shard.place import ObjectPath
from cedanafs.shard.segments import is_shard_name, segment_of


@dataclass(frozen=True, slots=True)
class Leftover:
    """An object, or with an `upload` the parts that were sent of one. `since_s` as time.time()."""

    key: str
    since_s: float
    bytes: int | None = None
    upload: str | None = None


def leftovers(store: ObjectPath, older_than_s: float) -> list[Leftover]:
    """Those in *store* that nobody has touched for *older_than_s*: a dump may be under way.

    Of Google's and Azure's stores objects only. Raises: StoreError.
    """
    until = time.time() - older_than_s
    found = [*_torn(store), *(_uploads(store) if store.scheme == "s3" else ())]
    return [each for each in found if each.since_s <= until]


def remove(store: ObjectPath, found: Sequence[Leftover]) -> None:
    """Remove them. Raises: StoreError."""
    bucket_at(store).delete([each.key for each in found if each.upload is None])
    uploads = [each for each in found if each.upload is not None]
    if not uploads:
        return
    client = _client(store)
    for each in uploads:
        about = {"Bucket": store.bucket, "Key": each.key, "UploadId": each.upload}
        _asked(store, partial(client.abort_multipart_upload, **about))


def _torn(store: ObjectPath) -> Iterator[Leftover]:
    """Segments that the first shard of their checkpoint does not have: it has each one last."""
    below: dict[str, list[Object]] = {}
    for each in bucket_at(store).objects(store.key):
        below.setdefault(each.key.rpartition("/")[0], []).append(each)
    for objects in below.values():
        segments = [(segment_of(each.key.rpartition("/")[2]), each) for each in objects]
        has = {n for (name, n), _ in segments if name.partition(".")[0] == "img-0"}
        numbers = {n for (name, n), _ in segments if is_shard_name(name)}
        if 0 not in has and numbers - {0}:
            continue  # it was committed, and the first shard is lost: that is damage
        count = next(n for n in range(len(has) + 1) if n not in has)
        for (name, number), each in segments:
            if is_shard_name(name) and number >= count:
                yield Leftover(each.key, each.modified_s, each.size)


def _uploads(store: ObjectPath) -> Iterator[Leftover]:
    client = _client(store)
    prefix = f"{store.key}/" if store.key else ""
    pages = client.get_paginator("list_multipart_uploads").paginate(
        Bucket=store.bucket, Prefix=prefix
    )
    for page in _asked(store, lambda: list(pages)):
        for each in page.get("Uploads", ()):
            if is_shard_name(segment_of(each["Key"].rpartition("/")[2])[0]):
                yield Leftover(each["Key"], each["Initiated"].timestamp(), upload=each["UploadId"])


def _client(store: ObjectPath) -> Any:
    """Amazon's own: obstore neither lists uploads nor ends those of others."""
    import boto3  # takes its time to import
    from botocore.config import Config

    timeout_s = min(store.timeout_s or 60.0, 60.0)
    config = Config(
        connect_timeout=5,
        read_timeout=timeout_s,
        retries={"mode": "standard", "total_max_attempts": 5},
    )
    return _asked(store, lambda: boto3.client("s3", config=config))


def _asked(store: ObjectPath, ask: Any) -> Any:
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        return ask()
    except (BotoCoreError, ClientError) as exc:
        raise StoreError(f"cannot look for uploads in {store}: {exc}", os_errno=errno.EIO) from exc
