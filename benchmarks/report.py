"""Results as Markdown tables, printed or put into a page.

    python -m benchmarks.report FILE                print every table
    python -m benchmarks.report FILE --into PAGE    put them between the page's markers

A marker is a line `<!-- table: NAME -->`; what follows it, up to `<!-- end -->`, is replaced.
Names: conditions, goals, logs, sizes, lazy, `base CODEC`, and `dump EXPERIMENT` or
`restore EXPERIMENT`.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from benchmarks import goals, results
from benchmarks.results import BASELINE, FIGURES, Experiment, Spread

DUMP = (
    "frozen_s", "criu_s", "durable_s", "cpu_s", "machine_cpu_s", "dump_peak_mib", "stored_mib",
    "sent_mib",
)  # fmt: skip
RESTORE = (
    "restore_criu_s", "restore_s", "restore_cpu_s", "restore_machine_cpu_s", "restore_peak_mib",
    "received_mib",
)  # fmt: skip
BASE = ("command_s", "frozen_s", "cpu_s", "dump_peak_mib", "stored_mib")
LAZY = ("command_s", "answer_s", "arrived_s")
CONDITIONS = {"memory_gib": "memory, GiB", "cedanafs": "cedanafs, commit", "disk": "stores on"}
MARKED = re.compile(r"(?<=<!-- table: )([^>\n]+)( -->\n).*?(?=<!-- end -->)", re.DOTALL)


def experiment(name: str, what: Experiment) -> Iterator[str]:
    """Everything of one experiment, for people."""
    yield f"\n{name}: {what.workload}, {what.mib} MiB; {len(what.rounds)} rounds"
    yield "median (least-most), median of the ratios to plain criu round by round"
    yield disturbed({name: what})
    yield ""
    yield from table(what, DUMP, "dump")
    if any(what.spread(kind, "restore_s") for kind in what.kinds):
        yield ""
        yield from table(what, RESTORE, "restore")


def table(
    what: Experiment, figures: tuple[str, ...], heading: str, to: str = BASELINE
) -> Iterator[str]:
    """A row for each kind that has any of the figures."""
    measured = [f for f in figures if any(what.spread(kind, f) for kind in what.kinds)]
    yield f"| {heading} | " + " | ".join(FIGURES[f][0] for f in measured) + " |"
    yield "|---" * (len(measured) + 1) + "|"
    for kind in what.kinds:
        cells = [cell(what, kind, figure, to) for figure in measured]
        if any(cells):
            yield f"| {kind} | " + " | ".join(each or "-" for each in cells) + " |"
    for kind, why in what.skipped.items():
        yield f"| {kind} | skipped: {why} " + "|" * len(measured)


def cell(what: Experiment, kind: str, figure: str, to: str) -> str:
    """A figure of a kind; "" where it has none."""
    spread = what.spread(kind, figure)
    if spread is None:
        return ""
    text = span(spread, FIGURES[figure][1])
    ratio = what.ratio(kind, figure, to) if kind != to else None
    return text if ratio is None else f"{text} {ratio:.2f}x"


def span(spread: Spread, digits: int) -> str:
    least, median, most = (f"{v:.{digits}f}" for v in (spread.least, spread.median, spread.most))
    return median if least == most else f"{median} ({least}-{most})"


def logs(what: Experiment) -> Iterator[str]:
    """What a full log costs, each kind against itself without."""
    yield "| dump | without s | with -v4 s | ratio |"
    yield "|---|---|---|---|"
    for kind in [each for each in what.kinds if f"{each}+v4" in what.kinds]:
        spreads = [what.spread(each, "criu_s") for each in (kind, f"{kind}+v4")]
        cells = [span(each, 3) for each in spreads if each]
        ratio = what.ratio(f"{kind}+v4", "criu_s", to=kind)
        yield f"| {kind} | {' | '.join(cells)} | {ratio:.2f}x |"


def bases(what: Experiment) -> Iterator[str]:
    """A second dump onto a base, against the first."""
    return table(what, BASE, "dump", to="first")


def lazy(all_of: dict[str, Experiment]) -> Iterator[str]:
    """Lazy restores and normal ones, by size and by how long a read takes."""
    some = {name: each for name, each in all_of.items() if name.startswith("lazy ")}
    if not some:
        raise KeyError("lazy")
    yield f"| MiB | a read takes | restore | {' | '.join(FIGURES[f][0] for f in LAZY)} |"
    yield "|---" * (len(LAZY) + 3) + "|"
    for name, each in some.items():
        for kind in each.kinds:
            cells = [cell(each, kind, figure, "normal") for figure in LAZY]
            yield f"| {each.mib} | {name.split()[-1]} | {kind} | {' | '.join(cells)} |"


def sizes(all_of: dict[str, Experiment]) -> Iterator[str]:
    """What a GiB costs, of much and of little memory."""
    small, large = all_of["mix"], all_of["large"]
    yield "| seconds for each GiB | " + " | ".join(
        f"{FIGURES[f][0]}{', restore' * f.startswith('restore')}, {each.mib} MiB"
        for f in goals.PER_GIB for each in (small, large)
    ) + " |"  # fmt: skip
    yield "|---" * (len(goals.PER_GIB) * 2 + 1) + "|"
    for kind in large.kinds:
        cells = []
        for figure in goals.PER_GIB:
            values = [goals.per_gib(each, kind, figure) for each in (small, large)]
            if None in values:
                cells += ["-", "-"]
                continue
            one, other = (value or 0.0 for value in values)
            cells += [f"{one:.2f}", f"{other:.2f} {other / one:.2f}x"]
        yield f"| {kind} | " + " | ".join(cells) + " |"


def conditions(all_of: dict[str, Experiment]) -> Iterator[str]:
    """What was the same in all runs, and what was not, each once."""
    every = [run.conditions for each in all_of.values() for run in each.runs]
    for name in every[0]:
        values = list(dict.fromkeys(str(each[name]) for each in every))
        if name == "load":
            values = [
                f"{min(map(float, values)):.1f}-{max(map(float, values)):.1f} before each run"
            ]
        elif name == "date":
            values = [min(values), max(values)][: len(values)]
        yield f"- {CONDITIONS.get(name, name)}: {(' … ' if name == 'date' else ', ').join(values)}"
    counts = ", ".join(f"{name} {len(each.rounds)}" for name, each in all_of.items())
    yield f"- rounds: {counts}"
    yield f"- {disturbed(all_of)}"


def disturbed(all_of: dict[str, Experiment]) -> str:
    """How far the machine was quiet."""
    counts = {name: each.disturbed() for name, each in all_of.items()}
    listed = ", ".join(
        f"{name} {some} of {total}" for name, (some, total) in counts.items() if total
    )
    return f"dumps and restores while something else used most of a CPU: {listed}"


def section(name: str, all_of: dict[str, Experiment]) -> str:
    """What belongs after a marker, or that it was not measured.

    Raises: ValueError when there is no such table.
    """
    try:
        match name.split():
            case ["conditions"]:
                lines = conditions(all_of)
            case ["goals"]:
                lines = goals.table(all_of)
            case ["logs"]:
                lines = logs(all_of["logs"])
            case ["sizes"]:
                lines = sizes(all_of)
            case ["lazy"]:
                lines = lazy(all_of)
            case ["base", _]:
                lines = bases(all_of[name])
            case ["dump", what]:
                lines = table(all_of[what], DUMP, "dump")
            case ["restore", what]:
                lines = table(all_of[what], RESTORE, "restore")
            case _:
                raise ValueError(f"no table is named {name!r}")
        return "\n".join(lines) + "\n"
    except KeyError as exc:
        return f"Not in these results: experiment {exc.args[0]}.\n"


def page(text: str, all_of: dict[str, Experiment]) -> str:
    """A page with its tables filled in. Raises: ValueError, as `section`."""
    return MARKED.sub(lambda found: f"{found[1]}{found[2]}{section(found[1], all_of)}", text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("file", type=Path)
    parser.add_argument("--into", type=Path, metavar="PAGE")
    arguments = parser.parse_args()
    try:
        all_of = results.experiments(results.load(arguments.file))
        if arguments.into:
            arguments.into.write_text(page(arguments.into.read_text(), all_of))
            return
        for name, each in all_of.items():
            print("\n".join(experiment(name, each)))
    except (OSError, ValueError) as exc:
        sys.exit(f"report: {exc}")


if __name__ == "__main__":
    main()
