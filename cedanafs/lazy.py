"""A lazy restore: the process runs at once, and its memory comes when it is touched.

Whatever gives it that memory must live on when the command has ended: a process of its own in the
background, forked off before there is an event loop. It mounts the checkpoint, if that is not in a
mount already, runs CRIU's lazy-pages daemon, and ends when the last page is there. If one cannot be
had it kills the restored tasks, which would wait for it for ever, and says so.

A child of it, the guard (cedanafs/criu/guard.py), does so when it is killed itself.

Foreground and background talk over a pair of sockets. Each packet is a JSON list: `ready
IMAGES_DIR`, `serving`, `arrived` and `failed CLASS TEXT` come from the background, `restored PID`
from the foreground.
"""

from __future__ import annotations

import json
import logging
import os
import select
import shutil
import socket
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Final, NoReturn

import trio

from cedanafs import errors
from cedanafs.config import Defaults
from cedanafs.criu.binary import find_criu
from cedanafs.criu.guard import Guard, Tasks, guard
from cedanafs.criu.lazy_pages import LazyPages, lazy_pages
from cedanafs.errors import CedanaFsError, CriuError, the_error
from cedanafs.fs.mount import check_machine
from cedanafs.images import Images, images_of_restore
from cedanafs.shard.place import Place

logger = logging.getLogger(__name__)

Runner = Callable[[Callable[[], Awaitable[None]]], None]

_WORDS: Final = ("ready", "serving", "arrived", "failed", "end")
_PACKET_BYTES_MAX: Final = 1 << 16
_END_S: Final = 20.0
_RESTORE_END_S: Final = 1.0
_GUARD_END_S: Final = 2.0


class PageServer:
    """The background process, as the foreground sees it. Use `page_server`."""

    def __init__(self, conn: socket.socket, work_dir: Path) -> None:
        self.work_dir = work_dir
        """For CRIU's restore too, which finds the daemon's socket there."""
        self.in_charge = False
        """Whether it has the restored tasks in its hands, and goes on when we end."""
        self._conn = conn
        self._said: dict[str, trio.Event] = {}
        self._images_dir = Path()
        self._over = False
        self._failure: CedanaFsError | None = None

    @asynccontextmanager
    async def images(self, path: Place) -> AsyncIterator[Images]:
        """Where CRIU finds the images of *path*; the block is cancelled when serving them fails.

        Raises: what made that fail, in the background.
        """
        self._said = {word: trio.Event() for word in _WORDS}
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._listen, nursery.cancel_scope)
            await self._said["ready"].wait()
            try:
                yield Images(self._images_dir, path, streamed=True)
            except CedanaFsError:
                self._over = True
                self._conn.shutdown(socket.SHUT_WR)
                with trio.move_on_after(_END_S):  # it may know better: what it read was damaged
                    await self._said["end"].wait()
                if self._failure is None:
                    raise
            nursery.cancel_scope.cancel()
        if self._failure is not None:
            raise self._failure

    async def hand_over(self, pid: int) -> None:
        """Leave the restored *pid* to the background: it kills it if its memory cannot be had."""
        with trio.CancelScope(shield=True):  # the tasks run: they need somebody from here on
            await _say(trio.socket.from_stdlib_socket(self._conn), "restored", pid)
        await self._said["serving"].wait()
        self.in_charge = True

    async def all_arrived(self) -> None:
        """Return when the restored tasks have all their memory."""
        await self._said["arrived"].wait()

    async def _listen(self, block: trio.CancelScope) -> None:
        conn = trio.socket.from_stdlib_socket(self._conn)
        while packet := await conn.recv(_PACKET_BYTES_MAX):
            word, *details = json.loads(packet)
            if word == "failed":
                kind, text = details
                self._failure = getattr(errors, kind)(text)
                block.cancel()
            elif word == "ready":
                self._images_dir = Path(details[0])
            self._said[word].set()
        if not (self._over or self._failure or self._said["arrived"].is_set()):
            self._failure = CedanaFsError("what serves the restored memory has died")
            block.cancel()
        self._said["end"].set()


@contextmanager
def page_server(
    path: Place,
    stream: int | None,
    defaults: Defaults,
    run: Runner,
) -> Iterator[PageServer]:
    """A background process that serves a lazy restore of *path*, and lives on if that succeeds.

    To be called before there is an event loop; *run* is that of the background, and its log.
    When the restore fails nothing of it is left but CRIU's logs, if it is CRIU that failed.
    Raises: MachineError.
    """
    check_machine()
    criu_binary = find_criu(defaults.criu_binary)
    work_dir = Path(tempfile.mkdtemp(prefix="cedanafs-restore-"))
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    pid = os.fork()
    if pid == 0:
        ours.close()
        above, below = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        if os.fork() == 0:
            _in_the_background(run, partial(guard, below), {below.fileno()})
        path = path.absolute()
        serve = partial(_serve, theirs, Guard(above), work_dir, path, stream, defaults, criu_binary)
        _in_the_background(run, serve, {theirs.fileno(), above.fileno()})
    theirs.close()
    server = PageServer(ours, work_dir)
    keep = False
    try:
        yield server
    except BaseException as exc:
        keep = isinstance(the_error(exc), CriuError)
        raise
    finally:
        ours.close()
        if not server.in_charge:
            _wait_for_end(pid)
            if not keep:
                shutil.rmtree(work_dir, ignore_errors=True)


def _wait_for_end(pid: int) -> None:
    """Its store may be hanging: not for ever."""
    pidfd = os.pidfd_open(pid)
    try:
        select.select([pidfd], [], [], _END_S)
    finally:
        os.close(pidfd)


def _in_the_background(
    run: Runner, serve: Callable[[], Awaitable[None]], kept: Collection[int]
) -> NoReturn:
    """What a forked process does, to its end."""
    try:
        os.setsid()
        os.umask(0o077)
        os.chdir("/")
        null = os.open(os.devnull, os.O_RDWR)
        for fd in (0, 1, 2):
            os.dup2(null, fd)
        for fd in map(int, os.listdir("/proc/self/fd")):
            if fd > 2 and fd not in kept:  # whoever gave it to the command expects it closed
                with suppress(OSError):
                    os.close(fd)
        run(serve)
    except BaseException as exc:
        error = the_error(exc)
        logger.error("lazy restore: %s", str(error) or type(error).__name__)
        os._exit(1)
    os._exit(0)


async def _serve(
    conn: socket.socket,
    guard: Guard,
    work_dir: Path,
    path: Place,
    stream: int | None,
    defaults: Defaults,
    criu_binary: str,
) -> None:
    """Serve until all memory has arrived. Raises: why it cannot; the foreground knows it then."""
    front = trio.socket.from_stdlib_socket(conn)
    try:
        async with (
            images_of_restore(path, stream, defaults) as images,
            lazy_pages(criu_binary, images_dir=images.path, work_dir=work_dir) as daemon,
        ):
            await guard.tell("daemon", daemon.pid)
            await _say(front, "ready", os.fspath(images.path))
            arrived = await _supervise(front, daemon, images, guard)
    except BaseException as exc:
        error = the_error(exc)
        with trio.CancelScope(shield=True):
            if isinstance(error, CedanaFsError):
                await _say(front, "failed", type(error).__name__, str(error))
        if not isinstance(error, CriuError):  # it names its log there
            shutil.rmtree(work_dir, ignore_errors=True)
        raise error from None
    finally:
        with trio.move_on_after(_GUARD_END_S, shield=True):
            await guard.tell("over")
            await guard.ended()
    if arrived:
        logger.info("all memory has arrived")
        shutil.rmtree(work_dir, ignore_errors=True)
        await _say(front, "arrived")


async def _supervise(
    front: trio.socket.SocketType, daemon: LazyPages, images: Images, guard: Guard
) -> bool:
    """Return when the restored tasks have their memory; False when nothing was restored.

    Raises: why they cannot have it; they are dead then.
    """
    failure: CedanaFsError | None = None
    pid: int | None = None
    arrived = False
    ended = trio.Event()

    async def watch() -> None:
        nonlocal failure
        try:
            await daemon.finished()
        except CedanaFsError as exc:
            failure = images.damage() or exc
            if (
                pid is None and failure is exc
            ):  # perhaps only as CRIU's restore has: that says better why
                await trio.sleep(_RESTORE_END_S)
            if pid is None:  # CRIU may be waiting for memory
                await _say(front, "failed", type(failure).__name__, str(failure))
        ended.set()

    async def watch_guard() -> None:
        nonlocal failure
        await guard.ended()
        failure = failure or CedanaFsError("the process that guards it has died")
        ended.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(watch)
        nursery.start_soon(watch_guard)
        pid = await _restored_pid(front)
        with Tasks() as tasks:
            try:
                if pid is not None:
                    tasks.add(pid)
                    await guard.tell("restored", pid)
                if pid is not None and failure is None:
                    logger.info("process %s is restored, its memory follows", pid)
                    await _say(front, "serving")
                if pid is not None or daemon.is_needed:
                    await ended.wait()
                    arrived = failure is None
            finally:
                with trio.CancelScope(shield=True):
                    if not arrived:
                        await tasks.kill()
                        if pid is not None and failure is None:
                            logger.error(
                                "process %s is killed: not all its memory has arrived", pid
                            )
                    nursery.cancel_scope.cancel()
                    await guard.tell("over")
                    await guard.ended()
    if pid is None:
        if (damage := images.damage()) is not None:
            raise damage
    elif failure is not None:
        raise type(failure)(
            f"process {pid} is killed, as some of its memory cannot be had: {failure}"
        )
    return arrived


async def _restored_pid(front: trio.socket.SocketType) -> int | None:
    """The root of what was restored; None when the foreground has failed or died."""
    with suppress(ConnectionResetError):
        if packet := await front.recv(_PACKET_BYTES_MAX):
            _, pid = json.loads(packet)
            return int(pid)
    return None


async def _say(conn: trio.socket.SocketType, *packet: object) -> None:
    with suppress(BrokenPipeError, ConnectionResetError):  # its end is noticed by who listens
        await conn.send(json.dumps(packet).encode())
