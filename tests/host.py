"""This machine as the tests of the real thing need it: run cedanafs, mount, see what is left.

    with host.mounted(store) as mnt:            # by the real server, in the background
        …                                       # unmounted in any case, the server's end awaited
    host.ok("verify", checkpoint)               # `python -m cedanafs verify …` that must succeed
    host.refused(3, "restore", …, match="img-2")    # … that must fail, so, with one clear line

Every process that a test's commands start carries a mark in its environment, so that a server
or a CRIU that outlives its test is told from those of others on the same machine.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from workloads import Workload

RUNTIME_DIR: Final = Path("/run")
MARK: Final = "TEST_HOST_MARK"

# What a command says of its progress on stderr; anything else there is a complaint.
_PROGRESS: Final = re.compile(
    r"(dumping|restoring|frozen for|committed:|restored process|\d+ images in)"
)


StartWorkload = Callable[..., Workload]
"""What the fixture `start` is: a kind of workload and its parameters."""


@dataclass(frozen=True, slots=True)
class Done:
    """A command that has ended."""

    command: str
    code: int
    stdout: str
    stderr: str

    @property
    def last_line(self) -> str:
        """The last line of stdout: a command's result."""
        return self.stdout.splitlines()[-1]

    @property
    def complaints(self) -> list[str]:
        """What is on stderr beside progress."""
        return [line for line in self.stderr.splitlines() if not _PROGRESS.match(line)]

    def __str__(self) -> str:
        return f"{self.command}: {self.code}\n{self.stdout}{self.stderr}"


class Host:
    """One test's commands, mounts and leavings; everything it makes lies below *base*."""

    def __init__(self, base: Path) -> None:
        self.base = base
        self.log = base / "cedanafs.log"
        self._mark = uuid.uuid4().hex
        self._runtime_before = _runtime_directories()
        self._mounts = 0
        self.temporary = self.make("tmp")
        self.config_home = self.make("config")

    def make(self, name: str) -> Path:
        """A new directory."""
        path = self.base / name
        path.mkdir()
        return path

    def environment(self, **more: str) -> dict[str, str]:
        """Ours, without anybody's settings, and with *more*."""
        kept = {k: v for k, v in os.environ.items() if not k.startswith("CEDANAFS_")}
        if "CRIU" in kept:
            kept["CEDANAFS_CRIU_BINARYPATH"] = kept["CRIU"]
        return kept | {
            MARK: self._mark,
            "TMPDIR": str(self.temporary),
            "XDG_CONFIG_HOME": str(self.config_home),
            **more,
        }

    # Commands.

    def run(
        self,
        *arguments: object,
        env: Mapping[str, str] | None = None,
        timeout_s: float = 120,
        under: Sequence[str] = (),
        cwd: Path | None = None,
    ) -> Done:
        """Run cedanafs with *arguments*, as an argument of the program *under* if one is given."""
        command = [*under, sys.executable, "-m", "cedanafs", *map(str, arguments)]
        return self.shell(*command, env=env, timeout_s=timeout_s, cwd=cwd)

    def shell(
        self,
        *command: object,
        env: Mapping[str, str] | None = None,
        timeout_s: float = 120,
        cwd: Path | None = None,
    ) -> Done:
        """Run any program to its end."""
        words = [str(word) for word in command]
        done = subprocess.run(
            words,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            env=self.environment(**(env or {})),
            timeout=timeout_s,
            check=False,
            cwd=cwd,
        )
        return Done(" ".join(words), done.returncode, done.stdout, done.stderr)

    def stock(self, *command: object, **options: object) -> Done:
        """Run any program, which must succeed."""
        done = self.shell(*command, **options)  # type: ignore[arg-type]
        assert done.code == 0, done
        return done

    def ok(self, *arguments: object, **options: object) -> Done:
        """Run cedanafs, which must succeed and complain of nothing."""
        done = self.run(*arguments, **options)  # type: ignore[arg-type]
        assert done.code == 0, done
        assert not done.complaints, done
        return done

    def refused(self, code: int, *arguments: object, match: str, **options: object) -> str:
        """Run cedanafs, which must fail with *code* and one line that *match* is found in."""
        done = self.run(*arguments, **options)  # type: ignore[arg-type]
        assert done.code == code, done
        assert len(done.complaints) == 1, done
        (line,) = done.complaints
        assert line.startswith("cedanafs: "), done
        assert re.search(match, line), done
        return line

    @contextlib.contextmanager
    def started(
        self, *arguments: object, stdin: int = subprocess.DEVNULL
    ) -> Iterator[subprocess.Popen[str]]:
        """cedanafs, running; killed at the end of the block if it still does."""
        command = (sys.executable, "-m", "cedanafs", *arguments)
        with self.started_program(*command, stdin=stdin) as process:
            yield process

    @contextlib.contextmanager
    def started_program(
        self, *command: object, stdin: int = subprocess.DEVNULL
    ) -> Iterator[subprocess.Popen[str]]:
        """Any program, likewise."""
        process = subprocess.Popen(
            [*map(str, command)],
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=self.environment(),
        )
        try:
            yield process
        finally:
            if process.poll() is None:
                process.kill()
            process.wait()
            for stream in (process.stdin, process.stdout, process.stderr):
                if stream is not None:  # what it restored may hold the other end: no waiting
                    with contextlib.suppress(BrokenPipeError):
                        stream.close()

    # Mounts.

    @contextlib.contextmanager
    def mounted(self, store: Path, *options: object, at: Path | None = None) -> Iterator[Path]:
        """*store* mounted by a server in the background; unmounted and the server gone after it.

        The block may unmount by itself.
        """
        self._mounts += 1
        mountpoint = at or self.make(f"mnt{self._mounts}")
        try:
            self.ok("mount", store, mountpoint, "--log-file", self.log, *options)
            yield mountpoint
            if is_mounted(mountpoint):
                self.ok("umount", mountpoint)
        finally:
            if is_mounted(mountpoint):
                self.run("umount", mountpoint, timeout_s=30)
            if is_mounted(mountpoint):
                self._tear_down(mountpoint)

    @contextlib.contextmanager
    def small_disk(self, name: str, size_mib: int) -> Iterator[Path]:
        """A directory on a disk of its own of *size_mib*."""
        path = self.make(name)
        self.stock("mount", "-t", "tmpfs", "-o", f"size={size_mib}m", "tmpfs", path)
        try:
            yield path
        finally:
            self.stock("umount", "-l", path)

    @contextlib.contextmanager
    def read_only(self, directory: Path) -> Iterator[Path]:
        """*directory* where not even root can write to it."""
        path = self.make(f"{directory.name}-read-only")
        self.stock("mount", "--bind", "-o", "ro", directory, path)
        try:
            yield path
        finally:
            self.stock("umount", "-l", path)

    def servers(self, mountpoint: Path) -> list[int]:
        """The processes that serve *mountpoint*."""
        return [
            pid
            for pid in self._processes()
            if b"--foreground" in (words := _words(pid)) and os.fsencode(mountpoint) in words
        ]

    def running(self, word: str) -> list[int]:
        """The processes of this test's commands that have *word* among their arguments."""
        return [pid for pid in self._processes() if word.encode() in _words(pid)]

    def wait_for_servers(self, mountpoint: Path) -> None:
        """Wait until nobody serves *mountpoint* any more."""
        poll(lambda: not self.servers(mountpoint), "the server's end")

    def own_mounts(self) -> list[Path]:
        """Where dumps and restores have mounted checkpoints of ours for themselves."""
        return [place for place in self._mountpoints() if place.parent == RUNTIME_DIR]

    def criu_wrote_all(self) -> bool:
        """Whether CRIU, in a dump that is under way, asks if the tasks may die or go on."""
        logs = list(self.temporary.glob("cedanafs-dump-*/dump.log"))
        said = "Running post-dump scripts"
        return any(said in log.read_text(errors="replace") for log in logs)

    # What is left.

    def leftovers(self) -> list[str]:
        """Mounts, processes and directories of this test's that are still there."""
        return [
            *(f"mount {path}" for path in self._mountpoints()),
            *(f"process {pid}: {b' '.join(_words(pid))!r}" for pid in self._processes()),
            *(f"directory {path}" for path in self._runtime_leavings()),
            *(f"temporary {path}" for path in self.temporary.iterdir()),
        ]

    def wait_for_nothing_left(self, timeout_s: float = 10) -> list[str]:
        """What is left, once processes had *timeout_s* to end."""
        deadline = time.monotonic() + timeout_s
        while (left := self.leftovers()) and time.monotonic() < deadline:
            time.sleep(0.05)
        return left

    def sweep(self) -> None:
        """Take away whatever a test that failed left."""
        for pid in self._processes():
            _kill(pid)
        for mountpoint in self._mountpoints():
            self._tear_down(mountpoint)
        for path in self._runtime_leavings():
            with contextlib.suppress(OSError):
                path.rmdir()

    def _tear_down(self, mountpoint: Path) -> None:
        for pid in self.servers(mountpoint):
            _kill(pid)
        self.shell("umount", "-l", mountpoint)

    def _mountpoints(self) -> list[Path]:
        """All below our directory, and those of cedanafs whose store is; the newest first."""
        found = []
        for place, source in _mounts():
            if self.base in place.parents or self.base in (source, *source.parents):
                found.append(place)
        return found[::-1]

    def _processes(self) -> list[int]:
        """Who has our mark in its environment, and has not ended."""
        mark = f"{MARK}={self._mark}".encode()
        return [
            int(entry)
            for entry in os.listdir("/proc")
            if entry.isdigit() and mark in _read(f"/proc/{entry}/environ").split(b"\0")
        ]

    def _runtime_leavings(self) -> list[Path]:
        """Mount points of dumps and restores since we began, but for those that others use."""
        used = {place for place, source in _mounts() if self.base not in source.parents}
        return sorted(_runtime_directories() - self._runtime_before - used)


def is_mounted(path: Path) -> bool:
    """Whether *path* is a mount point, of a dead server too."""
    return any(place == path for place, _ in _mounts())


def poll(condition: Callable[[], object], what: str, timeout_s: float = 20) -> None:
    """Wait until *condition* holds of what nothing tells of."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"no sign of {what} after {timeout_s} s"
        time.sleep(0.02)


def _kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)


def _mounts() -> Iterator[tuple[Path, Path]]:
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        place, _, rest = line.partition(" - ")
        yield _unescaped(place.split(" ")[4]), _unescaped(rest.split(" ")[1])


def _unescaped(text: str) -> Path:
    """mountinfo writes blanks and the like as octal."""
    return Path(re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), text))


def _runtime_directories() -> set[Path]:
    return set(RUNTIME_DIR.glob("cedanafs-*"))


def _words(pid: int) -> list[bytes]:
    return _read(f"/proc/{pid}/cmdline").split(b"\0")


def _read(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError:
        return b""
