"""One `criu swrk` process and its socket: start, talk, call off, reap. Nothing of what is said."""

import contextlib
import os
import resource
import signal
import socket
import subprocess
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Final

import trio

from cedanafs.criu import tree
from cedanafs.criu.protocol import PACKET_BYTES_MAX
from cedanafs.errors import MachineError

# After its response CRIU only frees memory and exits.
EXIT_GRACE_S: Final = 10.0

# A child started with vfork keeps Python's global lock until its exec. When this process serves a
# mount and has a file of it open, closing the child's copy asks the server (FLUSH), which waits for
# that lock: both hang for good (tried). With fork they do not. The switch is subprocess's own.
subprocess._USE_VFORK = False  # type: ignore[misc]  # "final", but the docs say to set it


@dataclass(slots=True)
class Worker:
    """A running `criu swrk`. Use it inside `swrk` only."""

    process: trio.Process
    _socket: trio.socket.SocketType
    _stderr_fd: int
    _children_before: frozenset[int]
    _roots: set[int] = field(default_factory=set)

    async def send(self, packet: bytes) -> None:
        """Send one packet, cancelled or not; that CRIU is gone is noticed by the next `receive`."""
        with (
            trio.CancelScope(shield=True),  # what the conversation counts as sent, is
            contextlib.suppress(BrokenPipeError, ConnectionResetError),
        ):
            await self._socket.send(packet)

    async def receive(self) -> bytes:
        """The next packet; empty when CRIU is gone."""
        try:
            return await self._socket.recv(PACKET_BYTES_MAX)
        except ConnectionResetError:
            return b""

    def stop_writing(self) -> None:
        """Make CRIU's every further write to a file fail, so that it gives up a dump by itself.

        CRIU cannot be asked to stop. Killed in the middle (60 times at random moments, CRIU 4.1.1)
        it left its parasite mapped into 46 tasks and one task dead of SIGTRAP. A failed write
        sends it down its own way out, which cured 60 tasks of 60 within 30 ms. It ignores SIGXFSZ
        because this process (a Python) does; sockets, pipes, /proc and cgroups know no such limit.
        """
        for pid in (self.process.pid, *tree.descendants(self.process.pid)):
            with contextlib.suppress(ProcessLookupError):
                _, hard = resource.prlimit(pid, resource.RLIMIT_FSIZE)
                resource.prlimit(pid, resource.RLIMIT_FSIZE, (0, hard))

    def kill_restored(self) -> None:
        """Kill what CRIU has forked: the half restored tree's end makes it fail and clean up.

        A root that is to be our child (rst_sibling) is told from other children of ours that are
        as new by its running CRIU's own program; once it no longer does, CRIU is about to notify.
        """
        program = tree.program_of(self.process.pid)
        for pid in tree.children(os.getpid()):
            if pid != self.process.pid and tree.program_of(pid) == program is not None:
                self.note_root(pid)
        for root in (self.process.pid, *self._roots):
            _kill(*tree.descendants(root))
        _kill(*self._roots)

    def note_root(self, pid: int) -> None:
        """Remember the restored root *pid* if it is a child of ours and CRIU's making.

        CRIU also names a root that it could not restore because another process has its pid.
        """
        if pid not in self._children_before and tree.parent_of(pid) == os.getpid():
            self._roots.add(pid)

    async def end(self) -> None:
        """Hang up and reap CRIU, killed if it does not end by itself."""
        with trio.CancelScope(shield=True):
            self._socket.close()
            with trio.move_on_after(EXIT_GRACE_S):
                await self.process.wait()
                return
            self.process.kill()
            await self.process.wait()

    async def bury(self) -> None:
        """After a restore that failed: `end`, then reap what CRIU killed of it and is our child."""
        await self.end()
        with trio.CancelScope(shield=True):
            for pid in self._roots:
                _kill(pid)
                with contextlib.suppress(ChildProcessError):
                    await trio.to_thread.run_sync(os.waitpid, pid, 0)
        self._roots.clear()

    def said(self) -> str:
        """What CRIU wrote to stderr, cut at 64 KiB: little, and only before it has its log."""
        return os.pread(self._stderr_fd, 1 << 16, 0).decode(errors="replace").strip()


@contextlib.asynccontextmanager
async def swrk(
    criu_binary: str, *, share_terminal: bool = False, pass_fds: Sequence[int] = ()
) -> AsyncIterator[Worker]:
    """`criu swrk` on one end of a socket pair, reaped on leaving, killed if need be.

    It has no file of ours but the socket and *pass_fds*, at the same numbers. It leads a session of
    its own, so that Ctrl-C at the terminal does not hit it in the middle of its work, unless
    *share_terminal* (a shell job is restored into the session, the process group and the terminal
    of the CRIU that restores it).

    Raises: MachineError when *criu_binary* cannot be started.
    """
    children_before = frozenset(tree.children(os.getpid()))
    stderr_fd = os.memfd_create("criu-stderr")
    try:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with trio.socket.from_stdlib_socket(ours) as ours_async:
            with theirs:
                process = await _start(criu_binary, theirs, stderr_fd, share_terminal, pass_fds)
            worker = Worker(process, ours_async, stderr_fd, children_before)
            try:
                yield worker
            finally:
                await worker.end()
    finally:
        os.close(stderr_fd)


async def _start(
    criu_binary: str,
    theirs: socket.socket,
    stderr_fd: int,
    share_terminal: bool,
    pass_fds: Sequence[int],
) -> trio.Process:
    try:
        return await trio.lowlevel.open_process(
            [criu_binary, "swrk", str(theirs.fileno())],
            stdin=None if share_terminal else subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=stderr_fd,
            pass_fds=[theirs.fileno(), *pass_fds],
            start_new_session=not share_terminal,
            # SIGPIPE and SIGXFSZ stay ignored as in this process: see stop_writing, and CRIU
            # must not die of a client that hung up with the tasks in its hands.
            restore_signals=False,
        )
    except OSError as exc:
        raise cannot_start(criu_binary, exc) from exc


def _kill(*pids: int) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def cannot_start(criu_binary: str, exc: OSError) -> MachineError:
    """The error for a criu that the system will not run."""
    return MachineError(
        f"cannot start {criu_binary}: {exc.strerror}; install CRIU 4.1 or newer (docs/install.md)"
    )
