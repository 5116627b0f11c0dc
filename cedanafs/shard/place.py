"""Where a directory or a file of a store is: a path, or what stands for one in an object store.

Values only: nothing here asks a store.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePath, PurePosixPath
from typing import Final, TypeAlias

from cedanafs.errors import UsageError

SCHEMES: Final = ("s3", "gs", "az")
"""Of what URLs of object stores begin with: S3 and what speaks like it, Google's, Azure's."""

DEFAULT_TIMEOUT_S: Final = 60.0

_URL: Final = re.compile(r"([a-z0-9]+)://([^/]*)/*(.*?)/*")


@dataclass(frozen=True, slots=True)
class ObjectPath:
    """A place in a bucket, with what of `pathlib.Path` is asked of any place.

    There are no directories in a bucket: what is one is the common beginning of keys. `timeout_s`
    is how long requests about it are tried; 0: for an hour.
    """

    scheme: str
    bucket: str
    key: str = ""
    timeout_s: float = field(default=DEFAULT_TIMEOUT_S, compare=False)

    def __str__(self) -> str:
        return f"{self.scheme}://{self.bucket}/{self.key}".rstrip("/")

    def __truediv__(self, below: str | PurePath) -> ObjectPath:
        return replace(self, key=str(PurePosixPath(self.key) / below).removeprefix("."))

    def __lt__(self, other: ObjectPath) -> bool:
        return str(self) < str(other)

    @property
    def name(self) -> str:
        return PurePosixPath(self.key).name

    @property
    def suffix(self) -> str:
        return PurePosixPath(self.key).suffix

    @property
    def parent(self) -> ObjectPath:
        return replace(self, key=str(PurePosixPath(self.key).parent).removeprefix("."))

    @property
    def parents(self) -> list[ObjectPath]:
        parents = PurePosixPath(self.key).parents if self.key else ()
        return [replace(self, key=str(each).removeprefix(".")) for each in parents]

    def relative_to(self, other: ObjectPath) -> PurePosixPath:
        if (self.scheme, self.bucket) != (other.scheme, other.bucket):
            raise ValueError(f"{self} is not below {other}")
        return PurePosixPath(self.key).relative_to(other.key)

    def resolve(self) -> ObjectPath:
        return self

    def absolute(self) -> ObjectPath:
        return self

    def is_symlink(self) -> bool:
        return False

    def patient(self, timeout_s: float) -> ObjectPath:
        """The same place, about which requests are tried for *timeout_s*."""
        return replace(self, timeout_s=timeout_s)


Place: TypeAlias = Path | ObjectPath


def place_of(text: str) -> Place:
    """The place that *text*, a URL or a path, names. Raises: UsageError."""
    match = _URL.fullmatch(text)
    if match is None:
        return Path(text)
    scheme, bucket, key = match[1], match[2], match[3]
    if scheme not in SCHEMES:
        known = ", ".join(f"{each}://" for each in SCHEMES)
        raise UsageError(f"{text}: {scheme}:// is no store that is known: a directory, or {known}")
    if not bucket or any(part in ("", ".", "..") for part in key.split("/") if key):
        raise UsageError(f"{text}: write {scheme}://BUCKET/PREFIX")
    return ObjectPath(scheme, bucket, key)


def path_below(place: Place, top: Place) -> PurePosixPath:
    """*place* as it is seen from *top*. Raises: ValueError when it does not lie there."""
    if isinstance(place, ObjectPath) and isinstance(top, ObjectPath):
        return place.relative_to(top)
    if isinstance(place, Path) and isinstance(top, Path):
        return PurePosixPath(place.relative_to(top))
    raise ValueError(f"{place} is not below {top}")
