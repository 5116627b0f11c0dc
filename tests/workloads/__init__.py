"""Small real programs to dump and restore, and the helper that starts, asks and ends them.

    with Workload("memory", tmp_path / "state", size_mib=8) as work:
        before = work.ask()                     # {"counter": 17, "digest": "…", "torn_blocks": 0}
        dump(work.pid)
        work.wait_gone()                        # or, left running: work.wait_ticking()
        restore()
        work.wait_ticking()                     # the same pid, the counter going up
        assert work.ask()["digest"] == before["digest"]

Kinds, their parameters, and what `ask` returns beside `counter`:

- `memory(size_mib, churn_mib=0)`: `digest`, `torn_blocks`; with churn it rewrites its memory all
  the time, and `torn_blocks` > 0 says that the image mixes two moments
- `tree()`: `pids`, `rounds`: five processes in a ring of pipes and a socket pair, equal rounds
- `threads()`: `counters` (8), `threads` (9)
- `shm(size_mib=4)`: `digest`, `memfd_digest`, and `child_ticks`, `echoed`, which go up as long as
  memory really is shared
- `openfile()`: `offset`, `text`: each question reads the next 100 bytes
- `filelock()`: `locked`: CRIU refuses it without --file-locks, when all memory is written
- `ghost(size_mib, linked)`: `digest`, `links`: CRIU wants --ghost-limit, or --link-remap
- `dgram()`: `sent`: to a socket of the test's, CRIU wants --ext-unix-sk
- `tcplisten()`: `port`, `served`: an echo server on 127.0.0.1
- `tcpserver()`: `port`, `connections`: another, which keeps its connections

The program leads a session, its cwd is `/`, its standard streams are /dev/null, and it tells its
state through symbolic links in the state directory, so it holds no file open (but `openfile`'s).
The directory must stay until the last restore. All waiting is bounded by *timeout_s* and raises
TimeoutError, which says what was seen.
"""

import contextlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Self

PYTHON = "/usr/bin/python3"
_PROGRAMS = Path(__file__).parent


class Workload:
    """One program and what it forked; a context manager that kills whatever is left of it."""

    def __init__(self, kind: str, state_dir: Path, *, timeout_s: float = 60, **params: int) -> None:
        """Start a program of *kind* and wait until it ticks; *state_dir* is made."""
        self.kind = kind
        self.state_dir = state_dir
        state_dir.mkdir(parents=True, exist_ok=True)
        self._process = subprocess.Popen(
            [PYTHON, "-B", _PROGRAMS / f"{kind}.py", state_dir, json.dumps(params)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd="/",
            start_new_session=True,
        )
        self.pid = self._process.pid
        try:
            self._wait(lambda: self.counter() > 0, "its first tick", timeout_s)
        except BaseException:
            self.kill()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def alive(self) -> bool:
        """Whether a process with our pid exists and has not ended (it may be stopped or frozen)."""
        self._process.poll()  # reap what was our child, or its pid stays taken
        return _state(self.pid) not in {None, "Z", "X"}

    def counter(self) -> int:
        """The ticks counted so far, 50 a second; 0 before the first."""
        try:
            return int(os.readlink(self.state_dir / "counter"))
        except FileNotFoundError:
            return 0

    def ask(self, *, timeout_s: float = 60) -> dict[str, Any]:
        """What the program says about itself now; see the module's docstring for the keys."""
        answer = self.state_dir / "answer"
        answer.unlink(missing_ok=True)
        os.kill(self.pid, signal.SIGUSR1)
        self._wait(answer.is_symlink, "an answer", timeout_s)
        values: dict[str, Any] = json.loads(os.readlink(answer))
        return values

    def wait_gone(self, *, timeout_s: float = 30) -> None:
        """Wait until none of its processes exists, not even as a zombie: its pids are free."""
        self._process.poll()
        self._wait(lambda: not self.pids(zombies=True), "its end", timeout_s)

    def wait_ticking(self, *, timeout_s: float = 30) -> None:
        """Wait until the counter has changed twice from what it is now."""
        for _ in range(2):
            seen = self.counter()
            self._wait(partial(self._counter_is_not, seen), "a tick", timeout_s)

    def _counter_is_not(self, seen: int) -> bool:
        return self.counter() != seen

    def pids(self, *, zombies: bool = False) -> list[int]:
        """The pids of all processes of its session, its own among them."""
        self._process.poll()
        return sorted(_session(self.pid, zombies=zombies))

    def fingerprint(self) -> dict[str, object]:
        """What a dump that failed or left it running must not change in its process."""
        status = dict(
            line.split(":\t", 1)
            for line in Path(f"/proc/{self.pid}/status").read_text().splitlines()
            if ":\t" in line
        )
        if status["State"].strip() in ("R (running)", "D (disk sleep)"):
            status["State"] = "S (sleeping)"  # which of them it is just now says nothing
        kept = ("State", "TracerPid", "Threads", "SigBlk", "SigIgn", "SigCgt", "Seccomp")
        maps = Path(f"/proc/{self.pid}/maps").read_text().splitlines()
        return {
            **{name: status[name].strip() for name in kept},
            "maps": [line.split()[0] for line in maps if "[heap]" not in line],
            "fds": sorted(int(fd) for fd in os.listdir(f"/proc/{self.pid}/fd")),
        }

    def kill(self) -> None:
        """Kill every process of the session, each by its pid, and reap what is ours."""
        for pid in self.pids():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if self._process.poll() is None:
            self._process.wait(10)
        self._wait(lambda: not self.pids(), "its end", 10)

    def _wait(self, condition: Callable[[], bool], what: str, timeout_s: float) -> None:
        deadline = time.monotonic() + timeout_s
        while not condition():
            if what not in {"its end"} and not self.alive():
                raise TimeoutError(f"{self.kind} {self.pid} ended while we waited for {what}")
            if time.monotonic() > deadline:
                seen = f"state {_state(self.pid)}, counter {self.counter()}"
                raise TimeoutError(f"{self.kind} {self.pid}: no sign of {what}, {seen}")
            time.sleep(0.005)


def _session(leader: int, *, zombies: bool) -> Iterator[int]:
    for entry in os.listdir("/proc"):
        fields = _stat(int(entry)) if entry.isdigit() else None
        if fields and fields[3] == str(leader) and (zombies or fields[0] not in {"Z", "X"}):
            yield int(entry)


def _state(pid: int) -> str | None:
    fields = _stat(pid)
    return fields[0] if fields else None


def _stat(pid: int) -> list[str] | None:
    """/proc/PID/stat from the state on: state, parent, group, session, …"""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return None
    return text[text.rindex(")") + 2 :].split()
