"""What a directory of a store is on, as the kernel tells: whether it will do, and what it needs.

Nothing here asks the filesystem itself but `require_sound`: a dead one would not answer.
Source: docs/stores.md.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Final

from cedanafs.errors import StoreError

S3FS: Final = "fuse.s3fs"
RCLONE: Final = "fuse.rclone"

FSTAB: Final = Path("/etc/fstab")

SCRATCH_MARGIN: Final = 64 << 20
"""Room that s3fs is left with in its temporary directory: full, it hangs with several files."""


@dataclass(frozen=True, slots=True)
class Filesystem:
    """A mounted filesystem: its type as in /proc/mounts, and where it is mounted."""

    kind: str
    mountpoint: Path


def filesystem_of(path: Path) -> Filesystem:
    """What *path* is on."""
    path = path.absolute()
    found = Filesystem("an unknown filesystem", Path("/"))
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        place, _, rest = line.partition(" - ")
        mountpoint = Path(_unescaped(place.split(" ")[4]))
        # The last one that is mounted covers those before it.
        inside = mountpoint == path or mountpoint in path.parents
        if inside and len(mountpoint.parts) >= len(found.mountpoint.parts):
            found = Filesystem(rest.split(" ")[0], mountpoint)
    return found


def require_sound(path: Path, *, writable: bool) -> None:
    """Raises: StoreError when what *path* should be on is gone, or does not keep what it says."""
    found = filesystem_of(path)
    try:
        path.stat()
    except OSError as exc:
        if found.mountpoint == Path("/"):
            return  # no directory of that name, which others say
        raise StoreError(
            f"store {path}: {found.kind} mounted at {found.mountpoint} does not answer "
            f"({exc.strerror}): umount -l {found.mountpoint}, and mount it anew",
            os_errno=exc.errno,
        ) from exc
    if (missing := _not_mounted(path, found)) is not None:
        raise StoreError(
            f"store {path}: {missing} is not mounted, as {FSTAB} says it should be: mount {missing}"
        )
    if writable and found.kind == RCLONE:
        raise StoreError(
            f"store {path}: a mount by rclone answers fsync before anything is uploaded, so "
            "nothing is safe in it: use s3fs or s3:// to write; --read-only mounts it to read"
        )


def _not_mounted(path: Path, found: Filesystem) -> Path | None:
    """The mount point in fstab that *path* lies below and on which nothing is mounted."""
    lines: list[str] = []
    with contextlib.suppress(OSError):
        lines = FSTAB.read_text().splitlines()
    for line in lines:
        fields = line.partition("#")[0].split()
        if len(fields) < 3 or not fields[1].startswith("/"):
            continue
        wanted = Path(_unescaped(fields[1]))
        if wanted in (path, *path.parents) and wanted not in (
            found.mountpoint,
            *found.mountpoint.parents,
        ):
            return wanted
    return None


@lru_cache(maxsize=16)
def scratch_of(found: Filesystem) -> Path | None:
    """Where s3fs keeps all that is written until it is uploaded; None for anything else."""
    if found.kind != S3FS:
        return None
    for words in _commands():
        if Path(words[0]).name == "s3fs" and any(
            _path_of(word) == found.mountpoint for word in words[1:] if not word.startswith("-")
        ):
            options = dict(_options(words))
            return Path(options.get("use_cache") or options.get("tmpdir") or "/tmp")
    return Path("/tmp")


def room_in(scratch: Path) -> int:
    """Bytes that can still be written to *scratch*. Raises: OSError."""
    space = os.statvfs(scratch)
    return space.f_bavail * space.f_frsize


def _commands() -> Iterator[list[str]]:
    """The words of every process's command."""
    for entry in os.listdir("/proc"):
        with contextlib.suppress(OSError):
            if entry.isdigit() and (said := Path(f"/proc/{entry}/cmdline").read_bytes()):
                yield os.fsdecode(said).rstrip("\0").split("\0")


def _options(words: list[str]) -> Iterator[tuple[str, str]]:
    """What `-o a=b,c=d` and `-oa=b` say, later ones last."""
    for before, word in zip(["", *words], words, strict=False):
        if before == "-o":
            said = word
        elif word.startswith("-o") and word != "-o":
            said = word[2:]
        else:
            continue
        for option in said.split(","):
            key, _, value = option.partition("=")
            yield key, value


def _path_of(word: str) -> Path:
    return Path(os.path.abspath(word))


def _unescaped(text: str) -> str:
    """mountinfo and fstab write blanks and the like as octal."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), text)
