"""A first dump, and a second onto it when some of the process's pages have changed, in turn.

    python -m benchmarks.base                            1000 MiB, 5 % of the pages, 5 rounds
    python -m benchmarks.base --mib 300 --changed 0.5 --codec lz4

A round dumps the process as it is, once more, keeping the hashes of its pages, changes some pages,
and dumps it onto each of the two. The floors: the command for a process that holds next to nothing,
and criu into a bare mount, which throws away what it gets. Nothing else should run meanwhile.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Final

from benchmarks import report, results
from benchmarks.floors import Floor
from benchmarks.kinds import CEDANAFS
from benchmarks.measure import Figures, Stopwatch, machine_cpu_s, stored_mib
from benchmarks.workloads import Session, wait_for

FIRST: Final = "first"
HASHES: Final = "first, --page-hashes"
SECOND: Final = "second, --base"
COMPUTED: Final = "second, hashes computed"
EMPTY: Final = "floor: a process of 1 MiB"
BARE: Final = "floor: a bare mount"
KINDS: Final = (FIRST, HASHES, SECOND, COMPUTED, EMPTY, BARE)

# Changes its pages when it gets SIGUSR1, and says so by a link: no file may be open that grows.
PROGRAM: Final = """
import mmap, os, random, signal, sys
from pathlib import Path
mib, part, state = 1 << 20, float(sys.argv[2]), sys.argv[3]
text = b"".join(b"%d: a line of text, as logs and tables have them\\n" % i for i in range(30000))
memory = mmap.mmap(-1, int(sys.argv[1]) * mib, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
for i in range(int(sys.argv[1])):
    block = (os.urandom(mib), text[:mib].ljust(mib, b"."), bytes([i % 256]) * mib)[i % 3]
    memory[i * mib : (i + 1) * mib] = block
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
while True:
    os.symlink("done", state)
    signal.sigwait([signal.SIGUSR1])
    pages = len(memory) // 4096
    for page in random.sample(range(pages), int(pages * part)):
        memory[page * 4096 : page * 4096 + 64] = os.urandom(64)
"""


class Changing(Session):
    """*mib* of the mix, of which *change* changes a part."""

    def __init__(self, state: Path, mib: int, part: float) -> None:
        self._state = state
        super().__init__(["/usr/bin/python3", "-c", PROGRAM, str(mib), str(part), state])
        self._wait()

    def change(self) -> None:
        os.kill(self.pid, signal.SIGUSR1)
        self._wait()

    def answer(self) -> None:
        raise NotImplementedError("it is never restored")

    def digest(self) -> str:
        raise NotImplementedError("it is never restored")

    def _wait(self) -> None:
        wait_for(self._state.is_symlink, "its memory")
        self._state.unlink()


def dump(process: Changing, store: Path, name: str, codec: str, *more: str) -> Figures:
    """`cedanafs dump process`, all of it."""
    command = [*CEDANAFS, "dump", "process", str(process.pid), "--dir", str(store), "--name", name]
    os.sync()
    machine_s = machine_cpu_s()
    start = time.perf_counter()
    child = subprocess.Popen(
        [*command, "--leave-running", "-c", codec, *more],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    assert child.stderr is not None
    said = child.stderr.read()
    _, status, used = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise RuntimeError(f"{' '.join(command)}: exit code {child.returncode}\n{said.decode()}")
    wall_s = time.perf_counter() - start
    shown = subprocess.run(
        [*CEDANAFS, "inspect", "--json", store / name], check=True, capture_output=True
    )
    return {
        "command_s": wall_s,
        "frozen_s": json.loads(shown.stdout)["dump"]["stats"]["frozen_time_us"] / 1e6,
        "cpu_s": used.ru_utime + used.ru_stime,
        "machine_cpu_s": machine_cpu_s() - machine_s,
        "dump_peak_mib": used.ru_maxrss / 1024,
        "stored_mib": stored_mib(store / name),
    }


def bare(process: Changing, base: Path) -> Figures:
    """criu into a mount that does nothing."""
    place = base / "floor"
    place.mkdir()
    os.sync()
    one = Floor("discard")
    try:
        return one.dump(process, place)
    finally:
        one.close()
        shutil.rmtree(place)


def turn(
    process: Changing, empty: Changing, base: Path, codec: str, *, odd: bool
) -> dict[str, Figures]:
    """A round: each of `KINDS` once."""
    store = base / "store"
    store.mkdir()
    found = {BARE: bare(process, base), EMPTY: dump(empty, store, "empty", codec)}
    firsts = [(FIRST, "plain", ()), (HASHES, "hashes", ("--page-hashes",))]
    seconds = [(SECOND, "b", ("--base", "hashes")), (COMPUTED, "c", ("--base", "plain"))]
    for some in (firsts, seconds):
        for kind, name, options in some[:: -1 if odd else 1]:
            found[kind] = dump(process, store, name, codec, *options)
        if some is firsts:
            process.change()
    shutil.rmtree(store)
    return {kind: results.rounded(found[kind]) for kind in KINDS}


def measured(codec: str, mib: int, percent: float, rounds: int, where: Path | None) -> results.Run:
    """All rounds with one codec."""
    base = Path(tempfile.mkdtemp(prefix="cedanafs-bench-", dir=where))
    conditions = results.conditions(base)
    done: list[dict[str, Figures]] = []
    watch = Stopwatch()
    try:
        process = Changing(base / "state", mib, percent / 100)
        empty = Changing(base / "empty", 1, 0)
        try:
            for number in range(rounds + 1):
                taken = turn(process, empty, base, codec, odd=bool(number % 2))
                if number:  # the first warms up
                    done.append(taken)
                print(f"{codec}: {number} of {rounds}, {watch.wall_s():.0f} s", file=sys.stderr)
        finally:
            process.kill()
            empty.kill()
    finally:
        shutil.rmtree(base)
    what = f"the mix in private memory, of which {percent:g} % of the pages change"
    return results.Run(f"base {codec}", what, mib, {}, conditions, done)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.base",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--codec", action="append", help="[zstd:1 and lz4]")
    parser.add_argument("--mib", type=int, default=1000)
    parser.add_argument("--changed", type=float, default=5, help="percent of the pages [5]")
    parser.add_argument("-r", "--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, help="add every figure to this file")
    parser.add_argument("--dir", type=Path, help="where to store [the temporary directory]")
    arguments = parser.parse_args()
    for codec in arguments.codec or ["zstd:1", "lz4"]:
        run = measured(codec, arguments.mib, arguments.changed, arguments.rounds, arguments.dir)
        if arguments.json:
            results.add(arguments.json, run)
        print("\n".join(report.bases(results.Experiment([run]))), flush=True)


if __name__ == "__main__":
    main()
