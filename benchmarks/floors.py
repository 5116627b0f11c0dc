"""The floors: bare mounts in a process of their own (`floor_server`)."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Final

from benchmarks.kinds import Dumping, criu_restore, durable, frozen
from benchmarks.measure import Figures, Stopwatch, run, stored_mib
from benchmarks.workloads import Process

# Buffers recycled instead of mapped anew, as cedanafs has it: fresh memory would be no floor.
MALLOC = {
    "MALLOC_MMAP_THRESHOLD_": str(32 << 20),
    "MALLOC_TRIM_THRESHOLD_": str(256 << 20),
    "MALLOC_ARENA_MAX": "2",
}


class Floor:
    """`memory` and `memory-direct` are floors of a restore, the others of a dump.

    Only what is a floor is told: keeping a dump in memory costs memory, which no store has to.
    """

    MODES: Final = ("discard", "bare-copy", "bare-lz4", "memory", "memory-direct")

    def __init__(self, mode: str) -> None:
        self._mode = mode
        self.restores = mode.startswith("memory")
        self._server: subprocess.Popen[str] | None = None
        self._mountpoint = Path()

    def dump(self, process: Process, base: Path) -> Figures:
        self._mount(base)
        assert self._server is not None
        watch = Stopwatch(self._server.pid)
        figures = Dumping(frozenset())(process, self._mountpoint, watch)
        match self._mode:
            case "discard":
                figures |= {"cpu_s": watch.cpu_s(), "machine_cpu_s": watch.machine_cpu_s()}
            case "bare-copy" | "bare-lz4":
                run("sync", self._mountpoint)
                figures |= durable(watch) | {"stored_mib": stored_mib(*base.glob("img-*"))}
            case _:
                return {}
        return figures | frozen(self._mountpoint)

    def restore(self, process: Process, base: Path) -> Figures:
        assert self._server is not None
        return criu_restore(process, self._mountpoint, Stopwatch(self._server.pid))

    def close(self) -> None:
        if self._server is not None:
            run("umount", "--lazy", self._mountpoint)
            if self._server.wait(60):
                raise RuntimeError(f"{self._mode}: its server ended with {self._server.returncode}")
            self._server = None

    def _mount(self, base: Path) -> None:
        self._mountpoint = base / "mnt"
        self._mountpoint.mkdir()
        self._server = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.floor_server", self._mode, self._mountpoint, base],
            stdout=subprocess.PIPE,
            env={**os.environ, **MALLOC},
            text=True,
        )
        assert self._server.stdout is not None
        if self._server.stdout.readline() != "ready\n":
            raise RuntimeError(f"{self._mode}: its server did not start")
