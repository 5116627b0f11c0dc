"""A restored process in our foreground: our standard streams, the signals we get, its status."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import trio

from cedanafs.criu import messages
from cedanafs.criu.options import InheritedFd
from cedanafs.errors import CedanaFsError, CheckpointError, UsageError

FORWARDED: Final = (
    signal.SIGINT,
    signal.SIGQUIT,
    signal.SIGTERM,
    signal.SIGHUP,
    signal.SIGUSR1,
    signal.SIGUSR2,
    signal.SIGWINCH,
)
OF_THE_TERMINAL: Final = frozenset({signal.SIGINT, signal.SIGQUIT, signal.SIGWINCH})
"""What the kernel sends to everyone in the terminal's foreground group."""


def standard_streams(images_dir: Path) -> tuple[InheritedFd, ...]:
    """Our own standard streams for those of the root task that were pipes to others.

    A pipe whose both ends were in the tree is the tree's own affair; files and devices are opened
    again by CRIU, and a shell job has its terminal. Blocks. Raises: CheckpointError when the
    images cannot be read, MachineError when pycriu is missing.
    """
    try:
        root = _entries(images_dir / "pstree.img")[0]["pid"]
        table = _entries(images_dir / f"ids-{root}.img")[0]["files_id"]
        opened = {each["fd"]: each["id"] for each in _entries(images_dir / f"fdinfo-{table}.img")}
        files = _entries(images_dir / "files.img")
        pipes = {each["id"]: each["pipe"] for each in files if each["type"] == "PIPE"}
    except CedanaFsError:
        raise
    except Exception as exc:  # pycriu raises whatever struct, protobuf or a lookup raises
        raise CheckpointError(f"{images_dir}: its files cannot be told: {exc!r}") from exc
    ends: dict[int, set[bool]] = {}  # pipe id -> whether it is written to
    for pipe in pipes.values():
        ends.setdefault(pipe["pipe_id"], set()).add(_is_written(pipe))
    ours: dict[str, int] = {}
    for fd in range(3):
        pipe = pipes.get(opened.get(fd, -1))
        if pipe is not None and len(ends[pipe["pipe_id"]]) == 1 and _is_written(pipe) == (fd > 0):
            ours.setdefault(f"pipe:[{pipe['pipe_id']}]", fd)
    return tuple(InheritedFd(fd, resource) for resource, fd in ours.items())


def _entries(path: Path) -> list[dict[str, Any]]:
    with path.open("rb") as image:
        entries: list[dict[str, Any]] = messages.images().load(image, no_payload=True)["entries"]
    return entries


def _is_written(pipe: dict[str, Any]) -> bool:
    flags = pipe["flags"]
    return bool((int(flags, 0) if isinstance(flags, str) else flags) & os.O_WRONLY)


async def stay_attached(pid: int, on_ready: Callable[[], None], resume: bool = True) -> int:
    """`wait_attached`, passing on to *pid* what signals we get, and giving it our terminal.

    *on_ready* is called when a signal would be passed on. Without *resume* a stopped *pid* stays
    stopped. Only SIGKILL and SIGSTOP end or stop us.
    """

    async def pass_on() -> None:
        async for number in received:
            # In our own group the terminal's reach it without us.
            if number not in OF_THE_TERMINAL or _group_of(pid) != os.getpgrp():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)

    with trio.open_signal_receiver(*FORWARDED) as received, _in_the_foreground(pid, resume):
        on_ready()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(pass_on)
            status = await wait_attached(pid)
            nursery.cancel_scope.cancel()
    return status


@contextlib.contextmanager
def _in_the_foreground(pid: int, resume: bool) -> Iterator[None]:
    """As a shell does with a job: if *pid* is in our session it gets the terminal meanwhile."""
    group = _group_of(pid)
    try:
        ours = os.tcgetpgrp(0) == os.getpgrp() != group and os.getsid(pid) == os.getsid(0)
    except OSError:  # no terminal of ours, or it has ended
        ours = False
    if not ours:
        yield
        return
    before = signal.signal(signal.SIGTTOU, signal.SIG_IGN)  # or taking it back would stop us
    try:
        os.tcsetpgrp(0, group)
        if resume:  # it may have read too early, and been stopped for it
            os.killpg(group, signal.SIGCONT)
        yield
    finally:
        with contextlib.suppress(OSError):
            os.tcsetpgrp(0, os.getpgrp())
        signal.signal(signal.SIGTTOU, before)


def _group_of(pid: int) -> int:
    try:
        return os.getpgid(pid)
    except ProcessLookupError:
        return 0


async def wait_attached(pid: int) -> int:
    """The exit status of the restored child *pid* when it ends: 128 + signal if killed by one.

    Cancelling leaves the child as it is. Raises: UsageError when *pid* is no child of ours.
    """
    try:
        pidfd = os.pidfd_open(pid)
    except OSError as exc:
        raise UsageError(f"process {pid} is no child of this one") from exc
    try:
        await trio.lowlevel.wait_readable(pidfd)
        # a readable pidfd has ended: this does not block
        ended = os.waitid(os.P_PIDFD, pidfd, os.WEXITED)  # noqa: ASYNC222
    except ChildProcessError:
        raise UsageError(f"process {pid} is no child of this one") from None
    finally:
        os.close(pidfd)
    if ended is None:
        raise RuntimeError(f"waitid({pid}) returned nothing without WNOHANG")
    return ended.si_status if ended.si_code == os.CLD_EXITED else 128 + ended.si_status
