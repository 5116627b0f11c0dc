"""A lazy restore against a normal one: how soon the process answers, and has all its memory.

    python -m benchmarks.lazy --mib 64 --mib 1024 --delay-ms 0 --delay-ms 20

Both are `cedanafs restore process`, from shards that are not in the page cache, with a mount of
their own; with a delay each read of the store takes so much longer (a FUSE filesystem between).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from benchmarks import measure
from benchmarks.measure import Stopwatch
from benchmarks.workloads import WORKLOADS, Process, wait_for

FAULTY_STORE = Path(__file__).parents[1] / "tests/faults/faulty_store.py"
CEDANAFS = (sys.executable, "-m", "cedanafs")
Times = dict[str, float]


@contextlib.contextmanager
def store(base: Path, delay_ms: float) -> Iterator[tuple[Path, Path]]:
    """A store as its users see it, and the directory of its files."""
    backing = base / "backing"
    backing.mkdir()
    if not delay_ms:
        yield backing, backing
        return
    path = base / "store"
    path.mkdir()
    command = [sys.executable, os.fspath(FAULTY_STORE), os.fspath(backing), os.fspath(path)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as server:
        assert server.stdin is not None
        assert server.stdout is not None
        server.stdout.readline()  # mounted
        try:
            slow = {"operation": "read", "delay_s": delay_ms / 1e3}
            server.stdin.write(f"{json.dumps([slow])}\n")
            server.stdin.flush()
            server.stdout.readline()
            yield path, backing
        finally:
            server.stdin.close()


def make_cold(directory: Path) -> None:
    for path in directory.iterdir():
        fd = os.open(path, os.O_RDONLY)
        os.fsync(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(fd)


def restore(process: Process, checkpoint: Path, log: Path, *, lazy: bool) -> Times:
    """Seconds from the start of the command until it returns, the process answers, and all of
    its memory is there."""
    log.unlink(missing_ok=True)
    options: list[str | Path] = ["--lazy", "--log-file", log] if lazy else []
    watch = Stopwatch()
    measure.run(*CEDANAFS, "restore", "process", "--path", checkpoint, *options)
    times = {"command s": watch.wall_s()}
    process.answer()
    times["answer s"] = watch.wall_s()
    if lazy:
        wait_for(lambda: "all memory has arrived" in log.read_text(), "the last page", 0.005)
    times["all memory s"] = watch.wall_s()
    return times


def measured(base: Path, mib: int, delay_ms: float, rounds: int) -> dict[str, list[Times]]:
    found: dict[str, list[Times]] = {"normal": [], "lazy": []}
    with store(base, delay_ms) as (path, backing):
        process = WORKLOADS["private"].start(base, mib)
        try:
            digest = process.digest()
            dump = ("dump", "process", str(process.pid), "--dir", path, "--name", "x", "-c", "lz4")
            measure.run(*CEDANAFS, *dump)
            for _ in range(rounds):
                for kind, times in found.items():
                    process.kill()
                    make_cold(backing / "x")
                    lazy = kind == "lazy"
                    times.append(restore(process, path / "x", base / "log", lazy=lazy))
                if process.digest() != digest:
                    raise AssertionError("the restored process has another memory")
        finally:
            process.kill()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--mib", type=int, action="append", required=True)
    parser.add_argument("--delay-ms", type=float, action="append", help="of a read [0]")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    print("| MiB | a read takes | restore | command returns | process answers | all memory |")
    print("|---|---|---|---|---|---|")
    for mib in arguments.mib:
        for delay_ms in arguments.delay_ms or [0]:
            base = Path(tempfile.mkdtemp(prefix="cedanafs-bench-"))
            try:
                found = measured(base, mib, delay_ms, arguments.rounds)
            finally:
                shutil.rmtree(base)
            for kind, rounds in found.items():
                cells = []
                for name in rounds[0]:
                    values = sorted(each[name] for each in rounds)
                    cells.append(
                        f"{statistics.median(values):.2f} ({values[0]:.2f}-{values[-1]:.2f})"
                    )
                where = f"+{delay_ms:.0f} ms" if delay_ms else "local"
                print(f"| {mib} | {where} | {kind} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
