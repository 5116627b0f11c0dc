"""Where checkpoints are kept: what every kind of store can do, and shards by their names.

A store is a tree of directories; the shards of a checkpoint lie in one. Blocking; knows no frames.
Any thread may read; one thread at a time appends to a shard.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Final, Protocol, TypeAlias

from cedanafs.errors import CheckpointIncomplete, CheckpointMissing, MixedShards, StoreError
from cedanafs.shard.at_once import on_each
from cedanafs.shard.codec import EXTENSIONS, Bytes, Codec
from cedanafs.shard.format import MAX_SHARDS
from cedanafs.shard.local import LocalDirectory

Place: TypeAlias = Path
"""Where a directory or a file of a store is."""

PAGES_NAME: Final = ".cedanafs-pages"
"""What may lie beside the shards and can be made again, see `pages`."""

_SHARD_NAME: Final = re.compile(r"img-(0|[1-9][0-9]{0,2})(\.[a-z0-9]+)?")


class ShardFile(Protocol):
    """One img-k. Every failure comes as StoreError that names the file and keeps the errno."""

    @property
    def path(self) -> Place: ...

    @property
    def name(self) -> str: ...

    @property
    def atomic(self) -> bool:
        """Whether all that is written from one `sync` to the next appears at once, or nothing.

        It cannot be cut in the middle then.
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

    def exists(self) -> bool: ...

    def entries(self) -> tuple[list[str], list[str]]:
        """The names of the directories in it, and of all else, each sorted."""

    def walk(self) -> Iterator[tuple[Place, list[str]]]:
        """Itself and each directory below, by path, with the names of what else is in it."""

    def make(self) -> None:
        """Make it. Raises: OSError, FileExistsError among them."""

    def remove(self) -> None:
        """Remove it, which is empty. Raises: OSError."""

    def rename(self, new: Path) -> None:
        """Give it the path *new*, durably. Raises: OSError."""

    def create_shard(self, name: str) -> ShardFile: ...

    def open_shard(self, name: str, *, writable: bool = False) -> ShardFile: ...

    def remove_files(self, names: Sequence[str]) -> None:
        """Remove the files *names*; those that are not there are no error."""

    def sync(self) -> None:
        """Make the names in it durable."""

    def locked(self, why: str) -> AbstractContextManager[None]:
        """Hold it for writing against other servers on this machine.

        Raises: StoreBusy with *why* when another holds it.
        """


def directory_at(place: Place) -> StoreDirectory:
    """The directory at *place*, whether it is there or not."""
    return LocalDirectory(place)


def open_shard(path: Place, *, writable: bool = False) -> ShardFile:
    """The shard file at *path*. Raises: StoreError, CorruptShard when it is no regular file."""
    return directory_at(path.parent).open_shard(path.name, writable=writable)


def is_shard_name(name: str) -> bool:
    """Whether *name* is what a shard file is called: `img-3`, `img-3.zst`, …"""
    match = _SHARD_NAME.fullmatch(name)
    return match is not None and (match[2] or "") in EXTENSIONS


def create_shards(directory: Place, count: int, codec: Codec) -> list[ShardFile]:
    """N new, empty shards, and their names durable in *directory*. All of them or none."""
    place = directory_at(directory)
    made: dict[int, ShardFile] = {}

    def create(k: int) -> None:
        made[k] = place.create_shard(f"img-{k}{codec.extension}")

    try:
        on_each(create, range(count))
        place.sync()
    except BaseException:
        for shard in made.values():
            with contextlib.suppress(StoreError):
                shard.close()
        with contextlib.suppress(StoreError):
            place.remove_files([shard.name for shard in made.values()])
        raise
    return [made[k] for k in range(count)]


def open_shards(paths: Sequence[Place], *, writable: bool = False) -> list[ShardFile]:
    """The shard files at *paths*, all of them or none."""
    opened: dict[Place, ShardFile] = {}

    def open_one(path: Place) -> None:
        opened[path] = open_shard(path, writable=writable)

    try:
        on_each(open_one, paths)
    except BaseException:
        for shard in opened.values():
            shard.close()
        raise
    return [opened[path] for path in paths]


def shard_paths(directory: Place) -> list[Place]:
    """The shard files in *directory*, in order of k; empty where there is no checkpoint.

    Raises: CheckpointIncomplete (a shard between others is missing), MixedShards (two
    extensions), StoreError.
    """
    found: dict[int, list[Place]] = {}
    _, names = directory_at(directory).entries()
    for name in filter(is_shard_name, names):
        k = int(_SHARD_NAME.fullmatch(name)[1])  # type: ignore[index]
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
    if not directory_at(directory).exists():
        raise CheckpointMissing(f"{directory}: no such directory")
    paths = shard_paths(directory)
    if not paths:
        raise CheckpointMissing(f"{directory}: no checkpoint here (no img-0 file)")
    return paths


def remove_shards(directory: Place) -> None:
    """Remove every shard file of *directory*, whatever state they are in."""
    place = directory_at(directory)
    _, names = place.entries()
    place.remove_files([PAGES_NAME, *filter(is_shard_name, names)])


def sync_shards(directory: Place) -> None:
    """Make every shard file of *directory*, as it is, and their names durable."""
    place = directory_at(directory)
    _, names = place.entries()

    def sync(name: str) -> None:
        file = place.open_shard(name)
        try:
            file.sync()
        finally:
            file.close()

    on_each(sync, list(filter(is_shard_name, names)))
    place.sync()
