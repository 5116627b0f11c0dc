"""One `criu swrk` process and its socket: start, talk, call off, reap. Nothing of what is said."""

import contextlib
import os
import resource
import signal
import socket
import subprocess
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Final

import trio

from cedanafs.criu import tree
from cedanafs.criu.protocol import PACKET_BYTES_MAX
from cedanafs.errors import MachineError

# After its response CRIU only frees memory and exits.
EXIT_GRACE_S: Final = 10.0


@dataclass(slots=True)
class Worker:
    """A running `criu swrk`. Use it inside `swrk` only."""

    process: trio.Process
    _socket: trio.socket.SocketType
    _stderr_fd: int

    async def send(self, packet: bytes) -> None:
        """Send one packet; a CRIU that is gone is noticed by the next `receive`."""
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            await self._socket.send(packet)

    async def receive(self) -> bytes:
        """The next packet; empty when CRIU is gone."""
        try:
            return await self._socket.recv(PACKET_BYTES_MAX)
        except ConnectionResetError:
            return b""

    def stop_writing(self) -> None:
        """Make CRIU's every further write to a file fail, so that it gives up a dump by itself.

        CRIU has no way to be asked to stop, and killing it leaves the tasks with its parasite in
        them; a failed write sends it down its own way out, which cures the tasks and lets them
        run. It ignores SIGXFSZ because this process (a Python) does, and writes to sockets, pipes,
        /proc and cgroups have no such limit.
        """
        for pid in (self.process.pid, *tree.descendants(self.process.pid)):
            with contextlib.suppress(ProcessLookupError):
                _, hard = resource.prlimit(pid, resource.RLIMIT_FSIZE)
                resource.prlimit(pid, resource.RLIMIT_FSIZE, (0, hard))

    def kill_children(self) -> None:
        """Kill what CRIU has forked: a half restored tree makes it fail and clean up."""
        for pid in tree.descendants(self.process.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def said(self) -> str:
        """What CRIU wrote to stderr, cut at 64 KiB: little, and only before it has its log."""
        return os.pread(self._stderr_fd, 1 << 16, 0).decode(errors="replace").strip()


@contextlib.asynccontextmanager
async def swrk(criu_binary: str, *, share_terminal: bool = False) -> AsyncIterator[Worker]:
    """`criu swrk` on one end of a socket pair, reaped on leaving, killed if need be.

    It has no file of ours but the socket. It leads a session of its own, so that Ctrl-C at the
    terminal does not hit it in the middle of its work, unless *share_terminal* (a shell job is
    restored into the session, the process group and the terminal of the CRIU that restores it).

    Starting may use vfork, which holds Python's global lock until the child has closed our files:
    the caller must hold no *file* of a mount that this very process serves (a directory is fine,
    closing one asks the server nothing).
    Raises: MachineError when *criu_binary* cannot be started.
    """
    stderr_fd = os.memfd_create("criu-stderr")
    try:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with trio.socket.from_stdlib_socket(ours) as ours_async:
            with theirs:
                process = await _start(criu_binary, theirs, stderr_fd, share_terminal)
            try:
                yield Worker(process, ours_async, stderr_fd)
            finally:
                await _reap(process, ours_async)
    finally:
        os.close(stderr_fd)


async def _start(
    criu_binary: str, theirs: socket.socket, stderr_fd: int, share_terminal: bool
) -> trio.Process:
    try:
        return await trio.lowlevel.open_process(
            [criu_binary, "swrk", str(theirs.fileno())],
            stdin=None if share_terminal else subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=stderr_fd,
            pass_fds=[theirs.fileno()],
            start_new_session=not share_terminal,
            # SIGPIPE and SIGXFSZ stay ignored as in this process: see stop_writing, and CRIU
            # must not die of a client that hung up with the tasks in its hands.
            restore_signals=False,
        )
    except OSError as exc:
        raise cannot_start(criu_binary, exc) from exc


async def _reap(process: trio.Process, ours: trio.socket.SocketType) -> None:
    with trio.CancelScope(shield=True):
        ours.close()  # whoever waits for an answer now gets none, and fails
        with trio.move_on_after(EXIT_GRACE_S):
            await process.wait()
            return
        process.kill()
        await process.wait()


def cannot_start(criu_binary: str, exc: OSError) -> MachineError:
    """The error for a criu that the system will not run."""
    return MachineError(
        f"cannot start {criu_binary}: {exc.strerror}; install CRIU 4.1 or newer (docs/install.md)"
    )
