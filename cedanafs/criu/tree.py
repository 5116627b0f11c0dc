"""Processes as /proc shows them: who exists, who descends from whom. Blocking, but brief."""

import os
from pathlib import Path
from typing import Final

from cedanafs.errors import UsageError

_PF_KTHREAD: Final = 0x00200000


def parent_of(pid: int) -> int:
    """The parent's pid; 0 at the top of what this pid namespace shows, and of the gone."""
    try:
        return int(_stat_fields(pid)[1])
    except OSError:
        return 0


def program_of(pid: int) -> str | None:
    """The path of the program that *pid* runs; None for the gone and for zombies."""
    try:
        return os.readlink(f"/proc/{pid}/exe")
    except OSError:
        return None


def contains_self(pid: int) -> bool:
    """Whether this process is in the tree under *pid*, *pid* itself included."""
    here = os.getpid()
    while here and here != pid:
        here = parent_of(here)
    return here == pid != 0


def descendants(pid: int) -> list[int]:
    """Every process below *pid*, children before grandchildren; without *pid* itself."""
    found = children(pid)
    for parent in found:  # grows while we walk it
        found.extend(children(parent))
    return found


def check_can_dump(pid: int) -> None:
    """Refuse what no dump can be of, before CRIU is started.

    Raises: UsageError when *pid* is gone, a zombie, a thread, a kernel thread, init, or an
    ancestor of this process.
    """
    try:
        fields = _stat_fields(pid)
        leader = _thread_group_of(pid)
    except (OSError, OverflowError):
        raise UsageError(f"no process with PID {pid}") from None
    if leader != pid:
        raise UsageError(f"{pid} is a thread of process {leader}: name the process")
    if fields[0] in {"Z", "X"}:
        raise UsageError(f"process {pid} has ended and waits for its parent to notice (a zombie)")
    if int(fields[6]) & _PF_KTHREAD:
        raise UsageError(f"{pid} is a thread of the kernel, not a process")
    if pid == 1 or contains_self(pid):
        raise UsageError(f"refuse to dump process {pid}: its tree contains the server itself")


def _stat_fields(pid: int) -> list[str]:
    """/proc/PID/stat from the state on; the name before it may hold spaces and brackets."""
    if pid <= 0:
        raise FileNotFoundError(pid)
    text = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    return text[text.rindex(")") + 2 :].split()


def _thread_group_of(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text(errors="replace").splitlines():
        if line.startswith("Tgid:"):
            return int(line.split()[1])
    raise FileNotFoundError(pid)


def children(pid: int) -> list[int]:
    """The processes that *pid* is the parent of, zombies included; none when it is gone."""
    try:
        lists = [task.read_text() for task in Path(f"/proc/{pid}/task").glob("*/children")]
    except OSError:
        return []
    return [int(child) for text in lists for child in text.split()]
