"""Dump a process that runs on, through a mount and plainly, in turn; restore it from each.

    make bench                                   1000 MiB, 5 rounds, lz4 and zstd:1 on 4 shards
    make bench BENCH_ARGS="--mib 300 --rounds 3 --codec none --stream 8"
    make bench BENCH_ARGS="--codec lz4 --codec lz4+durable --codec lz4+hook"    what a barrier costs

Prints medians and the spread of every figure, and the ratio to plain criu pair by pair; with
--json FILE also every single run. Nothing else should run on the machine meanwhile.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from cedanafs.criu.stats import parse_stats
from cedanafs.fs.mounts import mount_of_store

COUNTER = Path(__file__).parent.parent / "scripts/demo-counter.py"
HOOK = Path(sys.executable).parent / "cedanafs-post-dump"
CEDANAFS = [sys.executable, "-m", "cedanafs"]
TICK_S = 1 / os.sysconf("SC_CLK_TCK")
Figures = dict[str, float]


class Process:
    """The process that is dumped: a third random, a third text, a third constant bytes."""

    def __init__(self, base: Path, mib: int) -> None:
        self._state = base / "state"
        self._child = subprocess.Popen(
            ["/usr/bin/python3", COUNTER, self._state, str(mib)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            cwd="/",
        )
        self.pid = self._child.pid
        self.digest = self.ask()

    def ask(self) -> str:
        """Its memory's digest, when it has filled it."""
        self._state.unlink(missing_ok=True)
        Path(f"{self._state}.ask").touch()
        deadline = time.monotonic() + 120
        while not self._state.exists():
            if time.monotonic() > deadline:
                raise TimeoutError("the process does not answer")
            time.sleep(0.002)
        return self._state.read_text().split()[1]

    def kill(self) -> None:
        """End it, whether it is still our child or was restored."""
        try:
            os.kill(self.pid, signal.SIGKILL)
        except ProcessLookupError:
            return
        if self._child.poll() is None:
            self._child.wait()
        while Path(f"/proc/{self.pid}").exists():
            time.sleep(0.002)


@contextmanager
def plain_directory(base: Path) -> Iterator[tuple[Path, Callable[[], Figures]]]:
    """A directory for plain images."""
    directory = base / "plain"
    directory.mkdir()
    yield directory, dict
    shutil.rmtree(directory)


@contextmanager
def mount(
    base: Path, codec: str, stream: int, *, fresh: bool
) -> Iterator[tuple[Path, Callable[[], Figures]]]:
    """A directory in a mount with a server of its own, and the server's figures so far."""
    store, mountpoint = base / "store", base / "mnt"
    store.mkdir(exist_ok=not fresh)
    mountpoint.mkdir()
    codec, _, barrier = codec.partition("+")
    command = [*CEDANAFS, "mount", store, mountpoint, f"--stream={stream}", f"-c{codec}"]
    command += ["--durable"] if barrier == "durable" else []
    subprocess.run(command, check=True)
    mounted = mount_of_store(store)
    server = mounted.server_pid() if mounted else None
    try:
        yield mountpoint / "ckpt", lambda: server_figures(server, store / "ckpt")
    finally:
        subprocess.run([*CEDANAFS, "umount", mountpoint], check=True)
        mountpoint.rmdir()


def server_figures(pid: int | None, shards: Path) -> Figures:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    status = Path(f"/proc/{pid}/status").read_text()
    peak_kib = next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM"))
    return {
        "server cpu s": (int(fields[11]) + int(fields[12])) * TICK_S,
        "server peak MiB": int(peak_kib) / 1024,
        "stored MiB": sum(f.stat().st_size for f in shards.iterdir()) / 2**20,
    }


def timed(command: list[str | Path]) -> tuple[float, float]:
    """Wall and CPU seconds of *command*, which must succeed."""
    before = os.times()
    start = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    wall = time.perf_counter() - start
    after = os.times()
    used = after.children_user + after.children_system
    return wall, used - before.children_user - before.children_system


def dump(
    process: Process, directory: Path, server: Callable[[], Figures], *, hook: bool = False
) -> Figures:
    """Dump with stock criu, and make it durable; with *hook* while the process is frozen."""
    directory.mkdir(exist_ok=True)
    os.sync()
    at_start = server() if directory.parent.name == "mnt" else {}
    options = ["--leave-running", "-v0", *(["--action-script", HOOK] if hook else [])]
    wall, cpu = timed(["criu", "dump", "-t", str(process.pid), "-D", directory, *options])
    # Of a directory of a mount `sync` is the commit; plain files need their filesystem synced.
    mounted = bool(at_start)
    sync_wall, sync_cpu = timed(["sync", *([] if mounted else ["-f"]), directory])
    figures = {
        "frozen s": parse_stats(directory / "stats-dump").frozen_time_us / 1e6,
        "criu wall s": wall,
        "durable wall s": wall + sync_wall,
        "cpu s": cpu + sync_cpu,
    }
    if mounted:
        figures |= server()
        figures["cpu s"] += figures.pop("server cpu s") - at_start["server cpu s"]
    else:
        figures["stored MiB"] = sum(f.stat().st_size for f in directory.iterdir()) / 2**20
    return figures


def restore(process: Process, directory: Path, server: Callable[[], Figures]) -> Figures:
    """Restore with stock criu, until the process answers."""
    process.kill()
    start = time.perf_counter()
    wall, _ = timed(["criu", "restore", "-d", "-D", directory, "-v0"])
    digest = process.ask()
    answered = time.perf_counter() - start
    if digest != process.digest:
        raise AssertionError("the restored process has another memory")
    figures = {"restore wall s": wall, "restore and digest s": answered}
    if directory.parent.name == "mnt":
        figures["restore peak MiB"] = server()["server peak MiB"]
    return figures


def one_round(process: Process, base: Path, codecs: list[str], stream: int) -> dict[str, Figures]:
    results: dict[str, Figures] = {}
    with plain_directory(base) as (directory, server):
        results["plain criu"] = dump(process, directory, server)
        results["plain criu"] |= restore(process, directory, server)
    for codec in codecs:
        with mount(base, codec, stream, fresh=True) as (directory, server):
            figures = dump(process, directory, server, hook=codec.endswith("+hook"))
        with mount(base, codec, stream, fresh=False) as (directory, server):
            figures |= restore(process, directory, server)
        shutil.rmtree(base / "store")
        results[f"{codec} x {stream}"] = figures
    return results


def table(rounds: list[dict[str, Figures]]) -> Iterator[str]:
    yield "| | " + " | ".join(rounds[0]) + " |"
    yield "|---" * (len(rounds[0]) + 1) + "|"
    plain = "plain criu"
    names = list(dict.fromkeys(n for figures in rounds[0].values() for n in figures))
    for name in names:
        cells = []
        for kind in rounds[0]:
            if name not in rounds[0][kind]:
                cells.append("-")
                continue
            values = sorted(each[kind][name] for each in rounds)
            cell = f"{statistics.median(values):.2f} ({values[0]:.2f}-{values[-1]:.2f})"
            if kind != plain and name in rounds[0][plain]:
                ratio = statistics.median(each[kind][name] / each[plain][name] for each in rounds)
                cell += f", {ratio:.2f}x"
            cells.append(cell)
        yield f"| {name} | " + " | ".join(cells) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--mib", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--stream", type=int, default=4)
    parser.add_argument("--codec", action="append")
    parser.add_argument("--dir", type=Path, help="where to work [a temporary directory]")
    parser.add_argument("--json", type=Path, help="write every run here")
    arguments = parser.parse_args()
    base = Path(tempfile.mkdtemp(prefix="cedanafs-bench-", dir=arguments.dir))
    process = Process(base, arguments.mib)
    rounds = []
    try:
        for number in range(arguments.rounds + 1):  # the first warms up and does not count
            result = one_round(
                process, base, arguments.codec or ["lz4", "zstd:1"], arguments.stream
            )
            if number:
                rounds.append(result)
                print(f"round {number} of {arguments.rounds}", file=sys.stderr)
    finally:
        process.kill()
        shutil.rmtree(base)
    print(f"{arguments.mib} MiB, {len(rounds)} rounds, median (min-max), median ratio to plain\n")
    print("\n".join(table(rounds)))
    if arguments.json:
        arguments.json.write_text(json.dumps(rounds, indent=1))


if __name__ == "__main__":
    main()
