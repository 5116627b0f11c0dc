"""Clocks: wall, CPU of the commands that were run, of a server, of the machine; a server's peak."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

Figures = dict[str, float]
"""Measured values; a name ends in its unit, `_s` or `_mib` (`results.FIGURES` lists them)."""

TICK_S = 1 / os.sysconf("SC_CLK_TCK")


class Stopwatch:
    """Time that has gone by, and CPU time that was used, since it was made.

    CPU is user and system time of every command that has been waited for since, with what those
    waited for themselves, and of the running process *server* with its descendants.
    """

    def __init__(self, server: int | None = None) -> None:
        self._server = server
        self._cpu_s, self._machine_cpu_s = self._cpu(), machine_cpu_s()
        self._start = time.perf_counter()

    def wall_s(self) -> float:
        """Seconds since the start."""
        return time.perf_counter() - self._start

    def cpu_s(self) -> float:
        """Of the commands and the server."""
        return self._cpu() - self._cpu_s

    def machine_cpu_s(self) -> float:
        """Of everything on the machine, the kernel's own threads and the dumped process too."""
        return machine_cpu_s() - self._machine_cpu_s

    def _cpu(self) -> float:
        own = os.times()
        commands = own.children_user + own.children_system
        return commands + (cpu_s(descendants(self._server)) if self._server else 0.0)


COMMAND_S = 120.0
"""What takes longer hangs, or is so slow that measuring it takes all day."""


def run(*command: str | Path) -> None:
    """Run *command*, silently. Raises: RuntimeError when it failed, with what it said, or hangs."""
    words = [str(word) for word in command]
    shown = " ".join(words)
    # Into a file: a process that criu restores keeps criu's own output open.
    with tempfile.TemporaryFile("w+") as said:
        child = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=said, stderr=said)
        try:
            if not _ended(child.pid, COMMAND_S):
                raise RuntimeError(f"{shown}: still runs after {COMMAND_S:.0f} s")
        finally:
            if child.poll() is None:
                end(child.pid)
                child.wait()
        if child.returncode:
            said.seek(0)
            raise RuntimeError(f"{shown}: exit code {child.returncode}\n{said.read()}".rstrip())


def _ended(pid: int, timeout_s: float) -> bool:
    """Whether our child *pid* ends in time; told at once, Popen.wait() looks every 50 ms."""
    fd = os.pidfd_open(pid)
    try:
        return bool(select.select([fd], [], [], timeout_s)[0])
    finally:
        os.close(fd)


def end(pid: int) -> None:
    """Kill our child *pid* with all that descends from it."""
    for each in descendants(pid):
        with contextlib.suppress(ProcessLookupError):
            os.kill(each, signal.SIGKILL)


def cpu_s(pids: Iterable[int]) -> float:
    """User and system time of processes and of their children that have ended."""
    return sum(sum(map(int, fields[11:15])) for pid in pids if (fields := _stat(pid))) * TICK_S


def machine_cpu_s() -> float:
    """Busy time of all CPUs since boot."""
    user, nice, system, _idle, _iowait, irq, softirq = map(
        int, Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:8]
    )
    return (user + nice + system + irq + softirq) * TICK_S


def peak_mib(server: int) -> float:
    """The most memory that *server* and its descendants have held, each by itself (VmHWM)."""
    total_kib = 0
    for pid in descendants(server):
        status = Path(f"/proc/{pid}/status").read_text()
        total_kib += sum(
            int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM")
        )
    return total_kib / 1024


def stored_mib(*places: Path) -> float:
    """Bytes of the files in directories, or of files."""
    files = [f for place in places for f in (place.iterdir() if place.is_dir() else [place])]
    return sum(f.stat().st_size for f in files) / 2**20


def descendants(pid: int) -> list[int]:
    """*pid* and every running process that descends from it."""
    parents = {each: int(fields[1]) for each in _pids() if (fields := _stat(each))}
    found = [pid]
    for each in found:
        found += [child for child, parent in parents.items() if parent == each]
    return found


def session(leader: int) -> list[int]:
    """The processes of a session, zombies among them."""
    return [pid for pid in _pids() if (fields := _stat(pid)) and int(fields[3]) == leader]


def _pids() -> Iterator[int]:
    return (int(entry) for entry in os.listdir("/proc") if entry.isdigit())


def _stat(pid: int) -> list[str] | None:
    """/proc/PID/stat from the state on: state, parent, group, session, …"""
    try:
        return Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
