"""CRIU's lazy-pages daemon, supervised: it gives restored tasks the memory that they touch.

A task's userfaultfd is in the daemon's hands alone. When the daemon dies the kernel takes that for
"nothing more to come", and the task reads zeros where its memory should be. So we hold each of
these descriptors too: tasks then wait at the first page that is missing, until whoever supervises
has killed them.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import signal
import subprocess
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final, Self

import trio

from cedanafs.criu import logfile, tree
from cedanafs.criu.worker import cannot_start
from cedanafs.errors import CriuError, MachineError

LAZY_PAGES_LOG: Final = "lazy-pages.log"

_END_GRACE_S: Final = 10.0
_LOG_BYTES_MAX: Final = 1 << 20
_USERFAULTFD: Final = "anon_inode:[userfaultfd]"
_SYS_PIDFD_GETFD: Final = 438
_LOOK_S: Final = 0.005
_LOOK_AGAIN_S: Final = 0.1


class LazyPages:
    """A running daemon. Use `lazy_pages`."""

    def __init__(self, process: trio.Process, work_dir: Path) -> None:
        self.log = work_dir / LAZY_PAGES_LOG
        self._process = process
        self._pidfd = os.pidfd_open(process.pid)
        self._held: list[int] = []

    async def hold(self) -> None:
        """Hold the tasks' descriptors as soon as the daemon has them, until `finished`.

        Also those of children that the tasks fork, a moment later. Cancel it at the end.
        """
        while True:
            held = self._held
            self._held = self._duplicates()
            _close(held)
            await trio.sleep(_LOOK_AGAIN_S if self._held else _LOOK_S)

    @property
    def holds(self) -> bool:
        """Whether a restore has come to the point where tasks need the daemon."""
        return bool(self._held)

    async def finished(self) -> None:
        """Return when the tasks have all their memory.

        Raises: CriuError with the daemon's own reason and the path of its log. The tasks then wait
        for memory until they are killed or this daemon's context is left.
        """
        code = await self._process.wait()
        if code != 0:
            raise CriuError(f"criu lazy-pages {await self._reason(code)}; log: {self.log}")

    async def _reason(self, code: int) -> str:
        if code < 0:
            return f"was killed by {signal.Signals(-code).name}"
        error = await trio.to_thread.run_sync(_first_error, self.log)
        return f"failed: {error.line}" if error is not None else f"ended with {code}"

    def _duplicates(self) -> list[int]:
        """Descriptors of ours for each userfaultfd that the daemon has now."""
        found = []
        for number, target in _descriptors(self._process.pid):
            if target == _USERFAULTFD and (fd := self._duplicate(number)) is not None:
                found.append(fd)
        return found

    def _duplicate(self, number: int) -> int | None:
        """None where the daemon has closed it."""
        fd: int = _libc.syscall(_SYS_PIDFD_GETFD, self._pidfd, number, 0)
        if fd >= 0:
            return fd
        error = ctypes.get_errno()
        if error in (errno.EBADF, errno.ESRCH):
            return None
        raise MachineError(
            f"cannot supervise criu lazy-pages (pidfd_getfd: {os.strerror(error)}): "
            "restore without --lazy; it needs Linux 5.6 and the right to trace processes"
        )

    async def end(self) -> None:
        """End the daemon, if it still runs, and let go of what is held."""
        with trio.CancelScope(shield=True):
            self._process.terminate()
            with trio.move_on_after(_END_GRACE_S):
                await self._process.wait()
            self._process.kill()
            await self._process.wait()
        os.close(self._pidfd)
        _close(self._held)


@asynccontextmanager
async def lazy_pages(
    criu_binary: str, *, images_dir: Path, work_dir: Path
) -> AsyncIterator[LazyPages]:
    """A daemon that serves the tasks of *images_dir*, listening in *work_dir* for their restore.

    Raises: MachineError when CRIU cannot be started, CriuError when it cannot serve these images.
    """
    ready, write_end = os.pipe()
    try:
        try:
            process = await trio.lowlevel.open_process(
                [
                    criu_binary, "lazy-pages", "-v2", "-D", os.fspath(images_dir),
                    "-W", os.fspath(work_dir), "-o", LAZY_PAGES_LOG,
                    "--status-fd", str(write_end),
                ],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=[write_end],
                start_new_session=True,
            )  # fmt: skip
        except OSError as exc:
            raise cannot_start(criu_binary, exc) from exc
        finally:
            os.close(write_end)
        daemon = LazyPages(process, work_dir)
        try:
            await trio.lowlevel.wait_readable(ready)
            if not os.read(ready, 1):  # it has ended without saying that it is ready
                await daemon.finished()
                raise CriuError(f"criu lazy-pages ended before it served; log: {daemon.log}")
            yield daemon
        finally:
            await daemon.end()
    finally:
        os.close(ready)


class Tasks:
    """The tree under *root*, if there is one, to be killed if its memory never comes."""

    def __init__(self, root: int | None) -> None:
        self._pidfds: dict[int, int] = {}
        if root is not None:
            self._note(root)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        _close(self._pidfds.values())

    def _note(self, pid: int) -> None:
        for each in (pid, *tree.descendants(pid)):
            if each not in self._pidfds:
                with contextlib.suppress(ProcessLookupError):
                    self._pidfds[each] = os.pidfd_open(each)

    def kill(self) -> None:
        """Kill the tasks that there were, and what they have forked since."""
        for pid, pidfd in list(self._pidfds.items()):
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(pidfd, 0)  # else the pid may be another's by now
                self._note(pid)
        for pidfd in self._pidfds.values():
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)


_libc = ctypes.CDLL(None, use_errno=True)


def _descriptors(pid: int) -> Iterator[tuple[int, str]]:
    """The descriptors that *pid* has open, and what each is of; none when it is gone."""
    with contextlib.suppress(OSError):
        for name in os.listdir(f"/proc/{pid}/fd"):
            with contextlib.suppress(OSError):
                yield int(name), os.readlink(f"/proc/{pid}/fd/{name}")


def _close(fds: Iterable[int]) -> None:
    for fd in fds:
        os.close(fd)


def _first_error(log_path: Path) -> logfile.LogError | None:
    try:
        with log_path.open(errors="replace") as log_file:
            return logfile.first_error(log_file.read(_LOG_BYTES_MAX))
    except OSError:
        return None
