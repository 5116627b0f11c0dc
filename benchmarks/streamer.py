"""criu-image-streamer, where there is one: shards through pipes into lz4, four of them.

It is on no package registry; built from its sources (`cargo build --release`) and put on PATH it
takes part. A socket in the images directory joins it to `criu --stream`; the images go through
pipes, one a shard, and its progress pipe says when CRIU may start.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from benchmarks.kinds import Dumping, criu_restore, durable, frozen
from benchmarks.measure import Figures, Stopwatch, run, stored_mib
from benchmarks.workloads import Process

PROGRAM = "criu-image-streamer"
SHARDS = 4

Shard = Callable[[int, int], subprocess.Popen[bytes]]
"""Starts what stores shard k, out of a pipe, or fetches it, into a pipe."""


class Streamer:
    """`capture` for the dump, `serve` for the restore."""

    restores = True

    def dump(self, process: Process, base: Path) -> Figures:
        def compress(k: int, pipe: int) -> subprocess.Popen[bytes]:
            with (base / f"img-{k}.lz4").open("wb") as shard:
                return subprocess.Popen(["lz4", "-q", "-1"], stdin=pipe, stdout=shard)

        images = base / "images"
        images.mkdir()
        watch = Stopwatch()
        with streaming("capture", images, compress):
            figures = Dumping(frozenset())(process, images, watch, "--stream")
        run("sync", "-f", base)
        figures |= durable(watch) | frozen(images)
        return figures | {"stored_mib": stored_mib(*base.glob("img-*"))}

    def restore(self, process: Process, base: Path) -> Figures:
        def decompress(k: int, pipe: int) -> subprocess.Popen[bytes]:
            with (base / f"img-{k}.lz4").open("rb") as shard:
                return subprocess.Popen(["lz4", "-q", "-d"], stdin=shard, stdout=pipe)

        watch = Stopwatch()
        with streaming("serve", base / "images", decompress):
            figures = criu_restore(process, base / "images", watch, "--stream")
        # Its own time and lz4's count only now that they have ended.
        return figures | {"restore_cpu_s": watch.cpu_s() + process.cpu_s()}

    def close(self) -> None:
        pass


@contextmanager
def streaming(operation: str, images: Path, shard: Shard) -> Iterator[None]:
    """It and its shards, from when CRIU may start; all have ended well afterwards."""
    captures = operation == "capture"
    programs: list[subprocess.Popen[bytes]] = []
    with ExitStack() as ends:
        ends.callback(_end, programs)
        shard_fds = []
        for k in range(SHARDS):
            receive_fd, send_fd = os.pipe()
            ours, theirs = (send_fd, receive_fd) if captures else (receive_fd, send_fd)
            shard_fds.append(ours)
            programs.append(shard(k, theirs))
            os.close(theirs)
        progress_fd, told_fd = os.pipe()
        progress = ends.enter_context(open(progress_fd))
        fds = ",".join(map(str, shard_fds))
        options = [f"--images-dir={images}", f"--shard-fds={fds}", f"--progress-fd={told_fd}"]
        programs.append(
            subprocess.Popen([PROGRAM, *options, operation], pass_fds=[*shard_fds, told_fd])
        )
        for fd in (*shard_fds, told_fd):
            os.close(fd)
        if not any(line.strip() == "socket-init" for line in iter(progress.readline, "")):
            raise RuntimeError(f"{PROGRAM} {operation} did not start")
        yield
        progress.read()
        for program in programs:
            if program.wait(60):
                raise RuntimeError(f"{operation}: {program.args!r} ended with {program.returncode}")


def _end(programs: list[subprocess.Popen[bytes]]) -> None:
    """Those that are left after a failure."""
    for program in programs:
        if program.poll() is None:
            program.kill()
            program.wait()
