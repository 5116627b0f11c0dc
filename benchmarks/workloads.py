"""What is dumped: running processes that say whether they run and what they hold."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from benchmarks import measure, programs, redis

PROGRAMS = Path(programs.__file__)
SYSTEM_PYTHON = "/usr/bin/python3"
ANSWER_S = 300.0


class Process(Protocol):
    """A session of processes. It is ours at first, and nobody's child once it was restored."""

    pid: int

    def answer(self) -> None:
        """Return when it has answered a question that costs it nothing."""

    def digest(self) -> str:
        """Of all that it holds."""

    def cpu_s(self) -> float:
        """CPU time that it has used; what was before it was restored does not count."""

    def kill(self) -> None:
        """End all of it; its process ids are free afterwards."""


class Session:
    """The part of a process that has nothing to do with what it is."""

    def __init__(self, command: Sequence[str | Path], executable: str | None = None) -> None:
        self._command = [str(word) for word in command]
        self._child = subprocess.Popen(
            self._command,
            executable=executable,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            cwd="/",
        )
        self.pid = self._child.pid

    def cpu_s(self) -> float:
        return measure.cpu_s(measure.session(self.pid))

    def kill(self) -> None:
        pids = measure.session(self.pid)
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if self._child.poll() is None:
            self._child.wait()
        wait_for(lambda: not measure.session(self.pid), "the end of what was killed")


class Program(Session):
    """One of `programs`; returns from here when it has filled its memory."""

    def __init__(self, base: Path, *arguments: object, python: str = SYSTEM_PYTHON) -> None:
        kind, *parameters = map(str, arguments)
        self._state = base / "state"
        super().__init__([python, "-B", PROGRAMS, kind, self._state, *parameters])
        # Until it has blocked the signals they would kill it.
        wait_for(self._blocks_signals, f"the start of {kind}")
        self.digest()

    def answer(self) -> None:
        self._ask(signal.SIGUSR1, "pong")

    def digest(self) -> str:
        return self._ask(signal.SIGUSR2, "digest")

    def _ask(self, number: signal.Signals, name: str) -> str:
        link = self._state.with_suffix(f".{name}")
        link.unlink(missing_ok=True)
        os.kill(self.pid, number)
        wait_for(link.is_symlink, f"the {name} of process {self.pid}")
        return os.readlink(link)

    def _blocks_signals(self) -> bool:
        if self._child.poll() is not None:
            raise RuntimeError(f"{' '.join(self._command)} ended at once")
        status = Path(f"/proc/{self.pid}/status").read_text()
        blocked = next(line.split()[1] for line in status.splitlines() if line.startswith("SigBlk"))
        return bool(int(blocked, 16) & 1 << signal.SIGUSR1 - 1)


class Redis(Session):
    """redis-server, filled. No client is connected when it is dumped: CRIU cannot take those."""

    def __init__(self, base: Path, mib: int) -> None:
        self._socket = base / "redis.sock"
        settings = {
            "port": 0,
            "unixsocket": self._socket,
            "dir": base,
            "enable-debug-command": "yes",
        }
        words = [f"{word}" for k, v in settings.items() for word in (f"--{k}", v)]
        command = ["redis-server", *words, "--save", "", "--appendonly", "no"]
        super().__init__(command, executable=redis_server())
        wait_for(self._socket.exists, "redis-server's socket")
        redis.fill(self._socket, mib)

    def answer(self) -> None:
        if redis.ask(self._socket, "PING") != "PONG":
            raise RuntimeError("redis-server does not answer")

    def digest(self) -> str:
        return redis.ask(self._socket, "DEBUG", "DIGEST")


def redis_server() -> str | None:
    """The program. Debian's redis-tools has it too, without a service, under another name: which
    of them it is, it tells by the name that it is called by."""
    return shutil.which("redis-server") or shutil.which("redis-check-rdb")


def wait_for(condition: Callable[[], bool], what: str, pause_s: float = 0.0005) -> None:
    """Wait for what nothing tells of. Raises: TimeoutError."""
    deadline = time.monotonic() + ANSWER_S
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"no sign of {what} after {ANSWER_S:.0f} s")
        time.sleep(pause_s)


@dataclass(frozen=True)
class Workload:
    """How to start a process, given a directory for its state and its size."""

    what: str
    start: Callable[[Path, int], Process]
    mib: int
    """How much memory it holds by default, about."""
    resizable: bool = True


def missing(name: str) -> str | None:
    """What to do so that the workload *name* can run here, if it cannot."""
    if name == "redis" and not redis_server():
        return "redis-server is not on PATH: scripts/setup-system redis-tools"
    if name == "numbers":
        try:
            import numpy  # noqa: F401
        except ImportError:
            return "there is no numpy: pip install -e '.[bench]'"
    return None


WORKLOADS = {
    "private": Workload(
        "one process, private memory: a third random, a third text, a third constant bytes",
        lambda base, mib: Program(base, "private", mib),
        1000,
    ),
    "shared": Workload(
        "the same mix in shared anonymous memory",
        lambda base, mib: Program(base, "shared", mib),
        1000,
    ),
    "redis": Workload("redis-server, filled with varied values of several types", Redis, 500),
    "numbers": Workload(
        "Python with numpy arrays of 384 MiB and a dictionary of a million strings",
        lambda base, mib: Program(base, "numbers", python=sys.executable),
        600,
        resizable=False,
    ),
    "tree": Workload(
        "a tree of 50 processes with the mix",
        lambda base, mib: Program(base, "tree", 50, max(1, mib // 50)),
        1000,
    ),
}
