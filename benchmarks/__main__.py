"""The command: choose experiments, let their kinds take turns, print and keep what came out."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path

from benchmarks import kinds, report, results, workloads
from benchmarks.experiments import EXPERIMENTS, Experiment
from benchmarks.floors import Floor
from benchmarks.measure import Figures
from benchmarks.streamer import PROGRAM, Streamer
from benchmarks.workloads import WORKLOADS, Process

EPILOG = """\
kinds: plain, tar-lz4, tar-zstd, streamer (criu-image-streamer), discard, bare-copy,
bare-lz4, memory and memory-direct (bare mounts: the floors), and cedanafs as
CODEC[:LEVEL]xN, such as lz4x4 or zstd:1x8; +durable, +hook and +v4 change how it dumps.

A round takes each kind once; which comes first rotates. The first round warms up and does not
count. Nothing else should run on the machine meanwhile.
"""


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="make bench",
        description="Measure dumps and restores, ours and everyone else's, in turn.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    some = ", ".join(name for name, each in EXPERIMENTS.items() if each.default)
    parser.add_argument(
        "-e", "--experiment", action="append", choices=EXPERIMENTS, metavar="NAME",
        help=f"one of {', '.join(EXPERIMENTS)}; may be repeated [{some}]",
    )  # fmt: skip
    parser.add_argument(
        "--full", action="store_true", help="all experiments (45 minutes for 7 rounds)"
    )
    parser.add_argument("-k", "--kind", action="append", help="these kinds instead")
    parser.add_argument("--mib", type=int, help="this much memory instead")
    parser.add_argument("--no-restore", action="store_true", help="only dump")
    parser.add_argument("-r", "--rounds", type=int, default=3, help="rounds that count [3]")
    parser.add_argument("--json", type=Path, help="add every figure to this file")
    parser.add_argument("--dir", type=Path, help="where to store [the temporary directory]")
    parser.add_argument("--list", action="store_true", help="only say what would be measured")
    arguments = parser.parse_args()

    names = arguments.experiment or [
        n for n, e in EXPERIMENTS.items() if e.default or arguments.full
    ]
    chosen = [
        EXPERIMENTS[n].with_(
            kinds=arguments.kind, mib=arguments.mib, restores=not arguments.no_restore
        )
        for n in names
    ]
    try:
        check(chosen, arguments)
    except (ValueError, OSError) as exc:
        parser.error(str(exc))
    if arguments.list:
        for each in chosen:
            print(f"{each.name}: {each.question}: {' '.join(each.kinds)}")
        return
    failed = False
    for each in chosen:
        try:
            run = measured(each, arguments.rounds, arguments.dir)
        except (RuntimeError, TimeoutError) as exc:
            print(f"{each.name} failed: {exc}", file=sys.stderr)
            failed = True
            continue
        if arguments.json:
            results.add(arguments.json, run)
        print("\n".join(report.experiment(each.name, results.Experiment([run]))), flush=True)
    sys.exit(failed)


def check(chosen: list[Experiment], arguments: argparse.Namespace) -> None:
    """Raises: ValueError, OSError: what would stop the benchmark when it is half done."""
    if os.geteuid() != 0:
        raise ValueError("not root: CRIU needs it")
    if arguments.rounds < 1 or (arguments.mib or 1) < 1:
        raise ValueError("--rounds and --mib are at least 1")
    for each in chosen:
        for word in each.kinds:
            kind(word)
        if why := workloads.missing(each.workload):
            raise ValueError(why)
        if arguments.mib and not WORKLOADS[each.workload].resizable:
            raise ValueError(f"{each.name} has its own size: leave out --mib")
    if arguments.json:
        if arguments.json.exists():
            results.load(arguments.json)
        elif not arguments.json.absolute().parent.is_dir():
            raise ValueError(f"--json: there is no directory {arguments.json.absolute().parent}")
    if arguments.dir and not arguments.dir.is_dir():
        raise ValueError(f"--dir: {arguments.dir} is not a directory")


def kind(word: str) -> kinds.Kind:
    """The kind of that name, for one turn. Raises: ValueError when there is none."""
    name, changes, ours = kinds.parse(word)
    if ours:
        codec, level, shards = ours.groups()
        return kinds.Cedanafs(f"{codec}:{level}" if level else codec, int(shards), changes)
    match name:
        case "plain":
            return kinds.Plain(changes)
        case "tar-lz4" | "tar-zstd":
            return kinds.Archive(name.removeprefix("tar-"))
        case "streamer":
            return Streamer()
        case name if name in Floor.MODES:
            return Floor(name)
    raise ValueError(f"no kind is named {word}: see --help")


def measured(experiment: Experiment, rounds: int, where: Path | None) -> results.Run:
    """All rounds of one experiment."""
    skipped = {}
    if "streamer" in experiment.kinds and not shutil.which(PROGRAM):
        skipped["streamer"] = f"{PROGRAM} is not on PATH"
    words = [word for word in experiment.kinds if word not in skipped]
    workload = WORKLOADS[experiment.workload]
    mib = experiment.mib or workload.mib
    base = Path(tempfile.mkdtemp(prefix="cedanafs-bench-", dir=where))
    conditions = results.conditions(base)
    done: list[dict[str, Figures]] = []
    start = time.monotonic()
    try:
        process = workload.start(base, mib)
        try:
            expected = process.digest()
            for number in range(rounds + 1):
                first = number % len(words)
                order = words[first:] + words[:first]
                taken = {
                    word: turn(word, process, base, expected, restores=experiment.restores)
                    for word in order
                }
                if number:  # the first warms up
                    done.append({word: results.rounded(taken[word]) for word in words})
                said = f"round {number} of {rounds}" if number else "warmed up"
                print(
                    f"{experiment.name}: {said}, {time.monotonic() - start:.0f} s", file=sys.stderr
                )
        finally:
            process.kill()
    finally:
        shutil.rmtree(base)
    return results.Run(experiment.name, workload.what, mib, skipped, conditions, done)


def turn(word: str, process: Process, base: Path, expected: str, *, restores: bool) -> Figures:
    """One dump by one kind, and a restore from it; nothing of it is left.

    Raises: RuntimeError when the process that was restored holds something else.
    """
    place = base / "turn"
    place.mkdir()
    one = kind(word)
    os.sync()
    try:
        figures = one.dump(process, place)
        if restores and one.restores:
            process.kill()
            figures |= one.restore(process, place)
            if process.digest() != expected:
                raise RuntimeError(f"{word}: the restored process holds something else")
    finally:
        one.close()
    shutil.rmtree(place)
    return figures


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
