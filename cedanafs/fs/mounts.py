"""The cedanafs mounts of this machine, as the kernel shows them, and how to end one."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cedanafs.errors import StoreBusy, StoreError, UsageError
from cedanafs.shard.place import ObjectPath, Place, path_below, place_of
from cedanafs.shard.store import directory_at

FILESYSTEM_TYPE: Final = "fuse.cedanafs"

SEAL_XATTR: Final = "user.cedanafs.seal"
"""Setting it on a mount's root commits and seals everything that was written."""

DISCARD_XATTR: Final = "user.cedanafs.discard"
"""Setting it on a directory takes its checkpoint back to its last commit."""

BASE_XATTR: Final = "user.cedanafs.base"
"""Setting it on a new directory makes its checkpoint refer to the one beside it with that name."""

CALL_OFF_XATTR: Final = "user.cedanafs.call-off"
"""Setting it on a mount's root fails what is written below the path that is its value.

On the root, as the kernel holds a directory's lock while an fsync of it waits for the store.
"""

SERVER_END_S: Final = 60.0
ELSEWHERE_S: Final = 3.0
"""How long a server may take to end before we look who keeps it."""


@dataclass(frozen=True, slots=True)
class Mount:
    """A mounted store."""

    mountpoint: Path
    store: Place
    read_only: bool

    def store_path(self, path: Place) -> Place:
        """Where in the store *path*, which lies in the mount, is kept."""
        return self.store / str(path_below(path.absolute(), self.mountpoint))

    def server_pid(self) -> int | None:
        """The process that serves this mount for writing: who holds the store's lock."""
        with contextlib.suppress(OSError):
            wanted = directory_at(self.store).lock_path().stat()
            device = f"{os.major(wanted.st_dev):02x}:{os.minor(wanted.st_dev):02x}"
            for line in Path("/proc/locks").read_text().splitlines():
                fields = line.split()
                if fields[1] == "FLOCK" and fields[5] == f"{device}:{wanted.st_ino}":
                    return int(fields[4])
        return None


def mounts() -> Iterator[Mount]:
    """Every cedanafs mount that this process sees, the newest last."""
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        place, _, kind = line.partition(" - ")
        filesystem_type, source, *_ = kind.split(" ")
        if filesystem_type == FILESYSTEM_TYPE:
            fields = place.split(" ")
            options = fields[5].split(",")
            yield Mount(Path(_unescaped(fields[4])), place_of(_unescaped(source)), "ro" in options)


def mount_holding(path: Place) -> Mount | None:
    """The mount in which *path* lies, if it lies in one."""
    if isinstance(path, ObjectPath):
        return None
    path = path.absolute()
    held = [m for m in mounts() if m.mountpoint == path or m.mountpoint in path.parents]
    return max(held, key=lambda m: len(m.mountpoint.parts), default=None)


def mount_of_store(store: Place) -> Mount | None:
    """A mount of *store* for writing, if there is one."""
    store = store.resolve()
    return next((m for m in mounts() if m.store == store and not m.read_only), None)


def unmount(mountpoint: Path) -> None:
    """Commit and seal, unmount, wait for the server to end. Blocks.

    A mount whose server is dead is only taken away. Raises: UsageError when there is no mount
    or it is busy, StoreError when something is not durable (it then stays mounted).
    """
    mountpoint = mountpoint.absolute()
    mount = next((m for m in mounts() if m.mountpoint == mountpoint), None)
    if mount is None:
        raise UsageError(
            f"{mountpoint} is no mount of cedanafs: findmnt -t fuse.cedanafs shows them"
        )
    _seal(mount)
    device = _device(mountpoint)
    done = _umount(mountpoint)
    if done.returncode != 0:
        if "busy" in done.stderr:
            raise UsageError(
                f"{mountpoint} is busy: close what is open in it (fuser -vm {mountpoint} shows who)"
            )
        raise _not_unmounted(mountpoint, done)
    if not mount.read_only:
        _wait_for_server(mount, device)


def detach(mountpoint: Path) -> None:
    """Take the mount away now; its server commits what it can. Raises: UsageError."""
    done = _umount(mountpoint, "--lazy")
    if done.returncode != 0:
        raise _not_unmounted(mountpoint, done)


def _umount(mountpoint: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """Without its helper, which is `unmount` itself."""
    command = ["umount", "--internal-only", *options, "--", os.fspath(mountpoint)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def _not_unmounted(mountpoint: Path, done: subprocess.CompletedProcess[str]) -> UsageError:
    reason = " ".join(done.stderr.split()) or f"umount ended with {done.returncode}"
    return UsageError(f"cannot unmount {mountpoint}: {reason}")


def _device(mountpoint: Path) -> str | None:
    """How mountinfo names the mount's device; None where the server is dead."""
    with contextlib.suppress(OSError):
        device = mountpoint.stat().st_dev
        return f"{os.major(device)}:{os.minor(device)}"
    return None


def _process_that_has(device: str | None) -> int | None:
    """A process in whose mount namespace *device* is still mounted."""
    for mountinfo in Path("/proc").glob("[0-9]*/mountinfo"):
        with contextlib.suppress(OSError):  # it has ended
            if any(line.split(" ")[2] == device for line in mountinfo.read_text().splitlines()):
                return int(mountinfo.parent.name)
    return None


def _seal(mount: Mount) -> None:
    if mount.read_only:
        return
    try:
        os.setxattr(mount.mountpoint, SEAL_XATTR, b"")
    except OSError as exc:
        if exc.errno == errno.ENOTCONN:  # nobody is there to lose anything any more
            return
        raise StoreError(
            f"{mount.mountpoint} stays mounted, as something is not durable in {mount.store}: "
            f"{exc.strerror}; mend the store, or `umount` it and lose what was not committed",
            os_errno=exc.errno,
        ) from exc


def _wait_for_server(mount: Mount, device: str | None) -> None:
    """The server holds the store's lock until it has ended its work."""
    try:
        fd = os.open(directory_at(mount.store).lock_path(), os.O_RDONLY)
    except FileNotFoundError:
        return
    begun = time.monotonic()
    try:
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                waited_s = time.monotonic() - begun
                if waited_s > ELSEWHERE_S and (pid := _process_that_has(device)) is not None:
                    raise StoreBusy(
                        f"{mount.mountpoint} is unmounted and all that was written is durable, but "
                        f"process {pid} has it in a mount namespace of its own (a container, a "
                        f"service?): the server keeps {mount.store} until that ends"
                    ) from None
                if waited_s > SERVER_END_S:
                    raise StoreError(
                        f"unmounted, but the server of {mount.store} has not ended after "
                        f"{SERVER_END_S:.0f} s: is the store hanging?"
                    ) from None
                time.sleep(0.02)
    finally:
        os.close(fd)


def _unescaped(text: str) -> str:
    """mountinfo writes blanks and the like as octal."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), text)
