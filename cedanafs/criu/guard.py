"""The guard of a lazy restore: tasks whose memory cannot come any more never read zeros.

A task's userfaultfd is in the hands of CRIU's lazy-pages daemon alone. When the daemon dies the
kernel takes that for "nothing more to come", and the task reads zeros where its memory should be.
So a process that does nothing else holds each of these descriptors, too: tasks then wait at the
first page that is missing until their supervisor has killed them, or the guard, if the supervisor
itself has died. Whichever of the three is killed, two are left.

The supervisor says, in packets of JSON, `daemon PID`, `restored PID` and at last `over`.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import logging
import os
import select
import signal
import socket
from collections.abc import Iterable
from typing import Final, Self

import trio

from cedanafs.criu import tree
from cedanafs.errors import MachineError

logger = logging.getLogger(__name__)

_PACKET_BYTES_MAX: Final = 1 << 10
_LOOK_S: Final = 0.005
_LOOK_AGAIN_S: Final = 0.1
_KILLED_S: Final = 5.0
_RESTORE_END_S: Final = 10.0
_USERFAULTFD: Final = "anon_inode:[userfaultfd]"
_SYS_PIDFD_GETFD: Final = 438


class Guard:
    """The guarding process, as the supervisor sees it."""

    def __init__(self, conn: socket.socket) -> None:
        self._conn = conn

    async def tell(self, word: str, pid: int = 0) -> None:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # `ended` tells
            await self._socket().send(json.dumps([word, pid]).encode())

    async def ended(self) -> None:
        """Return when it is gone."""
        with contextlib.suppress(ConnectionResetError):
            await self._socket().recv(1)

    def _socket(self) -> trio.socket.SocketType:
        return trio.socket.from_stdlib_socket(self._conn)


async def guard(conn: socket.socket) -> None:
    """What the guarding process does, to its end."""
    supervisor = trio.socket.from_stdlib_socket(conn)
    with Tasks() as tasks, contextlib.ExitStack() as stack:
        descriptors: Descriptors | None = None
        while True:
            packet = None
            with trio.move_on_after(descriptors.look_again_s if descriptors else float("inf")):
                packet = await supervisor.recv(_PACKET_BYTES_MAX)
            if packet is None:
                assert descriptors is not None
                descriptors.hold()
                continue
            word, pid = json.loads(packet) if packet else ("", 0)
            if word == "daemon":
                descriptors = stack.enter_context(Descriptors(pid))
            elif word == "restored":
                tasks.add(pid)
            elif word == "over":
                return
            else:
                break
        if tasks.root is None:  # whoever restores them notices, too, and ends that
            await trio.sleep(_RESTORE_END_S)
            return
        await tasks.kill()
        logger.error(
            "process %s is killed: its supervisor has died, and not all its memory has arrived",
            tasks.root,
        )


class Descriptors:
    """The userfaultfds of a daemon, held to the end of the block; the daemon is killed then."""

    def __init__(self, daemon: int) -> None:
        self._pid = daemon
        self._pidfd = os.pidfd_open(daemon)
        self._held: list[int] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
        os.close(self._pidfd)
        _close(self._held)

    @property
    def look_again_s(self) -> float:
        """When `hold` is due: soon for the first, later for those of children that tasks fork."""
        return _LOOK_AGAIN_S if self._held else _LOOK_S

    def hold(self) -> None:
        """Hold those that the daemon has now; when it is dead, those that it had."""
        found = []
        for number in userfaultfds(self._pid):
            with contextlib.suppress(OSError):  # it has closed it meanwhile, or is dead
                found.append(_duplicate(self._pidfd, number))
        if not select.select([self._pidfd], [], [], 0)[0]:
            self._held, found = found, self._held
        _close(found)


class Tasks:
    """Trees of restored tasks, to be killed if their memory never comes."""

    def __init__(self) -> None:
        self.root: int | None = None
        self._pidfds: dict[int, int] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        _close(self._pidfds.values())

    def add(self, root: int) -> None:
        self.root = root
        self._note(root)

    def _note(self, pid: int) -> None:
        for each in (pid, *tree.descendants(pid)):
            if each not in self._pidfds:
                with contextlib.suppress(ProcessLookupError):
                    self._pidfds[each] = os.pidfd_open(each)

    async def kill(self) -> None:
        """Kill the tasks that there were, and what they have forked since; return when they end."""
        for pid, pidfd in list(self._pidfds.items()):
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(pidfd, 0)  # else the pid may be another's by now
                self._note(pid)
        for pidfd in self._pidfds.values():
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        with trio.move_on_after(_KILLED_S, shield=True):
            for pidfd in self._pidfds.values():
                await trio.lowlevel.wait_readable(pidfd)


def userfaultfds(pid: int) -> list[int]:
    """The descriptors that *pid* has of this kind; none when it is gone."""
    found = []
    with contextlib.suppress(OSError):
        for name in os.listdir(f"/proc/{pid}/fd"):
            with contextlib.suppress(OSError):
                if os.readlink(f"/proc/{pid}/fd/{name}") == _USERFAULTFD:
                    found.append(int(name))
    return found


def check_can_hold(daemon: int) -> None:
    """Raises: MachineError where no descriptors of the process *daemon* can be had."""
    pidfd = os.pidfd_open(daemon)
    try:
        os.close(_duplicate(pidfd, 0))
    except ProcessLookupError:
        return  # whoever waits for it says why
    except OSError as exc:
        raise MachineError(
            f"cannot supervise criu lazy-pages (pidfd_getfd: {exc.strerror}): "
            "restore without --lazy; it needs Linux 5.6 and the right to trace processes"
        ) from exc
    finally:
        os.close(pidfd)


_libc = ctypes.CDLL(None, use_errno=True)


def _duplicate(pidfd: int, number: int) -> int:
    fd: int = _libc.syscall(_SYS_PIDFD_GETFD, pidfd, number, 0)
    if fd < 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
    return fd


def _close(fds: Iterable[int]) -> None:
    for fd in fds:
        os.close(fd)
