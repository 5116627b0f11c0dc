"""The objects of a bucket: the only file that imports obstore. Blocking; any thread.

Failures come as StoreError in one line that says what to do. Requests are tried again, with
back-off, until the bucket's timeout is nearly over.
"""

from __future__ import annotations

import errno
import os
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final, NoReturn

import obstore
from obstore import exceptions
from obstore.store import AzureStore, GCSStore, S3Store

from cedanafs.errors import StoreBusy, StoreError
from cedanafs.shard.place import ObjectPath

if TYPE_CHECKING:
    from obstore.store import ClientConfig, ObjectStore, RetryConfig

MIN_PART_BYTES: Final = 5 << 20
"""Least that a part of an upload holds, but for the last: a rule of S3."""

MAX_PARTS: Final = 10_000
_FOR_EVER_S: Final = 3600.0
_CONNECT_S: Final = 5.0
_LISTED_S: Final = 0.5
_OUR_OWN_CREDENTIALS: Final = (
    "AWS_ACCESS_KEY_ID",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
    "AWS_SKIP_SIGNATURE",
)
"""Where obstore finds credentials by itself, in the environment; else boto3 looks for them."""


@dataclass(frozen=True, slots=True)
class Object:
    """An object as it was listed. `e_tag`, which changes with its bytes, may not be known yet."""

    key: str
    size: int
    e_tag: str | None = None
    modified_s: float = 0.0


class Bucket:
    """One bucket with its connections. Use `bucket_of`."""

    def __init__(self, scheme: str, name: str, timeout_s: float) -> None:
        self.url = f"{scheme}://{name}"
        self.scheme = scheme
        self.name = name
        # Who waits for the store gives up after *timeout_s*: what it says is to come before.
        deadline_s = (timeout_s or _FOR_EVER_S) * 0.6
        # A request that stalls is given up early enough to be tried once more.
        client: ClientConfig = {
            "timeout": timedelta(seconds=max(deadline_s / 2, 1)),
            "connect_timeout": timedelta(seconds=min(_CONNECT_S, max(deadline_s / 2, 1))),
        }
        retry: RetryConfig = {
            "max_retries": 1000,
            "retry_timeout": timedelta(seconds=deadline_s),
            "backoff": {
                "init_backoff": timedelta(milliseconds=100),
                "max_backoff": timedelta(seconds=min(5, deadline_s / 8)),
                "base": 2,
            },
        }
        self._store = _opened(scheme, name, client, retry)
        self._changes = 0  # that we have made
        self._listed: dict[str, tuple[float, int, list[str], list[Object]]] = {}

    def objects(self, prefix: str) -> list[Object]:
        """Every object below *prefix*, a directory, in the order of keys."""
        try:
            found = [
                each
                for chunk in obstore.list(self._store, prefix=prefix or None, chunk_size=1000)
                for each in chunk
            ]
        except Exception as exc:
            self._fail("list", prefix, exc)
        return sorted(map(_object, found), key=lambda each: each.key)

    def listing(self, prefix: str) -> tuple[list[str], list[Object]]:
        """The names of the directories in *prefix*, and the objects in it.

        As they were a moment ago: an answer counts, unless we change something, for as long as it
        was under way, by which it is late in any case. To open a checkpoint asks several times.
        """
        begun_s, changes = time.monotonic(), self._changes
        listed = self._listed.get(prefix)
        if listed is not None and begun_s < listed[0] and changes == listed[1]:
            return list(listed[2]), list(listed[3])
        self._listed.clear()
        try:
            found = obstore.list_with_delimiter(self._store, prefix=prefix or None)
        except Exception as exc:
            self._fail("list", prefix, exc)
        names = sorted(each.rstrip("/").rpartition("/")[2] for each in found["common_prefixes"])
        objects = sorted(map(_object, found["objects"]), key=lambda each: each.key)
        now_s = time.monotonic()
        until_s = now_s + min(now_s - begun_s, _LISTED_S)
        self._listed[prefix] = until_s, changes, names, objects
        return list(names), list(objects)

    def head(self, key: str) -> Object | None:
        """The object *key*, None where there is none."""
        try:
            return _object(obstore.head(self._store, key))
        except FileNotFoundError:
            return None
        except Exception as exc:
            self._fail("look at", key, exc)

    def read(self, found: Object, start: int, end: int) -> tuple[bytes, str | None]:
        """Bytes *start* to *end* of what was *found*, and its e_tag.

        Raises: StoreError(EIO) when it is another object by now, or gone.
        """
        options: dict[str, Any] = {"range": (start, end)}
        if found.e_tag is not None:
            options["if_match"] = f'"{found.e_tag}"'
        try:
            result = obstore.get(self._store, found.key, options=options)  # type: ignore[arg-type]
            now = _object(result.meta)
            data = bytes(result.bytes())
        except (FileNotFoundError, exceptions.PreconditionError):
            self._changed(found.key)
        except Exception as exc:
            self._fail("read", found.key, exc)
        if (
            now.size != found.size
            or found.e_tag not in (None, now.e_tag)
            or len(data) != end - start
        ):
            self._changed(found.key)
        return data, now.e_tag

    def create(self, key: str, data: bytes) -> None:
        """Make the object *key*. Raises: StoreBusy when it is there already, with other bytes."""
        try:
            obstore.put(self._store, key, data, mode="create", use_multipart=False)
        except exceptions.AlreadyExistsError:
            # Of a request that was tried again the first may have done it.
            found = self.head(key)
            if (
                found is None
                or found.size != len(data)
                or self.read(found, 0, len(data))[0] != data
            ):
                self.refuse(key)
        except NotImplementedError:  # AWS_CONDITIONAL_PUT=disabled says so
            if self.head(key) is not None:
                self.refuse(key)
            self._replace(key, data)
        except Exception as exc:
            self._fail("write", key, exc)
        finally:
            self._changes += 1

    def _replace(self, key: str, data: bytes) -> None:
        try:
            obstore.put(self._store, key, data, use_multipart=False)
        except Exception as exc:
            self._fail("write", key, exc)

    def create_of(
        self, key: str, pieces: Iterator[bytes], *, part_bytes: int, at_once: int
    ) -> None:
        """Make the object *key* of *pieces*, in parts of which *at_once* are sent at a time.

        It is there when this returns, as a whole; when *pieces* raises, nothing is left of it.
        """
        try:
            obstore.put(
                self._store,
                key,
                pieces,
                use_multipart=True,
                chunk_size=part_bytes,
                max_concurrency=at_once,
            )
        finally:
            self._changes += 1

    def delete(self, keys: Sequence[str]) -> None:
        """Remove the objects *keys*; those that are not there are no error."""
        try:
            if keys:
                obstore.delete(self._store, list(keys))
        except FileNotFoundError:
            if len(keys) > 1:  # some stores end with the first that is missing
                for key in keys:
                    self.delete([key])
        except Exception as exc:
            self._fail("remove", keys[0], exc)
        finally:
            self._changes += 1

    def refuse(self, key: str) -> NoReturn:
        raise StoreBusy(f"{self.url}/{key}: another server is writing to this checkpoint")

    def _changed(self, key: str) -> NoReturn:
        raise StoreError(
            f"{self.url}/{key} was replaced or removed since this checkpoint was opened: "
            "open it again",
            os_errno=errno.EIO,
        ) from None

    def _fail(self, what: str, key: str, exc: Exception) -> NoReturn:
        raise self.error(what, key, exc) from exc

    def error(self, what: str, key: str, exc: Exception) -> StoreError:
        """What *exc*, which obstore raised, says to a user."""
        if isinstance(exc, StoreError):
            return exc
        text = str(exc).partition("\n\nDebug source")[0]
        code = re.search(r"<Code>(\w+)</Code>", text)
        status = re.search(r"status code: (\d+)", text)
        said = code[1] if code else status[1] if status else ""
        place = f"{self.url}/{key}".rstrip("/")
        server = re.search(r"https?://[^/\s]+", text)
        at = server[0] if server else self.url
        if said == "NoSuchBucket" or (isinstance(exc, FileNotFoundError) and what == "write"):
            return StoreError(
                f"{self.url}: there is no such bucket: make it, or correct its name",
                os_errno=errno.ENOENT,
            )
        if isinstance(exc, FileNotFoundError):
            return StoreError(f"cannot {what} {place}: it is not there", os_errno=errno.ENOENT)
        if "169.254.169.254" in text:
            return StoreError(
                f"no credentials for {self.url}: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, "
                "or AWS_PROFILE",
                os_errno=errno.EACCES,
            )
        if (status and status[1] in ("401", "403")) or isinstance(
            exc, exceptions.PermissionDeniedError | exceptions.UnauthenticatedError
        ):
            return StoreError(
                f"cannot {what} {place}: {at} refuses these credentials ({said or 'no reason'}): "
                "check the key, its secret and what it may do",
                os_errno=errno.EACCES,
            )
        if "redirect" in text:
            return StoreError(
                f"cannot {what} {place}: the bucket is in another region: set AWS_REGION",
                os_errno=errno.EIO,
            )
        if "NotPartial" in str(exc) or "non-partial response" in text:
            return StoreError(
                f"cannot {what} {place}: this server cannot read a part of an object "
                "(it answers a ranged GET with 200): use another, or its files through a mount",
                os_errno=errno.EOPNOTSUPP,
            )
        if status:
            return StoreError(
                f"cannot {what} {place}: {at} answers {status[1]}"
                + (f" {said}" if said != status[1] else "")
                + ", also when asked again: is it overloaded or broken?",
                os_errno=errno.EIO,
            )
        if "error sending request" in text or "timed out" in text or "HTTP error" in text:
            return StoreError(
                f"cannot {what} {place}: {at} does not answer: is it running, and the network up?",
                os_errno=errno.ETIMEDOUT,
            )
        return StoreError(f"cannot {what} {place}: {' '.join(text.split())}", os_errno=errno.EIO)


def bucket_at(path: ObjectPath) -> Bucket:
    """The bucket in which *path* lies. Raises: StoreError without credentials."""
    return _cached(path.scheme, path.bucket, path.timeout_s)


@lru_cache(maxsize=16)
def _cached(scheme: str, name: str, timeout_s: float) -> Bucket:
    return Bucket(scheme, name, timeout_s)


def _opened(scheme: str, name: str, client: ClientConfig, retry: RetryConfig) -> ObjectStore:
    try:
        if scheme == "gs":
            return GCSStore(name, client_options=client, retry_config=retry)
        if scheme == "az":
            return AzureStore(name, client_options=client, retry_config=retry)
        endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
        if endpoint is not None:
            client["allow_http"] = endpoint.startswith("http://")
        more: dict[str, Any] = {}
        if not any(map(os.environ.get, _OUR_OWN_CREDENTIALS)):
            more["credential_provider"] = _profile(name)
        return S3Store(name, client_options=client, retry_config=retry, **more)
    except StoreError:
        raise
    except Exception as exc:
        text = " ".join(str(exc).partition("\n\nDebug source")[0].split())
        raise StoreError(f"cannot use {scheme}://{name}: {text}", os_errno=errno.EINVAL) from exc


def _profile(name: str) -> Any:
    """Credentials as AWS's own tools find them: profile, single sign-on, the machine's role."""
    from obstore.auth.boto3 import Boto3CredentialProvider

    try:
        return Boto3CredentialProvider()
    except Exception as exc:
        raise StoreError(
            f"no credentials for s3://{name}: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, "
            f"or AWS_PROFILE ({exc})",
            os_errno=errno.EACCES,
        ) from exc


def _object(meta: Any) -> Object:
    e_tag = meta["e_tag"]
    e_tag = e_tag.strip('"') if e_tag else None  # some servers list it without
    return Object(meta["path"], meta["size"], e_tag, meta["last_modified"].timestamp())
