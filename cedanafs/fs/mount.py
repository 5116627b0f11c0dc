"""A filesystem, mounted: options and what we rely on in them, the loop, the clean end."""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import signal
import stat
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import pyfuse3
import trio

from cedanafs.config import MountSettings
from cedanafs.errors import MachineError, UsageError
from cedanafs.fs.buffers import BUFFER_BYTES, Buffers
from cedanafs.fs.device import Device
from cedanafs.fs.filesystem import Filesystem, open_filesystem
from cedanafs.fs.operations import Operations
from cedanafs.shard.store import directory_at

logger = logging.getLogger(__name__)

READ_AHEAD_KB = 4096
BACKGROUND_REQUESTS = 256
CONNECTIONS = Path("/sys/fs/fuse/connections")
"""A directory of knobs for each mount, where the file system fusectl is mounted."""


@asynccontextmanager
async def mounted(settings: MountSettings, mountpoint: Path) -> AsyncIterator[Filesystem]:
    """The store, mounted at *mountpoint* and answering; unmounted, committed, sealed at the end.

    The block is cancelled when somebody unmounts from outside. When it is cancelled itself, the
    mount answers until it has ended: what cleans up there may use the mount.
    Raises: UsageError, MachineError, StoreError before mounting; on leaving, the first failure
    to make something durable.
    """
    check_before_mounting(settings, mountpoint)
    recycle_memory()
    with contextlib.ExitStack() as stack:
        if not settings.read_only:
            stack.enter_context(directory_at(settings.store).locked(_IN_USE))
        async with open_filesystem(settings) as filesystem:
            device = Device(Buffers(1 + settings.write_budget // BUFFER_BYTES))
            operations = Operations(filesystem, device.invalidate)
            try:
                pyfuse3.init(operations, os.fspath(mountpoint), _options(settings))
            except RuntimeError as exc:
                raise MachineError(f"cannot mount at {mountpoint}: {exc}") from exc
            try:
                with device.taken():
                    async with trio.open_nursery() as nursery:
                        serving = trio.CancelScope(shield=True)
                        serve = partial(device.serve, operations)
                        nursery.start_soon(_serve, serve, serving, nursery.cancel_scope)
                        try:
                            await trio.to_thread.run_sync(tune_kernel, mountpoint)
                            yield filesystem
                        finally:
                            serving.cancel()
            finally:
                # Also after a failure: what is left would be a mount that answers nobody.
                pyfuse3.close(unmount=True)


_IN_USE = "another cedanafs has this store mounted for writing: use that mount, or --read-only"


async def _serve(
    serve: Callable[[], Awaitable[None]], serving: trio.CancelScope, block: trio.CancelScope
) -> None:
    with serving:
        await serve()
        logger.info("unmounted from outside")
        block.cancel()


async def until_stopped() -> None:
    """Return at SIGTERM, SIGINT or SIGHUP."""
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGHUP) as signals:
        async for number in signals:
            logger.info("stopped by %s", signal.Signals(number).name)
            return


def check_before_mounting(settings: MountSettings, mountpoint: Path) -> None:
    """Raises: MachineError, UsageError, StoreError, StoreBusy: what mounting would fail on."""
    check_machine()
    check_mountpoint(mountpoint)
    check_store(settings)
    if not settings.read_only:
        with directory_at(settings.store).locked(_IN_USE):
            pass


def check_machine() -> None:
    """Raises: MachineError when a FUSE filesystem cannot be mounted here."""
    if os.geteuid() != 0:
        raise MachineError("not root: CRIU and the mount for it need root (sudo)")
    if not Path("/dev/fuse").exists():
        raise MachineError("no /dev/fuse: load the kernel module (modprobe fuse)")


def check_mountpoint(mountpoint: Path) -> None:
    """Raises: UsageError, naming what is wrong with *mountpoint*."""
    try:
        if not stat.S_ISDIR(mountpoint.stat().st_mode):
            raise UsageError(f"mount point {mountpoint} is not a directory")
        if mountpoint.is_mount():
            os.statvfs(mountpoint)  # what stat says, the kernel remembers of a dead server too
            raise UsageError(f"{mountpoint} is a mount point already: unmount it first")
        if any(mountpoint.iterdir()):
            raise UsageError(f"mount point {mountpoint} is not empty")
    except (FileNotFoundError, NotADirectoryError):
        raise UsageError(f"mount point {mountpoint} does not exist: mkdir it") from None
    except OSError as exc:  # ENOTCONN, or EIO: a server died and its mount is still there
        raise UsageError(
            f"mount point {mountpoint} is stale ({exc.strerror}): cedanafs umount {mountpoint}"
        ) from exc


def check_store(settings: MountSettings) -> None:
    """Raises: StoreError when the store cannot be read, or written where that is asked for."""
    directory_at(settings.store).check(writable=not settings.read_only)


def recycle_memory() -> None:
    """Let malloc keep what it has: fresh pages are the dearest thing in the data path.

    By default glibc maps every buffer of 128 KiB and more anew and gives it back at once;
    decoding a 1 MiB LZ4 frame took 1.3 ms so, and 0.06 ms recycled.
    """
    m_trim_threshold, m_mmap_threshold, m_arena_max = -1, -3, -8
    with contextlib.suppress(OSError, AttributeError):  # another libc than glibc
        libc = ctypes.CDLL(None)
        libc.mallopt(m_mmap_threshold, 32 << 20)  # the most that glibc takes
        libc.mallopt(m_trim_threshold, 256 << 20)
        libc.mallopt(m_arena_max, 2)


def _options(settings: MountSettings) -> set[str]:
    options = set(pyfuse3.default_options)
    store = str(settings.store).replace("\\", "\\\\").replace(",", "\\,")
    options |= {f"fsname={store}", "subtype=cedanafs", "default_permissions"}
    options |= {"nosuid", "nodev"}
    if settings.allow_other:
        options.add("allow_other")
    if settings.read_only:
        options.add("ro")
    return options


def tune_kernel(mountpoint: Path) -> None:
    """Several 1 MiB reads in flight instead of one of 128 KiB, where we may.

    And however many files are read at once: by default the kernel stops reading ahead while nine
    requests are in flight, and a restore of fifty processes then asks for 16 KiB at a time.
    """
    device = mountpoint.stat().st_dev
    read_ahead = Path(f"/sys/class/bdi/{os.major(device)}:{os.minor(device)}/read_ahead_kb")
    connection = CONNECTIONS / str(os.minor(device))
    for knob, number in (
        (read_ahead, READ_AHEAD_KB),
        (connection / "max_background", BACKGROUND_REQUESTS),
        (connection / "congestion_threshold", BACKGROUND_REQUESTS),
    ):
        try:
            knob.write_text(str(number))
        except OSError as exc:
            logger.info("%s cannot be raised to %d: %s", knob, number, exc.strerror)
