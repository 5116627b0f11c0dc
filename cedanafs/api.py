"""For programs: what is in a store, images as files, dump and restore.

    with cedanafs.open_store("/srv/checkpoints").open("web") as checkpoint:
        inventory = checkpoint.open("inventory.img").read()

Errors are those of `cedanafs.errors`. `dump` and `restore` run an event loop of their own: where
another one runs, call them from a thread.
"""

from __future__ import annotations

import dataclasses
import io
import os
from collections.abc import Awaitable, Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final, Self, TypeAlias, TypeVar

import trio

from cedanafs import checkpoint as dumps
from cedanafs.config import Defaults, load_defaults
from cedanafs.criu.options import DumpOptions, RestoreOptions
from cedanafs.criu.process import DumpedProcess, RunningProcess
from cedanafs.errors import CheckpointMissing, StoreError, the_error
from cedanafs.look import CheckpointSummary, list_store
from cedanafs.look import inspect as summary_of
from cedanafs.progress import SilentReport
from cedanafs.shard import audit
from cedanafs.shard.image_file import ImageFile
from cedanafs.shard.opening import Opened, open_checkpoint
from cedanafs.shard.place import ObjectPath, Place, place_of
from cedanafs.shard.store import directory_at

StrPath: TypeAlias = str | os.PathLike[str] | ObjectPath
"""A path, or the URL of a place in a bucket."""

T = TypeVar("T")
_BUFFER_BYTES: Final = 1 << 16


def open_store(store: StrPath) -> Store:
    """The store at *store*: a directory, or `s3://BUCKET/PREFIX`.

    Raises: UsageError, StoreError.
    """
    place = _place(store)
    if not directory_at(place).exists():
        raise StoreError(f"store {place} is not a directory: mkdir -m 700 makes one")
    return Store(place)


def dump(
    pid: int,
    store: StrPath,
    *,
    name: str | None = None,
    streams: int | None = None,
    compression: str | None = None,
    memory_limit: int | None = None,
    leave_running: bool = False,
    shell_job: bool = False,
    tcp_established: bool = False,
    criu_opts: Mapping[str, object] | None = None,
) -> Place:
    """Dump the process tree under *pid* into *store*; returns where the checkpoint is.

    As `cedanafs dump process` does: the tasks end only when all is durable, and run on when this
    raises. *streams* is the number of shards, 0 for plain images; *compression* `CODEC[:LEVEL]`;
    *memory_limit* in bytes. What is None is what configuration files and environment say.
    Raises: UsageError, StoreError, CriuError, MachineError.
    """
    defaults = _defaults(stream=streams, compression=compression, memory_limit=memory_limit)
    place = _place(store)
    options = DumpOptions(
        pid=pid,
        leave_running=leave_running,
        shell_job=shell_job,
        tcp_established=tcp_established,
        criu_opts=dict(criu_opts or {}),
    )

    async def run() -> Place:
        return await dumps.dump(
            lambda: RunningProcess.find(options, defaults.criu_binary),
            directory=place,
            name=name,
            settings=defaults.mount_settings(place) if defaults.stream else None,
            report=SilentReport(),
        )

    return _run(run)


def restore(
    checkpoint: StrPath,
    *,
    leave_stopped: bool = False,
    shell_job: bool = False,
    tcp_established: bool = False,
    criu_opts: Mapping[str, object] | None = None,
) -> int:
    """Bring back what is in *checkpoint*, or in a directory of plain images; returns its pid.

    As `cedanafs restore process` does; it is no child of ours.
    Raises: UsageError, CheckpointError, StoreError, CriuError, MachineError.
    """
    defaults = _defaults()
    options = RestoreOptions(
        leave_stopped=leave_stopped,
        shell_job=shell_job,
        tcp_established=tcp_established,
        criu_opts=dict(criu_opts or {}),
    )

    async def run() -> int:
        return await dumps.restore(
            lambda: DumpedProcess.find(options, defaults.criu_binary),
            path=_place(checkpoint),
            stream=None,
            defaults=defaults,
            report=SilentReport(),
        )

    return _run(run)


@dataclasses.dataclass(frozen=True, slots=True)
class Store:
    """A directory, or a place in a bucket, with checkpoints in it and below. Use `open_store`."""

    path: Place

    def checkpoints(self) -> Iterator[CheckpointSummary]:
        """What is there, by path; damaged ones too, with what is wrong. Raises: StoreError."""
        return list_store(self.path)

    def open(self, name: str = "") -> Checkpoint:
        """The checkpoint *name*; without one, the store is itself one.

        Raises: CheckpointError, StoreError.
        """
        return Checkpoint(open_checkpoint(self.path / name))


class Checkpoint:
    """What the last complete commit says. Use as a context manager, or `close` it."""

    def __init__(self, opened: Opened) -> None:
        self._opened = opened

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close its shards: images that are open can be read no longer."""
        self._opened.close()

    @property
    def path(self) -> Place:
        """Where it is."""
        return self._opened.directory

    @property
    def images(self) -> tuple[str, ...]:
        """The names of its images, sorted."""
        return tuple(sorted(self._opened.contents.images))

    def summary(self) -> CheckpointSummary:
        """What `cedanafs inspect --json` says of it. Raises: CheckpointError, StoreError."""
        return summary_of(self.path)

    def open(self, image: str) -> io.BufferedReader:
        """The image of that name, with random access; every byte that is read is checked.

        Its `read` raises CorruptShard or StoreError. Raises: CheckpointMissing where there is no
        such image, UsageError where it is a link.
        """
        found = self._opened.contents.images.get(image)
        if found is None:
            raise CheckpointMissing(f"{self.path}: there is no {image} in it")
        return io.BufferedReader(ImageFile(self._opened, found), _BUFFER_BYTES)

    def verify(self) -> audit.Audit:
        """Read every byte; `damages` is empty when all are right. Raises: StoreError."""
        return audit.audit(self._opened)

    def extract(self, directory: str | os.PathLike[str]) -> int:
        """Write its images into *directory*, plain; returns how many.

        Raises: UsageError, CorruptShard, StoreError.
        """
        return audit.extract_images(self._opened, Path(directory))


def _place(text: StrPath) -> Place:
    return text if isinstance(text, ObjectPath) else place_of(os.fspath(text))


def _defaults(**given: Any) -> Defaults:
    defaults = load_defaults()
    return dataclasses.replace(defaults, **{k: v for k, v in given.items() if v is not None})


def _run(work: Callable[[], Awaitable[T]]) -> T:
    """Without the groups that nurseries make of errors."""
    try:
        return trio.run(work)
    except BaseExceptionGroup as group:
        raise the_error(group) from group
