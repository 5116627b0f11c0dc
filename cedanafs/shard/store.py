"""Where checkpoints are kept: what every kind of store can do, and shards by their names.

A store is a tree of directories; the shards of a checkpoint lie in one. Blocking; knows no frames.
Any thread may read; one thread at a time appends to a shard.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Final, Protocol
from uuid import UUID

from cedanafs.errors import (
    CheckpointIncomplete,
    CheckpointMissing,
    MixedShards,
    StoreError,
    did_you_mean,
)
from cedanafs.shard.at_once import on_each
from cedanafs.shard.codec import Bytes, Codec
from cedanafs.shard.directory import LocalDirectory
from cedanafs.shard.format import MAX_SHARDS
from cedanafs.shard.place import Place
from cedanafs.shard.segments import SHARD_NAME, is_shard_name

PAGES_NAME: Final = ".cedanafs-pages"
"""What may lie beside the shards and can be made again, see `pages`."""


class ShardFile(Protocol):
    """One img-k. Every failure comes as StoreError that names the file and keeps the errno."""

    @property
    def path(self) -> Place: ...

    @property
    def name(self) -> str: ...

    checkpoint: UUID | None
    """The one that it belongs to, where a commit of its own was found to say so."""

    @property
    def atomic(self) -> bool:
        """Whether all that is written from one `sync` to the next appears at once, or nothing.

        It cannot be cut in the middle then.
        """

    @property
    def whole(self) -> bool:
        """Whether a `sync` leaves all that was written before it, or nothing, and is dear.

        The file as a whole is sent then.
        """

    def length(self) -> int: ...

    def read_at(self, offset: int, length: int) -> bytes:
        """Exactly *length* bytes. Raises: CorruptShard when the file ends before."""

    def next_data(self, offset: int) -> int:
        """Where from *offset* on something was written: zeros of a hole take no time to skip.

        The file's length, where nothing was.
        """

    def write_at(self, offset: int, buffers: Sequence[Bytes]) -> None:
        """All of *buffers* one after the other from *offset*, which is where the file ends."""

    def sync(self) -> None:
        """Make durable what was written."""

    def truncate(self, length: int) -> None: ...

    def lock_shared(self) -> None:
        """Keep whoever writes or removes it out, until it is closed. Raises: StoreBusy."""

    def lock(self) -> None:
        """Keep other writers on this machine out, until it is closed. Raises: StoreBusy."""

    def close(self) -> None:
        """Give it back; what was written and not synced may be lost."""


class StoreDirectory(Protocol):
    """A directory of a store. Failures come as StoreError, but for those that say OSError."""

    def check(self, *, writable: bool) -> None:
        """Raises: StoreError when it is no store that can be read, or written if *writable*."""

    def space(self) -> os.statvfs_result:
        """How much room there is, as the filesystem says. Raises: OSError."""

    def exists(self) -> bool: ...

    def entries(self) -> tuple[list[str], list[str]]:
        """The names of the directories in it, and of all else, each sorted."""

    def walk(self) -> Iterator[tuple[Place, list[str]]]:
        """Itself and each directory below, by path, with the names of what else is in it."""

    def make(self) -> None:
        """Make it. Raises: OSError, FileExistsError among them."""

    def remove(self) -> None:
        """Remove it, which is empty. Raises: OSError."""

    def rename(self, new: Any) -> None:
        """Move it to the place *new*, of its own kind, durably. Raises: OSError."""

    def exchange(self, other: Any) -> None:
        """Give it the place *other* and what is there its own, at once and durably.

        Raises: OSError, where the filesystem cannot, too.
        """

    def create_shards(self, names: Sequence[str], buffer_bytes: int) -> Sequence[ShardFile]:
        """New, empty shards, and their names durable. All of them or none.

        What they hold back in memory, if they do, takes no more than *buffer_bytes*.
        """

    def open_shards(
        self, names: Sequence[str], *, writable: bool = False, buffer_bytes: int = 0
    ) -> Sequence[ShardFile]:
        """Shards, the checkpoint's first one first. Raises: CheckpointError when one is no file."""

    def remove_files(self, names: Sequence[str]) -> None:
        """Remove the files *names*; those that are not there are no error."""

    def sync(self) -> None:
        """Make the names in it durable."""

    def locked(self, why: str) -> AbstractContextManager[None]:
        """Hold it for writing against other servers on this machine.

        Raises: StoreBusy with *why* when another holds it.
        """

    def lock_path(self) -> Path:
        """What is locked for that; it may be gone when nobody holds it."""


def directory_at(place: Place) -> StoreDirectory:
    """The directory at *place*, whether it is there or not. Raises: StoreError."""
    if isinstance(place, Path):
        return LocalDirectory(place)
    try:
        from cedanafs.shard.objects import ObjectDirectory  # takes its time to import
    except ImportError as exc:
        raise StoreError(
            f"{place}: for object stores more is needed: pip install 'cedanafs[objects]' ({exc})",
            os_errno=errno.ENOPKG,
        ) from exc
    return ObjectDirectory(place)


def open_shards(
    paths: Sequence[Place], *, writable: bool = False, buffer_bytes: int = 0
) -> list[ShardFile]:
    """The shards at *paths*, all in one directory. Raises: StoreError, CheckpointError."""
    names = [path.name for path in paths]
    place = directory_at(paths[0].parent)
    return list(place.open_shards(names, writable=writable, buffer_bytes=buffer_bytes))


def create_shards(
    directory: Place, count: int, codec: Codec, buffer_bytes: int = 0
) -> list[ShardFile]:
    """N new, empty shards, and their names durable in *directory*. All of them or none."""
    names = [f"img-{k}{codec.extension}" for k in range(count)]
    return list(directory_at(directory).create_shards(names, buffer_bytes))


def shard_paths(directory: Place) -> list[Place]:
    """The shard files in *directory*, in order of k; empty where there is no checkpoint.

    Raises: CheckpointIncomplete (a shard between others is missing), MixedShards (two
    extensions), StoreError.
    """
    found: dict[int, list[Place]] = {}
    _, names = directory_at(directory).entries()
    for name in filter(is_shard_name, names):
        k = int(SHARD_NAME.fullmatch(name)[1])  # type: ignore[index]
        found.setdefault(k, []).append(directory / name)
    if not found:
        return []
    paths = [path for k in sorted(found) for path in found[k]]
    suffixes = {path.suffix for path in paths}
    if len(suffixes) > 1 or len(paths) != len(found):
        raise MixedShards(
            f"{directory}: shards of two checkpoints lie together: "
            + ", ".join(path.name for path in paths)
        )
    top = max(found)
    if top >= MAX_SHARDS:
        raise MixedShards(f"{directory}: {found[top][0].name} is no shard, {MAX_SHARDS} is most")
    missing = [k for k in range(top) if k not in found]
    if missing:
        suffix = suffixes.pop()
        gone = ", ".join(f"img-{k}{suffix}" for k in missing)
        raise CheckpointIncomplete(f"{directory}: {gone} missing: bring all shards together")
    return paths


def require_shards(directory: Place) -> list[Place]:
    """Like `shard_paths`. Raises: CheckpointMissing where there is none."""
    require_there(directory)
    paths = shard_paths(directory)
    if not paths:
        raise no_checkpoint(directory, "no img-0 file")
    return paths


def require_there(directory: Place) -> None:
    """Raises: CheckpointMissing, with what is there that is called much like it."""
    if directory_at(directory).exists():
        return
    above = directory_at(directory.absolute().parent)
    beside = above.entries()[0] if above.exists() else []
    near = did_you_mean(directory.name, beside)
    raise CheckpointMissing(f"{directory}: no such directory{near}")


def no_checkpoint(directory: Place, why: str) -> CheckpointMissing:
    """The error for a directory in which there is none; it may be the store, and say so."""
    below = directory_at(directory).entries()[0]
    inside = f": in it are {', '.join(below[:5])}: name one of them" if below else ""
    return CheckpointMissing(f"{directory}: no checkpoint here ({why}){inside}")


def remove_shards(directory: Place) -> None:
    """Remove every shard file of *directory*, whatever state they are in."""
    place = directory_at(directory)
    _, names = place.entries()
    place.remove_files([PAGES_NAME, *filter(is_shard_name, names)])


def sync_shards(directory: Place) -> None:
    """Make every shard file of *directory*, as it is, and their names durable."""
    place = directory_at(directory)
    _, names = place.entries()
    files = place.open_shards(list(filter(is_shard_name, names)))
    try:
        on_each(lambda file: file.sync(), files)
    finally:
        for file in files:
            file.close()
    place.sync()
