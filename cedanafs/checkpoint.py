"""Dump and restore: a directory for the images, a CRIU run, and the commit between them.

The composition root: the only file that knows both the filesystem and CRIU.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import trio

from cedanafs.config import Defaults, MountSettings
from cedanafs.criu import driver, stats, tree
from cedanafs.criu.binary import find_criu
from cedanafs.criu.options import DumpOptions, RestoreOptions
from cedanafs.errors import (
    CedanaFsError,
    CheckpointMissing,
    CriuError,
    StoreError,
    UsageError,
    the_error,
)
from cedanafs.fs.mount import check_machine, mounted
from cedanafs.fs.mounts import CALL_OFF_XATTR, DISCARD_XATTR, mount_holding, mount_of_store
from cedanafs.progress import Report, human
from cedanafs.shard.audit import INVENTORY, require_complete
from cedanafs.shard.opening import open_checkpoint
from cedanafs.shard.store import is_shard_name, shard_paths

CLEAN_UP_S: Final = 5.0
_RUNTIME_DIR: Final = Path("/run")


@dataclass(frozen=True, slots=True)
class Images:
    """A directory that takes CRIU's images, as seen by CRIU, and by the user afterwards."""

    path: Path
    kept_at: Path
    streamed: bool
    done_bytes: Callable[[], int]
    call_off: Callable[[], None] = lambda: None
    """Make every write that waits for the store fail, and those to come. Blocks if a mount does."""

    async def commit(self) -> None:
        """Return when everything in the directory is durable. Raises: StoreError."""
        try:
            await trio.to_thread.run_sync(self._sync)
        except OSError as exc:
            raise StoreError(
                f"{self.kept_at}: the checkpoint is not durable: {exc.strerror}",
                os_errno=exc.errno,
            ) from exc

    def _sync(self) -> None:
        if not self.streamed:
            for path in self.path.iterdir():
                fd = os.open(path, os.O_RDONLY)
                try:
                    os.fsync(fd)
                finally:
                    os.close(fd)
        fd = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


async def dump(
    options: DumpOptions,
    *,
    directory: Path,
    name: str | None,
    settings: MountSettings | None,
    criu_binary: str | None,
    report: Report,
) -> Path:
    """Dump a process tree into *directory*/*name*; returns that path, the checkpoint.

    *settings* say how it is streamed (their store is not used); None: plain CRIU images. When
    this returns the checkpoint is durable; unless the tasks were left running, it was so before
    they died. When it raises they run on, and nothing of the dump is left.
    Raises: UsageError, StoreError, CriuError, MachineError.
    """
    check_machine()
    tree.check_can_dump(options.pid)
    criu = find_criu(criu_binary)
    if name is None:
        name = f"dump-process-{_process_name(options.pid)}-{time.strftime('%Y%m%d-%H%M%S')}"
    if not name or "/" in name or name in (".", "..") or name.startswith(".cedanafs"):
        raise UsageError(f"--name {name!r}: a checkpoint's name is one path component")
    with _work_dir("cedanafs-dump-") as work_dir:
        committed = None
        try:
            async with _images_of_dump(directory, name, settings, options.pid) as images:
                await _dump_into(images, options, work_dir, criu, report)
                committed = images.kept_at
                await trio.to_thread.run_sync(_keep_logs, work_dir, images.path)
                await images.commit()
        except Exception as exc:
            if committed is None:
                raise
            # The tasks may be gone already, and their checkpoint is whole: this is no failed dump.
            report.say(
                "warning: the checkpoint is safe, but not CRIU's log and statistics in it: "
                f"{the_error(exc)}"
            )
    report.say(f"committed: {committed}")
    return committed


async def _dump_into(
    images: Images, options: DumpOptions, work_dir: Path, criu: str, report: Report
) -> None:
    leaves_running = options.leaves_running()
    # Frozen tasks wait for the commit before they may die; left running they go on meanwhile.
    hooks = {} if leaves_running else {"post-dump": images.commit}
    what = f"dumping process {options.pid} into {images.kept_at}"
    try:
        async with (
            report.watch(what, images.done_bytes, _memory_of(options.pid)),
            _called_off_when_cancelled(images),
        ):
            await driver.dump(
                options,
                images_dir=images.path,
                work_dir=work_dir,
                criu_binary=criu,
                on_notify=hooks,
            )
            if leaves_running:
                await images.commit()
    except BaseException as exc:
        with trio.CancelScope(shield=True):
            failure = await trio.to_thread.run_sync(_discard, images)
        if failure is not None and isinstance(exc, CriuError):  # it failed as the store did
            raise StoreError(
                f"process {options.pid} is not dumped, {images.kept_at} cannot be written: "
                f"{failure.strerror}",
                os_errno=failure.errno,
            ) from exc
        raise
    with suppress(CedanaFsError, OSError):
        figures = stats.parse_stats(work_dir / stats.STATS_DUMP)
        report.say(
            f"frozen for {figures.frozen_time_us / 1e6:.2f} s, "
            f"{human(figures.pages_written * os.sysconf('SC_PAGE_SIZE'))} of memory"
        )


@asynccontextmanager
async def _called_off_when_cancelled(images: Images) -> AsyncIterator[None]:
    """A cancelled block ends though the store hangs: CRIU waits in a write, or we in a commit."""
    over = called_off = False

    async def call_off() -> None:
        nonlocal called_off
        try:
            await trio.sleep_forever()
        finally:
            if not over:
                called_off = True
                with trio.CancelScope(shield=True):
                    await trio.to_thread.run_sync(images.call_off)

    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(call_off)
            try:
                yield
            finally:
                over = True
                nursery.cancel_scope.cancel()
    except BaseExceptionGroup as group:
        cancelled, _ = group.split(trio.Cancelled)
        # What failed because it was called off was cancelled.
        raise the_error(cancelled if called_off and cancelled else group) from None


@asynccontextmanager
async def _images_of_dump(
    directory: Path, name: str, settings: MountSettings | None, pid: int
) -> AsyncIterator[Images]:
    """The directory to dump into: in a mount that is there, in one of our own, or plain."""
    if not directory.is_dir():
        raise UsageError(f"--dir {directory} is not a directory")
    mount = mount_holding(directory)
    if mount is None and settings is not None and (of_store := mount_of_store(directory)):
        mount, directory = of_store, of_store.mountpoint
    path = directory / name
    if mount is not None:
        if settings is None:
            raise UsageError(f"--stream 0: {directory} is in a mount, which streams")
        server = mount.server_pid()
        if server in (pid, *tree.descendants(pid)):
            raise UsageError(f"refuse to dump process {pid}: it runs the mount's own server")
        await trio.to_thread.run_sync(_make_empty, path, path)
        below = os.fspath(path.relative_to(mount.mountpoint)).encode()
        root = mount.mountpoint
        yield Images(
            path,
            path,
            streamed=True,
            done_bytes=lambda: 0,
            call_off=lambda: os.setxattr(root, CALL_OFF_XATTR, below),
        )
    elif settings is None:
        if not _made_directory(path) and any(path.iterdir()):
            raise UsageError(f"{path} is not empty: choose another --name")
        yield Images(path, path, streamed=False, done_bytes=lambda: _bytes_in(path))
    else:
        async with _own_mount(path, settings) as images:
            yield images


@asynccontextmanager
async def _own_mount(path: Path, settings: MountSettings) -> AsyncIterator[Images]:
    """The checkpoint directory *path* mounted for this dump alone."""
    made = _made_directory(path)
    if not made and any(not is_shard_name(entry.name) for entry in path.iterdir()):
        raise UsageError(f"{path} holds other files: choose another --name")
    mountpoint = _new_mountpoint()
    # Nothing is committed but by us: until the dump is whole, an earlier one stays what it was.
    own = replace(settings, store=path.resolve(), quiet_s=None)
    try:
        async with mounted(own, mountpoint) as filesystem:
            await trio.to_thread.run_sync(_make_empty, mountpoint, path)
            yield Images(
                mountpoint,
                path,
                streamed=True,
                done_bytes=lambda: filesystem.statistics().written_bytes,
                call_off=lambda: trio.from_thread.run_sync(filesystem.call_off, "."),
            )
    finally:
        with suppress(OSError):
            mountpoint.rmdir()
        if made:
            with trio.move_on_after(CLEAN_UP_S, shield=True):  # the store may be hanging
                await trio.to_thread.run_sync(_remove_if_uncommitted, path, abandon_on_cancel=True)


async def restore(
    options: RestoreOptions,
    *,
    path: Path,
    stream: int | None,
    criu_binary: str | None,
    defaults: Defaults,
    report: Report,
) -> int:
    """Restore the checkpoint or plain image directory at *path*; returns the root task's pid.

    *stream* is checked against the number of shards there; *defaults* say how it is mounted.
    Raises: UsageError, CheckpointError, StoreError, CriuError, MachineError.
    """
    check_machine()
    criu = find_criu(criu_binary)
    with _work_dir("cedanafs-restore-") as work_dir:
        async with (
            _images_of_restore(path, stream, defaults) as (images, damage),
            report.watch(f"restoring {path}", images.done_bytes, None),
        ):
            try:
                result = await driver.restore(
                    options,
                    images_dir=images.path,
                    work_dir=work_dir,
                    criu_binary=criu,
                    on_notify={},
                )
            except CedanaFsError as exc:
                if (found := damage()) is not None:
                    raise found from exc
                raise
    report.say(f"restored process {result.pid}")
    return result.pid


Damage = Callable[[], CedanaFsError | None]


@asynccontextmanager
async def _images_of_restore(
    path: Path, stream: int | None, defaults: Defaults
) -> AsyncIterator[tuple[Images, Damage]]:
    mount = mount_holding(path)
    store_path = mount.store_path(path.absolute()) if mount else path
    if not path.is_dir():
        raise CheckpointMissing(f"{path}: no such directory")
    shards = len(shard_paths(store_path))
    if stream is not None and stream != shards:
        has = f"has {shards} shards" if shards else "holds plain images, no shards"
        raise UsageError(f"--stream {stream}: {path} {has}")
    if shards and mount is None:
        opened = await trio.to_thread.run_sync(open_checkpoint, path)
        opened.close()
        require_complete(opened)
        settings = replace(defaults, stream=shards).mount_settings(path.resolve(), read_only=True)
        mountpoint = _new_mountpoint()
        try:
            async with mounted(settings, mountpoint) as filesystem:
                yield (
                    Images(mountpoint, path, True, lambda: filesystem.statistics().read_bytes),
                    lambda: filesystem.checkpoints.damage,
                )
        finally:
            with suppress(OSError):
                mountpoint.rmdir()
    elif await trio.to_thread.run_sync((path / INVENTORY).exists):
        yield Images(path, path, streamed=mount is not None, done_bytes=lambda: 0), lambda: None
    else:
        raise CheckpointMissing(f"{path}: no checkpoint here: no img-0 and no {INVENTORY}")


@contextmanager
def _work_dir(prefix: str) -> Iterator[Path]:
    """A local directory for CRIU's log; it stays where CRIU failed, whose error names it."""
    work_dir = Path(tempfile.mkdtemp(prefix=prefix))
    keep = False
    try:
        yield work_dir
    except BaseException as exc:
        error = the_error(exc)
        keep = isinstance(error, CriuError)
        if isinstance(error, CedanaFsError):
            raise error from error.__cause__
        raise
    finally:
        if not keep:
            shutil.rmtree(work_dir, ignore_errors=True)


# Blocking helpers: they run on threads where the path may be in a mount that we serve.


def _made_directory(path: Path) -> bool:
    """Make *path*, or find that it is a directory already."""
    try:
        path.mkdir(mode=0o700)
    except FileExistsError:
        if not path.is_dir():
            raise UsageError(f"{path} is not a directory: choose another --name") from None
        return False
    except OSError as exc:
        raise StoreError(f"cannot make {path}: {exc.strerror}", os_errno=exc.errno) from exc
    return True


def _new_mountpoint() -> Path:
    base = _RUNTIME_DIR if os.access(_RUNTIME_DIR, os.W_OK) else None
    return Path(tempfile.mkdtemp(prefix="cedanafs-", dir=base))


def _make_empty(path: Path, kept_at: Path) -> None:
    """Make the directory, or take an earlier dump's images out of it, but for its inventory.

    CRIU replaces the inventory last; until then the earlier dump stays the committed one.
    """
    try:
        path.mkdir(mode=0o700, exist_ok=True)
        for entry in path.iterdir():
            if entry.name != INVENTORY:
                entry.unlink()
    except OSError as exc:
        raise StoreError(
            f"cannot write into {kept_at}: {exc.strerror}", os_errno=exc.errno
        ) from exc


def _discard(images: Images) -> OSError | None:
    """Leave nothing of a dump that failed. Returns what the store failed with, if it did."""
    if not images.streamed:
        shutil.rmtree(images.path, ignore_errors=True)
        return None
    failure = None
    try:
        os.setxattr(images.path, DISCARD_XATTR, b"")
    except OSError as exc:
        failure = exc
    with suppress(OSError):  # an earlier checkpoint, or the root of our own mount, stays
        images.path.rmdir()
    return failure


def _remove_if_uncommitted(path: Path) -> None:
    with suppress(OSError, CedanaFsError):
        opened = open_checkpoint(path) if shard_paths(path) else None
        if opened is not None:
            opened.close()
        if opened is None or opened.commit == 0:
            for shard in shard_paths(path):
                shard.unlink()
            path.rmdir()


def _keep_logs(work_dir: Path, target: Path) -> None:
    for name in (driver.DUMP_LOG, stats.STATS_DUMP):
        if (work_dir / name).exists():
            shutil.copyfile(work_dir / name, target / name)


def _bytes_in(path: Path) -> int:
    with suppress(OSError):
        return sum(entry.stat().st_size for entry in path.iterdir())
    return 0


def _process_name(pid: int) -> str:
    try:
        name = Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        name = str(pid)
    return "".join(c if c.isalnum() or c in "-_." else "_" for c in name)


def _memory_of(pid: int) -> int | None:
    """Resident bytes of the tree: about what the dump will write."""
    total = 0
    for each in (pid, *tree.descendants(pid)):
        with suppress(OSError, ValueError, IndexError):
            total += int(Path(f"/proc/{each}/statm").read_text().split()[1])
    return total * os.sysconf("SC_PAGE_SIZE") or None
