"""What was measured: its file, the conditions it was measured in, its medians and ratios."""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.measure import Figures

BASELINE = "plain"
DISTURBED_CPUS = 0.6  # plain criu leaves up to 0.4 of a CPU to the kernel's writeback

FIGURES: dict[str, tuple[str, int]] = {
    "frozen_s": ("frozen s", 2),
    "criu_s": ("criu returns s", 2),
    "durable_s": ("durable s", 2),
    "cpu_s": ("CPU s", 2),
    "machine_cpu_s": ("machine's CPU s", 2),
    "stored_mib": ("stored MiB", 0),
    "sent_mib": ("sent MiB", 0),
    "dump_peak_mib": ("server's peak MiB", 0),
    "command_s": ("command s", 2),
    "answer_s": ("answers s", 2),
    "arrived_s": ("all memory s", 2),
    "restore_criu_s": ("criu returns s", 2),
    "restore_s": ("answers s", 2),
    "restore_cpu_s": ("CPU s", 2),
    "restore_machine_cpu_s": ("machine's CPU s", 2),
    "received_mib": ("received MiB", 0),
    "restore_peak_mib": ("server's peak MiB", 0),
}
"""Each figure's heading and its digits."""


@dataclass(frozen=True)
class Run:
    """Rounds of one experiment that followed each other; in each, every kind had its turn."""

    experiment: str
    workload: str
    mib: int
    skipped: dict[str, str]
    """Kinds that could not take part, and why."""
    conditions: dict[str, Any]
    rounds: list[dict[str, Figures]]


@dataclass(frozen=True)
class Spread:
    """The median of some values, the least and the most."""

    median: float
    least: float
    most: float

    @classmethod
    def of(cls, values: Iterable[float]) -> Spread | None:
        """None when there is no value."""
        found = sorted(values)
        return cls(statistics.median(found), found[0], found[-1]) if found else None


class Experiment:
    """All runs of one experiment, as one: the rounds of each, one after the other."""

    def __init__(self, runs: list[Run]) -> None:
        self.runs = runs
        self.workload, self.mib = runs[0].workload, runs[0].mib
        self.rounds = [each for run in runs for each in run.rounds]
        self.kinds = list(dict.fromkeys(kind for each in self.rounds for kind in each))
        skipped = {kind: why for run in runs for kind, why in run.skipped.items()}
        self.skipped = {kind: why for kind, why in skipped.items() if kind not in self.kinds}

    def spread(self, kind: str, figure: str) -> Spread | None:
        """Of a figure over the rounds, or None where it was not measured."""
        return Spread.of(each[kind][figure] for each in self.rounds if figure in each.get(kind, {}))

    def ratio(self, kind: str, figure: str, to: str = BASELINE) -> float | None:
        """The median of the ratios to another kind's figure, round by round."""
        ratios = Spread.of(
            each[kind][figure] / each[to][figure]
            for each in self.rounds
            if figure in each.get(kind, {}) and each.get(to, {}).get(figure)
        )
        return ratios.median if ratios else None

    def disturbed(self) -> tuple[int, int]:
        """In how many dumps and restores something else took most of a CPU; and of how many."""
        found = [
            figures[machine] - figures[own] > DISTURBED_CPUS * figures[wall]
            for each in self.rounds
            for figures in each.values()
            for wall, own, machine in (
                ("durable_s", "cpu_s", "machine_cpu_s"),
                ("restore_s", "restore_cpu_s", "restore_machine_cpu_s"),
            )
            if wall in figures
        ]
        return sum(found), len(found)


def load(path: Path) -> list[Run]:
    """The runs in a file. Raises: ValueError when it holds something else; OSError."""
    try:
        return [Run(**run) for run in json.loads(path.read_text())["runs"]]
    except (ValueError, TypeError, KeyError) as exc:
        raise ValueError(f"{path} holds no results of this program: {exc}") from exc


def add(path: Path, run: Run) -> None:
    """Add a run to a file, which is made if it is not there."""
    runs = [*(load(path) if path.exists() else []), run]
    lines = ",\n".join(json.dumps(asdict(each), separators=(",", ":")) for each in runs)
    new = path.with_name(f"{path.name}.new")
    new.write_text(f'{{"runs":[\n{lines}\n]}}\n')
    new.rename(path)


def experiments(runs: list[Run]) -> dict[str, Experiment]:
    """The runs by experiment. Raises: ValueError when runs of one differ in their workload."""
    found: dict[str, list[Run]] = {}
    for run in runs:
        found.setdefault(run.experiment, []).append(run)
    for name, those in found.items():
        if len({(run.workload, run.mib) for run in those}) > 1:
            raise ValueError(f"runs of {name} differ in workload or size: keep them in two files")
    return {name: Experiment(those) for name, those in found.items()}


def rounded(figures: Figures) -> Figures:
    """As exact as the clocks are."""
    return {name: round(value, 4) for name, value in figures.items()}


def conditions(base: Path) -> dict[str, Any]:
    """Where and with what is measured; *base* is the directory that the stores are in."""
    said = _output("findmnt", "-no", "FSTYPE", "-T", str(base))
    memory_kib = int(Path("/proc/meminfo").read_text().split()[1])
    return {
        "date": time.strftime("%Y-%m-%d %H:%M", time.gmtime()),
        "cedanafs": _output(
            "git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"
        ),
        "kernel": platform.release(),
        "cpus": os.cpu_count(),
        "cpu": _cpu_model(),
        "memory_gib": round(memory_kib / 2**20, 1),
        "disk": said,
        "criu": _output("criu", "--version").partition("\n")[0].removeprefix("Version: "),
        "python": platform.python_version(),
        "pyfuse3": version("pyfuse3"),
        "load": os.getloadavg()[0],
    }


def _cpu_model() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.partition(": ")[2] for line in lines if line.startswith("model name")), "")


def _output(*command: str) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    except FileNotFoundError:
        return ""
