"""What a mount tells of itself while it runs: plain numbers, counted where the work is done anyway.

They are read through the file `.cedanafs-stat` in the mount's root, as JSON; docs/watching.md has
the schema. Nothing here asks the store, so that they are to be had while it hangs.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from cedanafs import __version__
from cedanafs.shard.appender import ShardFigures
from cedanafs.shard.place import path_below

if TYPE_CHECKING:
    from cedanafs.fs.filesystem import Filesystem
    from cedanafs.fs.namespace import Directory
    from cedanafs.shard.log import Log

STAT_FILE: Final = ".cedanafs-stat"
"""In the mount's root, and in no listing of it."""


@dataclass(frozen=True, slots=True)
class WriteFigures:
    """Since the mount began: image bytes `taken` from writers, of these `landed` in the store, and
    `stored_bytes`, what they became there, in `frames`. `queued_bytes` of `queue_limit_bytes` of
    memory wait for compressor and store, of which each lane has before it `lanes`."""

    taken_bytes: int
    landed_bytes: int
    stored_bytes: int
    frames: int
    queued_bytes: int
    queue_limit_bytes: int
    lanes: tuple[int, ...]

    @property
    def ratio(self) -> float | None:
        """Of what has landed; None where nothing has."""
        return self.landed_bytes / self.stored_bytes if self.stored_bytes else None

    @property
    def queue_fill(self) -> float:
        """Of the memory for what is on its way to the store, from 0 to 1."""
        return self.queued_bytes / self.queue_limit_bytes


@dataclass(frozen=True, slots=True)
class ReadFigures:
    """Since the mount began: image bytes `given` to readers; frames that had to be read, and their
    decoded bytes; how often a frame was in memory already (`hits`) or not (`misses`), or in the
    directory of --cache-dir (`disk_hits`). The cache holds `cache_bytes` of `cache_limit_bytes`."""

    given_bytes: int
    decoded_bytes: int
    frames: int
    hits: int
    misses: int
    disk_hits: int
    cache_bytes: int
    cache_limit_bytes: int


@dataclass(frozen=True, slots=True)
class CheckpointFigures:
    """A checkpoint that is open for writing; one that is at rest is durable, and not listed.

    `path` is that in the mount. `durable`: nothing was written that no commit covers. `failure` is
    what writing ended with, if it did.
    """

    path: str
    images: int
    writers: int
    durable: bool
    failure: str | None
    image_bytes: int
    shards: tuple[ShardFigures, ...]

    @property
    def stored_bytes(self) -> int:
        """The length of its shards."""
        return sum(shard.stored_bytes for shard in self.shards)

    @property
    def landed_bytes(self) -> int:
        """What was compressed into them."""
        return sum(shard.raw_bytes for shard in self.shards)


@dataclass(frozen=True, slots=True)
class MountFigures:
    """All of a mount. `requests` are the kernel's, by kind; `last_commit_s` what the last took."""

    version: str
    store: str
    pid: int
    read_only: bool
    uptime_s: float
    memory_bytes: int
    open_files: int
    writers: int
    commits: int
    failed_commits: int
    last_commit_s: float | None
    write: WriteFigures
    read: ReadFigures
    requests: dict[str, int]
    checkpoints: tuple[CheckpointFigures, ...]


def figures_of(filesystem: Filesystem, uptime_s: float) -> MountFigures:
    """As they are at this moment. On the event loop."""
    lanes, reader, checkpoints = filesystem.lanes, filesystem.reader, filesystem.checkpoints
    directories = filesystem.names.directories()
    return MountFigures(
        version=__version__,
        store=str(filesystem.settings.store),
        pid=os.getpid(),
        read_only=filesystem.settings.read_only,
        uptime_s=round(uptime_s, 3),
        memory_bytes=_resident_bytes(),
        open_files=sum(each.open_files for each in directories),
        writers=sum(each.open_writers for each in directories),
        commits=checkpoints.commits,
        failed_commits=checkpoints.failed_commits,
        last_commit_s=checkpoints.last_commit_s,
        write=WriteFigures(
            taken_bytes=lanes.written_bytes,
            landed_bytes=lanes.landed_bytes,
            stored_bytes=lanes.stored_bytes,
            frames=lanes.frames,
            queued_bytes=lanes.in_use_bytes,
            queue_limit_bytes=lanes.budget_bytes,
            lanes=tuple(lanes.queued_bytes()),
        ),
        read=ReadFigures(
            given_bytes=filesystem.given_bytes,
            decoded_bytes=reader.read_bytes,
            frames=reader.frames,
            hits=reader.hits,
            misses=reader.misses,
            disk_hits=reader.disk_hits,
            cache_bytes=reader.used_bytes,
            cache_limit_bytes=reader.cache_bytes,
        ),
        requests=dict(filesystem.requests),
        checkpoints=tuple(
            _checkpoint(filesystem, each, log)
            for each in directories
            if (log := each.log) is not None
        ),
    )


def _checkpoint(filesystem: Filesystem, directory: Directory, log: Log) -> CheckpointFigures:
    images = log.contents.images.values()
    return CheckpointFigures(
        path=str(path_below(directory.path, filesystem.settings.store)),
        images=len(images),
        writers=directory.open_writers,
        durable=not log.dirty and log.failure is None,
        failure=str(log.failure) if log.failure is not None else None,
        image_bytes=sum(image.length for image in images),
        shards=log.figures(),
    )


def _resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")
