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
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from benchmarks import measure, report, results
from benchmarks.kinds import CEDANAFS
from benchmarks.measure import Figures, Stopwatch
from benchmarks.workloads import WORKLOADS, Process, wait_for

FAULTY_STORE = Path(__file__).parents[1] / "tests/faults/faulty_store.py"
KINDS = ("normal", "lazy")


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


def restore(process: Process, checkpoint: Path, log: Path, *, lazy: bool) -> Figures:
    """From the start of the command until it returns, the process answers, and all of its memory
    is there."""
    log.unlink(missing_ok=True)
    options: list[str | Path] = ["--lazy", "--log-file", log] if lazy else []
    watch = Stopwatch()
    measure.run(*CEDANAFS, "restore", "process", "--path", checkpoint, *options)
    figures = {"command_s": watch.wall_s()}
    process.answer()
    figures["answer_s"] = watch.wall_s()
    if lazy:
        wait_for(lambda: "all memory has arrived" in log.read_text(), "the last page", 0.005)
    figures["arrived_s"] = watch.wall_s()
    return results.rounded(figures)


def measured(mib: int, delay_ms: float, rounds: int, where: Path | None) -> results.Run:
    """All rounds with one size and one delay; which kind comes first rotates."""
    base = Path(tempfile.mkdtemp(prefix="cedanafs-bench-", dir=where))
    conditions = results.conditions(base)
    done: list[dict[str, Figures]] = []
    workload = WORKLOADS["private"]
    try:
        with store(base, delay_ms) as (path, backing):
            process = workload.start(base, mib)
            try:
                digest = process.digest()
                dump = ("dump", "process", str(process.pid), "--dir", path, "--name", "x")
                measure.run(*CEDANAFS, *dump, "-c", "lz4")
                for number in range(rounds):
                    found = {}
                    for kind in KINDS[:: -1 if number % 2 else 1]:
                        process.kill()
                        make_cold(backing / "x")
                        lazy = kind == "lazy"
                        found[kind] = restore(process, path / "x", base / "log", lazy=lazy)
                    if process.digest() != digest:
                        raise RuntimeError("the restored process holds something else")
                    done.append({kind: found[kind] for kind in KINDS})
            finally:
                process.kill()
    finally:
        shutil.rmtree(base)
    name = f"lazy {mib} {f'+{delay_ms:.0f}ms' if delay_ms else 'local'}"
    return results.Run(name, workload.what, mib, {}, conditions, done)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.lazy",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--mib", type=int, action="append", required=True)
    parser.add_argument("--delay-ms", type=float, action="append", help="of a read [0]")
    parser.add_argument("-r", "--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, help="add every figure to this file")
    parser.add_argument("--dir", type=Path, help="where to store [the temporary directory]")
    arguments = parser.parse_args()
    runs = []
    for mib in arguments.mib:
        for delay_ms in arguments.delay_ms or [0]:
            runs.append(measured(mib, delay_ms, arguments.rounds, arguments.dir))
            if arguments.json:
                results.add(arguments.json, runs[-1])
    print("\n".join(report.lazy(results.experiments(runs))))


if __name__ == "__main__":
    main()
