"""Dump and restore: a CRIU run on a directory for its images, and the commit between them."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Protocol

import trio

from cedanafs.config import Defaults, MountSettings
from cedanafs.criu import driver, stats, tree
from cedanafs.errors import (
    CedanaFsError,
    CriuError,
    StoreError,
    UsageError,
    the_error,
)
from cedanafs.fs.mount import check_machine
from cedanafs.images import Images, images_of_dump, images_of_restore
from cedanafs.lazy import PageServer
from cedanafs.progress import Far, Report, as_event, human
from cedanafs.shard.filesystems import filesystem_of, scratch_of
from cedanafs.shard.place import Place


class Dumpable(Protocol):
    """What runs and can be dumped: a process tree, or a container by its runtime."""

    @property
    def pid(self) -> int:
        """The root task's."""

    @property
    def label(self) -> str:
        """In words, `process 42`."""

    @property
    def name(self) -> str:
        """For the name of its checkpoint, `process-redis`."""

    @property
    def leaves_running(self) -> bool:
        """Whether the tasks run on after a dump that succeeds."""

    @property
    def frozen_stage(self) -> str:
        """Where CRIU first tells, if it comes there, that the tasks are frozen."""

    async def dump(self, images_dir: Path, work_dir: Path, on_notify: driver.Hooks) -> None:
        """As `driver.dump` does; CRIU's log and statistics go to *work_dir*."""


class Restorable(Protocol):
    """What brings a dump back."""

    @property
    def as_other_users(self) -> bool:
        """Whether images are opened by users other than ours."""

    async def restore(self, images_dir: Path, work_dir: Path) -> int:
        """As `driver.restore` does; returns the root task's pid."""


async def dump(
    find: Callable[[], Dumpable],
    *,
    directory: Place,
    name: str | None,
    parent: str | None = None,
    settings: MountSettings | None,
    report: Report,
    work_dir: Path | None = None,
) -> Place:
    """Dump what *find* returns into *directory*/*name*; returns that path, the checkpoint.

    *find* is called once the machine is known to do. *parent* is the name in *directory* of the
    checkpoint that this one builds on. *settings* say how it is streamed (their
    store is not used); None: plain CRIU images. When this returns the checkpoint is durable; unless
    the tasks were left running, it was so before they died. When it raises they run on, and nothing
    of the dump is left, but for a commit whose last fsync failed though it is whole: what says it
    is complete is not removed. CRIU's logs go to *work_dir* if one is given, and stay there.
    Raises: UsageError, StoreError, CriuError, MachineError.
    """
    check_machine()
    target = find()
    if name is None:
        name = f"dump-{target.name}-{time.strftime('%Y%m%d-%H%M%S')}"
    for option, each in (("--name", name), ("--parent", parent)):
        if each is not None and not _is_name(each):
            raise UsageError(f"{option} {each!r}: a checkpoint's name is one path component")
    if parent == name:
        raise UsageError(f"--parent {parent}: that is the name of the dump itself")
    path = str(directory / name)
    report.tell("start", action="dump", of=target.label, pid=target.pid, checkpoint=path)
    far = Far()
    with _logs_in(work_dir, "cedanafs-dump-") as logs:
        committed = None
        try:
            async with images_of_dump(directory, name, parent, settings, target.pid) as images:
                await _dump_into(images, target, logs, report)
                committed = images.kept_at
                await trio.to_thread.run_sync(_keep_logs, logs, images.path)
                await images.commit()
                far = await images.how_far()
        except Exception as exc:
            if committed is None:
                raise
            # The tasks may be gone already, and their checkpoint is whole: this is no failed dump.
            report.say(
                "warning: the checkpoint is safe, but not CRIU's log and statistics in it: "
                f"{the_error(exc)}"
            )
    report.say(f"committed: {committed}")
    report.tell("finished", checkpoint=str(committed), **as_event(far))
    return committed


async def _dump_into(images: Images, target: Dumpable, work_dir: Path, report: Report) -> None:
    leaves_running = target.leaves_running
    frozen = False

    async def tell_frozen() -> None:
        nonlocal frozen
        frozen = True
        report.tell("frozen")

    async def commit() -> None:
        await images.commit()
        report.tell("committed", checkpoint=str(images.kept_at))

    # Frozen tasks wait for the commit before they may die; left running they go on meanwhile.
    hooks = {} if leaves_running else {"post-dump": commit}
    if report.for_programs:
        hooks[target.frozen_stage] = tell_frozen
    what = f"dumping {target.label} into {images.kept_at}"
    try:
        async with (
            report.watch(what, images.how_far, _memory_of(target.pid)),
            _called_off_when_cancelled(images),
        ):
            await target.dump(images.path, work_dir, hooks)
            frozen = False
            figures = _stats_of_dump(work_dir)
            report.tell(
                "thawed",
                alive=leaves_running,
                frozen_s=figures and figures.frozen_time_us / 1e6,
                memory_bytes=figures and _written(figures),
            )
            if leaves_running:
                await commit()
    except BaseException as exc:
        if frozen:
            report.tell("thawed", alive=True, frozen_s=None, memory_bytes=None)
        with trio.CancelScope(shield=True):
            failure = await trio.to_thread.run_sync(images.discard)
        if failure is not None and isinstance(exc, CriuError):  # it failed as the store did
            raise StoreError(
                f"{target.label} is not dumped, {images.kept_at} cannot be written: "
                f"{failure.strerror}{_where_room_lacks(images.kept_at, failure)}",
                os_errno=failure.errno,
            ) from exc
        raise
    if figures is not None:
        report.say(
            f"frozen for {figures.frozen_time_us / 1e6:.2f} s, {human(_written(figures))} of memory"
        )


def _stats_of_dump(work_dir: Path) -> stats.DumpStats | None:
    with suppress(CedanaFsError, OSError):
        return stats.parse_stats(work_dir / stats.STATS_DUMP)
    return None


def _written(figures: stats.DumpStats) -> int:
    """Bytes of memory."""
    return figures.pages_written * os.sysconf("SC_PAGE_SIZE")


def _where_room_lacks(place: Place, failure: OSError) -> str:
    """ENOSPC of s3fs is not about the bucket."""
    if failure.errno != errno.ENOSPC or not isinstance(place, Path):
        return ""
    scratch = scratch_of(filesystem_of(place))
    if scratch is None:
        return ""
    return f": {scratch} is full, where s3fs keeps what it has not uploaded (-o tmpdir=DIRECTORY)"


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


async def restore(
    find: Callable[[], Restorable],
    *,
    path: Place,
    stream: int | None,
    defaults: Defaults,
    report: Report,
    work_dir: Path | None = None,
    pages: PageServer | None = None,
    wait: bool = False,
) -> int:
    """Restore the checkpoint or plain image directory at *path*; returns the root task's pid.

    What *find* returns does it. *stream* is checked against the number of shards there;
    *defaults* say how it is mounted. CRIU's logs go to *work_dir* if one is given. With *pages*,
    which serve its memory then, the restore is lazy; *wait* until all of that has arrived.
    Raises: UsageError, CheckpointError, StoreError, CriuError, MachineError.
    """
    check_machine()
    target = find()
    others = target.as_other_users
    its_images = (
        pages.images(path)
        if pages
        else images_of_restore(path, stream, defaults, for_others=others)
    )
    report.tell("start", action="restore", checkpoint=str(path))
    with _logs_in(pages.work_dir if pages else work_dir, "cedanafs-restore-") as logs:
        async with (
            its_images as images,
            report.watch(f"restoring {path}", images.how_far, images.total_bytes),
        ):
            try:
                pid = await target.restore(images.path, logs)
            except CedanaFsError as exc:
                if (found := images.damage()) is not None:
                    raise found from exc
                raise
            report.tell("restored", pid=pid)
            if pages is not None:
                await pages.hand_over(pid)
                if wait:
                    await pages.all_arrived()
            far = await images.how_far()
    report.say(f"restored process {pid}")
    report.tell("finished", pid=pid, **as_event(far))
    return pid


def _is_name(text: str) -> bool:
    return bool(text) and "/" not in text and text not in (".", "..") and text[:9] != ".cedanafs"


@contextmanager
def _logs_in(given: Path | None, prefix: str) -> Iterator[Path]:
    """A local directory for CRIU's log: *given*, or one of our own.

    That stays only where CRIU failed, whose error names it.
    """
    if given is not None and not given.is_dir():
        raise UsageError(f"--work-path {given} is not a directory: mkdir it")
    work_dir = given.absolute() if given else Path(tempfile.mkdtemp(prefix=prefix))
    keep = given is not None
    try:
        yield work_dir
    except BaseException as exc:
        error = the_error(exc)
        keep = keep or isinstance(error, CriuError)
        if isinstance(error, CedanaFsError):
            raise error from error.__cause__
        raise
    finally:
        if not keep:
            shutil.rmtree(work_dir, ignore_errors=True)


# Blocking helpers: they run on threads where the path may be in a mount that we serve.


def _keep_logs(work_dir: Path, target: Path) -> None:
    for name in (driver.DUMP_LOG, stats.STATS_DUMP):
        if (work_dir / name).exists():
            shutil.copyfile(work_dir / name, target / name)


def _memory_of(pid: int) -> int | None:
    """Resident bytes of the tree: about what the dump will write."""
    total = 0
    for each in (pid, *tree.descendants(pid)):
        with suppress(OSError, ValueError, IndexError):
            total += int(Path(f"/proc/{each}/statm").read_text().split()[1])
    return total * os.sysconf("SC_PAGE_SIZE") or None
