"""Who stores the images: plain files, an archive of them, cedanafs. Others: `streamer`, `floors`.

A kind is named by a word: `plain`, `tar-lz4`, `tar-zstd`, `streamer`, `discard`, `bare-copy`,
`bare-lz4`, `memory`, `memory-direct`, or CODECxN for cedanafs (`lz4x4`, `zstd:1x8`). What is done
differently follows it: `lz4x4+durable`, `lz4x4+hook` (barriers while the process is frozen),
`plain+v4` (a full log).
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Final, Protocol

from benchmarks.measure import Figures, Stopwatch, peak_mib, run, stored_mib
from benchmarks.workloads import Process
from cedanafs.criu.stats import parse_stats
from cedanafs.fs.mounts import mount_of_store

CEDANAFS = (sys.executable, "-m", "cedanafs")
HOOK = Path(__file__).parent.parent / "scripts/cedanafs-post-dump"
LOG = "dump.log"


class Kind(Protocol):
    """One way to store a checkpoint. Each takes a directory of its own, empty, for all it does."""

    restores: bool
    """Whether `dump` leaves what can be restored."""

    def dump(self, process: Process, base: Path) -> Figures:
        """Dump *process*, which runs on, and make it durable."""

    def restore(self, process: Process, base: Path) -> Figures:
        """Bring it back from what `dump` left, after it was killed."""

    def close(self) -> None:
        """End what still runs or is mounted, also after a failure."""


class Dumping:
    """CRIU's command line for a dump."""

    def __init__(self, changes: frozenset[str]) -> None:
        self._options: list[str | Path] = ["-v4", "-o", LOG] if "v4" in changes else ["-v0"]
        self._options += ["--action-script", HOOK] if "hook" in changes else []

    def __call__(
        self, process: Process, images: Path, watch: Stopwatch, *more: str | Path
    ) -> Figures:
        command: list[str | Path] = [
            "criu",
            "dump",
            "-t",
            str(process.pid),
            "-D",
            images,
            "--leave-running",
        ]
        run(*command, *self._options, *more)
        return {"criu_s": watch.wall_s()}


def frozen(images: Path) -> Figures:
    """How long CRIU says that the process did not run."""
    return {"frozen_s": parse_stats(images / "stats-dump").frozen_time_us / 1e6}


def durable(watch: Stopwatch) -> Figures:
    """What it has cost until now, as everything is durable."""
    return {
        "durable_s": watch.wall_s(),
        "cpu_s": watch.cpu_s(),
        "machine_cpu_s": watch.machine_cpu_s(),
    }


def criu_restore(process: Process, images: Path, watch: Stopwatch, *more: str | Path) -> Figures:
    """Restore, until it answers; its CPU counts, which restores itself from half-way on."""
    run("criu", "restore", "-d", "-D", images, "-v0", *more)
    criu_s = watch.wall_s()
    process.answer()
    return {
        "restore_s": watch.wall_s(),
        "restore_criu_s": criu_s,
        "restore_cpu_s": watch.cpu_s() + process.cpu_s(),
        "restore_machine_cpu_s": watch.machine_cpu_s(),
    }


class Plain:
    """Images in a directory, then `sync`."""

    restores = True

    def __init__(self, changes: frozenset[str]) -> None:
        self._criu_dump = Dumping(changes)

    def dump(self, process: Process, base: Path) -> Figures:
        images = base / "images"
        images.mkdir()
        watch = Stopwatch()
        figures = self._criu_dump(process, images, watch)
        run("sync", "-f", images)
        return figures | durable(watch) | frozen(images) | {"stored_mib": stored_mib(images)}

    def restore(self, process: Process, base: Path) -> Figures:
        return criu_restore(process, base / "images", Stopwatch())

    def close(self) -> None:
        pass


class Archive:
    """Images in a directory, then tar through a compressor into a file, and that synced."""

    restores = True
    COMPRESSORS: Final = {"lz4": ("lz4", "-q", "-1"), "zstd": ("zstd", "-q", "-1", "-T0")}

    def __init__(self, program: str) -> None:
        self._compress = self.COMPRESSORS[program]
        self._decompress = (program, "-q", "-d")

    def dump(self, process: Process, base: Path) -> Figures:
        images, archive = base / "images", base / "archive"
        images.mkdir()
        watch = Stopwatch()
        figures = Dumping(frozenset())(process, images, watch)
        with archive.open("wb") as out:
            pipe(("tar", "-C", str(images), "-cf", "-", "."), self._compress, stdout=out)
        run("sync", archive)
        figures |= durable(watch) | frozen(images) | {"stored_mib": stored_mib(archive)}
        run("rm", "-r", images)
        return figures

    def restore(self, process: Process, base: Path) -> Figures:
        images = base / "unpacked"
        images.mkdir()
        watch = Stopwatch()
        with (base / "archive").open("rb") as archive:
            pipe(self._decompress, ("tar", "-C", str(images), "-xf", "-"), stdin=archive)
        return criu_restore(process, images, watch)

    def close(self) -> None:
        pass


def pipe(
    first: tuple[str, ...],
    second: tuple[str, ...],
    *,
    stdin: int | BinaryIO = subprocess.DEVNULL,
    stdout: int | BinaryIO = subprocess.DEVNULL,
) -> None:
    """`first | second`, both of which must succeed. Raises: RuntimeError."""
    with (
        subprocess.Popen(first, stdin=stdin, stdout=subprocess.PIPE) as left,
        subprocess.Popen(second, stdin=left.stdout, stdout=stdout) as right,
    ):
        assert left.stdout is not None
        left.stdout.close()
    if left.returncode or right.returncode:
        raise RuntimeError(f"{first} | {second}: {left.returncode}, {right.returncode}")


class Cedanafs:
    """A mount of its own for the dump, and one for the restore; `sync DIR` is the commit."""

    restores = True

    def __init__(self, codec: str, shards: int, changes: frozenset[str]) -> None:
        self._options = [f"--stream={shards}", f"--compression={codec}"]
        self._options += ["--durable"] if "durable" in changes else []
        self._criu_dump = Dumping(changes)

    def dump(self, process: Process, base: Path) -> Figures:
        store = base / "store"
        store.mkdir()
        with self._mounted(base) as (server, checkpoint):
            checkpoint.mkdir()
            watch = Stopwatch(server)
            figures = self._criu_dump(process, checkpoint, watch)
            run("sync", checkpoint)
            figures |= durable(watch) | {"dump_peak_mib": peak_mib(server)}
            return figures | frozen(checkpoint) | {"stored_mib": stored_mib(store / "ckpt")}

    def restore(self, process: Process, base: Path) -> Figures:
        with self._mounted(base) as (server, checkpoint):
            figures = criu_restore(process, checkpoint, Stopwatch(server))
            return figures | {"restore_peak_mib": peak_mib(server)}

    def close(self) -> None:
        pass

    @contextmanager
    def _mounted(self, base: Path) -> Iterator[tuple[int, Path]]:
        """The server's process id, and a checkpoint's directory in its mount."""
        store, mountpoint, log = base / "store", base / "mnt", base / "cedanafs.log"
        mountpoint.mkdir()
        run(*CEDANAFS, "mount", store, mountpoint, *self._options, f"--log-file={log}")
        try:
            mounted = mount_of_store(store)
            server = mounted.server_pid() if mounted else None
            if server is None:
                raise RuntimeError(f"nobody serves {store}: {log.read_text()}")
            yield server, mountpoint / "ckpt"
        except BaseException:
            run("umount", "--lazy", mountpoint)
            raise
        run(*CEDANAFS, "umount", mountpoint)
        mountpoint.rmdir()


CHANGES = {"v4", "hook", "durable"}


def parse(word: str) -> tuple[str, frozenset[str], re.Match[str] | None]:
    """A kind's name, what is done differently, and for cedanafs its codec and N.

    Raises: ValueError with a sentence for the user.
    """
    name, *changes = word.split("+")
    ours = re.fullmatch(r"(none|lz4|gzip|zlib|zstd)(?::(\d+))?x(\d+)", name)
    allowed = CHANGES if ours else {"v4"} if name == "plain" else set()
    if unknown := set(changes) - allowed:
        raise ValueError(f"{word}: no such change of {name}: {', '.join(sorted(unknown))}")
    return name, frozenset(changes), ours
