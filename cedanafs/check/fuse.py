"""Root, the device, the libraries, a mount that works, and mounts that do not."""

from __future__ import annotations

import ctypes
import os
import shutil
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import pyfuse3
import trio

from cedanafs.check.findings import PATIENCE_S, Finding, State
from cedanafs.config import MountSettings
from cedanafs.errors import CedanaFsError, the_error
from cedanafs.fs.mount import mounted
from cedanafs.fs.mounts import mounts


async def findings() -> AsyncIterator[Finding]:
    yield root()
    yield device()
    yield _libraries()
    yield await _mount()
    async for finding in _stale_mounts():
        yield finding


def root() -> Finding:
    if os.geteuid() == 0:
        return Finding("root", State.OK, "running as root")
    return Finding("root", State.ERROR, "not root", "CRIU and the mount for it need root: sudo")


def device() -> Finding:
    try:
        os.close(os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC))
    except FileNotFoundError:
        advice = "modprobe fuse; in a container: --device /dev/fuse"
        return Finding("/dev/fuse", State.ERROR, "it is not there", advice)
    except OSError as exc:
        advice = "let root open it; in a container: --device /dev/fuse"
        return Finding("/dev/fuse", State.ERROR, f"cannot be opened: {exc.strerror}", advice)
    return Finding("/dev/fuse", State.OK, "can be opened")


def _libraries() -> Finding:
    versions = f"pyfuse3 {pyfuse3.__version__}"
    try:
        told = ctypes.CDLL("libfuse3.so.3").fuse_pkgversion
        told.restype = ctypes.c_char_p
        versions += f", libfuse {told().decode()}"
    except (OSError, AttributeError):  # an older one does not tell, or it has another name
        versions += ", a libfuse that does not tell its version"
    return Finding("libraries", State.OK, versions)


async def _mount() -> Finding:
    """A store of one small file, really mounted."""
    name = "fuse mount"
    scratch = Path(tempfile.mkdtemp(prefix="cedanafs-check-"))
    try:
        (store := scratch / "store").mkdir(mode=0o700)
        (mountpoint := scratch / "mnt").mkdir(mode=0o700)
        with trio.move_on_after(PATIENCE_S) as patience:
            async with mounted(MountSettings(store, shards=1), mountpoint):
                same = await trio.to_thread.run_sync(
                    _writes_and_reads, mountpoint / "x", abandon_on_cancel=True
                )
        if patience.cancelled_caught:
            return Finding(name, State.ERROR, f"no answer in {PATIENCE_S:.0f} s", "see dmesg")
        if not same:
            return Finding(name, State.ERROR, "gives other bytes than were written")
    except (CedanaFsError, OSError, BaseExceptionGroup) as exc:
        advice = "in a container: --device /dev/fuse --cap-add SYS_ADMIN"
        return Finding(name, State.ERROR, str(the_error(exc)), advice)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return Finding(name, State.OK, "mounted, written, read and unmounted")


def _writes_and_reads(directory: Path) -> bool:
    data = os.urandom(5000)
    directory.mkdir()
    (directory / "file").write_bytes(data)
    return (directory / "file").read_bytes() == data


async def _stale_mounts() -> AsyncIterator[Finding]:
    """Mounts whose server died, or does not answer."""
    found = list(mounts())
    for mount in found:
        advice = f"cedanafs umount {mount.mountpoint}"
        with trio.move_on_after(PATIENCE_S) as patience:
            try:
                await trio.to_thread.run_sync(os.statvfs, mount.mountpoint, abandon_on_cancel=True)
            except OSError as exc:
                message = f"{mount.mountpoint} is stale: {exc.strerror}"
                yield Finding("mounts", State.WARNING, message, advice)
        if patience.cancelled_caught:
            yield Finding("mounts", State.WARNING, f"{mount.mountpoint} does not answer", advice)
    yield Finding("mounts", State.OK, f"{len(found)} of cedanafs")
