"""A first dump, and a second onto it when some of the process's pages have changed, in turn.

    python benchmarks/base.py                    1000 MiB, 5 % of the pages, 5 rounds
    python benchmarks/base.py --mib 300 --changed 0.5 --codec lz4

Prints medians and the spread: of a first dump, of one that keeps the hashes of its pages, and of
the second, onto a base with and without them. Nothing else should run on the machine meanwhile.
"""

from __future__ import annotations

import argparse
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from cedanafs.criu.stats import parse_stats

PROGRAM = """
import mmap, os, random, signal, sys, time
mib, part = 1 << 20, float(sys.argv[2])
text = b"".join(b"%d: a line of text, as logs and tables have them\\n" % i for i in range(30000))
memory = mmap.mmap(-1, int(sys.argv[1]) * mib, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
for i in range(int(sys.argv[1])):
    block = (os.urandom(mib), text[:mib].ljust(mib, b"."), bytes([i % 256]) * mib)[i % 3]
    memory[i * mib : (i + 1) * mib] = block
def change(*_):
    pages = len(memory) // 4096
    for page in random.sample(range(pages), int(pages * part)):
        memory[page * 4096 : page * 4096 + 64] = os.urandom(64)
    print("changed", flush=True)
signal.signal(signal.SIGUSR1, change)
change()
while True:
    time.sleep(1)
"""
CEDANAFS = [sys.executable, "-m", "cedanafs"]


def dump(pid: int, store: Path, name: str, codec: str, *more: str) -> dict[str, float]:
    command = [*CEDANAFS, "dump", "process", str(pid), "--dir", str(store), "--name", name]
    start = time.perf_counter()
    subprocess.run(
        [*command, "--leave-running", "-c", codec, *more],
        check=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    wall = time.perf_counter() - start
    subprocess.run(
        [*CEDANAFS, "extract", store / name, store / "out"], check=True, stderr=subprocess.DEVNULL
    )
    frozen = parse_stats(store / "out" / "stats-dump").frozen_time_us / 1e6
    shutil.rmtree(store / "out")
    size = sum(path.stat().st_size for path in (store / name).iterdir()) / 2**20
    return {"wall s": wall, "frozen s": frozen, "stored MiB": size}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--mib", type=int, default=1000)
    parser.add_argument("--changed", type=float, default=5, help="percent of the pages [5]")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--codec", default="zstd:1")
    arguments = parser.parse_args()
    store = Path(tempfile.mkdtemp(prefix="cedanafs-bench-"))
    child = subprocess.Popen(
        ["/usr/bin/python3", "-c", PROGRAM, str(arguments.mib), str(arguments.changed / 100)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        cwd="/",
    )
    assert child.stdout is not None
    rounds: list[dict[str, dict[str, float]]] = []
    try:
        child.stdout.readline()
        for _ in range(arguments.rounds + 1):
            result = {
                "first": dump(child.pid, store, "plain", arguments.codec),
                "first, --page-hashes": dump(
                    child.pid, store, "a", arguments.codec, "--page-hashes"
                ),
            }
            child.send_signal(signal.SIGUSR1)
            child.stdout.readline()
            for kind, base in (("second", "a"), ("second, no hashes kept", "plain")):
                result[kind] = dump(child.pid, store, "b", arguments.codec, "--base", base)
                shutil.rmtree(store / "b")
            shutil.rmtree(store / "a")
            shutil.rmtree(store / "plain")
            rounds.append(result)
    finally:
        child.kill()
        child.wait()
        shutil.rmtree(store)
    print(f"{arguments.mib} MiB, {arguments.changed} % changed, {arguments.codec}\n")
    for kind in rounds[0]:
        for figure in rounds[0][kind]:
            values = sorted(each[kind][figure] for each in rounds[1:])
            ratio = statistics.median(e[kind][figure] / e["first"][figure] for e in rounds[1:])
            middle = statistics.median(values)
            span = f"({values[0]:.2f}-{values[-1]:.2f})"
            print(f"{kind:24} {figure:12} {middle:8.2f} {span:18} {ratio:.3f}x")


if __name__ == "__main__":
    main()
