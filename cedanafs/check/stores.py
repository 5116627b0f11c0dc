"""Whether checkpoints can be kept in a place, and who else gets to read them."""

from __future__ import annotations

import contextlib
import os
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from cedanafs.check.findings import Finding, State
from cedanafs.errors import StoreError
from cedanafs.fs.mounts import mount_holding
from cedanafs.progress import human
from cedanafs.shard.filesystems import (
    RCLONE,
    Filesystem,
    filesystem_of,
    require_sound,
    room_in,
    scratch_of,
)
from cedanafs.shard.segments import is_shard_name, segment_of

LITTLE_SPACE: Final = 1 << 30
MAX_LOOKED_AT: Final = 20_000
"""Files and directories of a store that are looked at; the rest is said to be left out."""

VOLATILE: Final = frozenset({"tmpfs", "ramfs"})
LAYERED: Final = frozenset({"overlay", "aufs"})


def store(path: Path, *, full: bool = False) -> Iterator[Finding]:
    """Whether checkpoints can be kept at *path*; *full* looks at all that is there already."""
    try:
        require_sound(path, writable=False)
    except StoreError as exc:
        message, _, advice = str(exc).rpartition(": ")
        yield Finding("store", State.ERROR, message, advice)
        return
    try:
        seen = path.stat()
        if not stat.S_ISDIR(seen.st_mode):
            raise NotADirectoryError(0, "not a directory")
        space = os.statvfs(path)
    except OSError as exc:
        yield Finding("store", State.ERROR, f"{path}: {exc.strerror}", f"mkdir -m 700 {path}")
        return
    if (mount := mount_holding(path)) is not None:
        message = f"{path} is in a mount of {mount.store}"
        advice = f"cedanafs check {mount.store}"
        yield Finding("store", State.ERROR, f"{message}: look at the store itself", advice)
        return
    found = filesystem_of(path)
    yield _kind(path, found)
    yield _access(path, space.f_flag)
    free = space.f_bavail * space.f_frsize
    little = space.f_blocks and free < LITTLE_SPACE
    advice = f"df -h {path}; a dump needs as much as the memory, compressed" if little else ""
    state = State.WARNING if little else State.OK
    yield Finding("store space", state, f"{human(free)} free", advice)
    if (scratch := scratch_of(found)) is not None:
        yield _scratch(scratch)
    yield from _privacy(path, None if full else MAX_LOOKED_AT)


def _kind(path: Path, found: Filesystem) -> Finding:
    what = f"{path}, on {found.kind}"
    if found.kind in VOLATILE:
        message, advice = f"{what}: gone with the machine's memory", "choose a disk"
        return Finding("store", State.WARNING, message, advice)
    if found.kind in LAYERED:
        message = f"{what}: gone with the container"
        return Finding("store", State.WARNING, message, "mount a volume there, from the host")
    if found.kind == RCLONE:
        message = f"{what}: answers fsync before anything is uploaded; good to restore from, only"
        advice = "to write use s3fs, or s3://BUCKET/PREFIX in place of the directory"
        return Finding("store", State.ERROR, message, advice)
    return Finding("store", State.OK, what)


def _scratch(scratch: Path) -> Finding:
    """Room where s3fs keeps what it has not uploaded: full, it fails, or hangs for ever."""
    try:
        free = room_in(scratch)
    except OSError as exc:
        message = f"{scratch}, where s3fs keeps what is written: {exc.strerror}"
        return Finding("s3fs space", State.WARNING, message, "mount it with -o tmpdir=DIRECTORY")
    message = f"{human(free)} free in {scratch}, where s3fs keeps a dump until it is uploaded"
    if free < LITTLE_SPACE:
        advice = "mount it with -o tmpdir=DIRECTORY on a larger disk"
        return Finding("s3fs space", State.WARNING, message, advice)
    return Finding("s3fs space", State.OK, message)


def _access(path: Path, flags: int) -> Finding:
    """A file really written, fsynced with its directory, appended to, read back and removed."""
    name = "store access"
    advice = f"mount -o remount,rw {path}" if flags & os.ST_RDONLY else f"chmod u+rwx {path}"
    data = os.urandom(4096)
    try:
        fd, probe = tempfile.mkstemp(prefix=".cedanafs-check-", dir=path)
    except OSError as exc:
        message = f"cannot be written: {exc.strerror} (to restore, --read-only is enough)"
        return Finding(name, State.ERROR, message, advice)
    try:
        try:
            os.write(fd, data)
            os.fsync(fd)
        finally:
            os.close(fd)
        with open(probe, "ab") as again:  # as the next commit does
            again.write(data)
            again.flush()
            os.fsync(again.fileno())
        same = Path(probe).read_bytes() == 2 * data
        directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
    except OSError as exc:
        message = f"cannot be written durably: {exc.strerror}"
        return Finding(name, State.ERROR, message, f"df -h {path}; dmesg | tail")
    finally:
        with contextlib.suppress(OSError):
            os.unlink(probe)
    if not same:
        return Finding(name, State.ERROR, "gives other bytes than were written", "dmesg | tail")
    return Finding(name, State.OK, "written, fsynced, appended to and read")


def _privacy(path: Path, at_most: int | None) -> Iterator[Finding]:
    """The memory of processes is in there: keys, tokens, what they worked on."""
    open_places: list[Path] = []
    foreign: list[Path] = []
    checkpoints = looked_at = 0
    left = [path]
    while left and (at_most is None or looked_at < at_most):
        directory = left.pop()
        try:
            entries = sorted(os.scandir(directory), key=lambda entry: entry.name)
        except OSError as exc:
            message = f"{directory}: {exc.strerror}"
            yield Finding("store privacy", State.WARNING, f"cannot be looked at: {message}")
            continue
        looked_at += 1 + len(entries)
        shards = [
            entry for entry in entries
            if is_shard_name(segment_of(entry.name)[0]) and not entry.is_dir(follow_symlinks=False)
        ]  # fmt: skip
        checkpoints += bool(shards)
        for place in [directory, *map(Path, shards)] if shards or directory == path else []:
            seen = place.lstat()
            if seen.st_uid not in (0, os.geteuid()) or not (
                stat.S_ISREG(seen.st_mode) or stat.S_ISDIR(seen.st_mode)
            ):
                foreign.append(place)
            elif seen.st_mode & 0o077:
                open_places.append(place)
        left += [Path(e.path) for e in entries if e.is_dir(follow_symlinks=False)]
    if open_places:
        yield Finding(
            "store privacy",
            State.WARNING,
            f"others can get at {_some(open_places)}: the memory of processes is in there",
            f"chmod -R go= {path}",
        )
    if foreign:
        yield Finding(
            "store owner",
            State.WARNING,
            f"{_some(foreign)}: another user's, or no plain file",
            "restore only what you trust: who can write a checkpoint decides what it runs",
        )
    if not open_places and not foreign:
        yield Finding(
            "store privacy", State.OK, f"{checkpoints} checkpoints, nobody else's to read"
        )
    if left:
        message = f"only {looked_at} files were looked at"
        yield Finding("store size", State.WARNING, message, f"cedanafs check --full {path}")


def _some(places: list[Path]) -> str:
    return f"{places[0]}" + (f" and {len(places) - 1} more" if len(places) > 1 else "")
