"""Results as plots: small PNG files.

    python -m benchmarks.plot FILE DIRECTORY

Bars are medians, their whiskers the least and the most. An experiment that FILE does not hold has
no plot.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot
from matplotlib.axes import Axes

from benchmarks import results
from benchmarks.results import BASELINE, Experiment

DUMP = {"frozen_s": "frozen", "durable_s": "until durable", "cpu_s": "CPU"}
RESTORE = {"restore_s": "until it answers", "restore_cpu_s": "CPU"}
COLOURS = ("#4878a8", "#e49444", "#85b56b")
All = dict[str, Experiment]


def bars(axes: Axes, what: Experiment, figures: dict[str, str], title: str) -> None:
    """Seconds of several figures, kind by kind."""
    kinds = [k for k in what.kinds if any(what.spread(k, f) for f in figures)]
    width = 0.8 / len(figures)
    for number, (figure, label) in enumerate(figures.items()):
        found = [(at, what.spread(kind, figure)) for at, kind in enumerate(kinds)]
        there = [(at, spread) for at, spread in found if spread]
        axes.bar(
            [at + (number - (len(figures) - 1) / 2) * width for at, _ in there],
            [spread.median for _, spread in there],
            width,
            yerr=[
                [spread.median - spread.least for _, spread in there],
                [spread.most - spread.median for _, spread in there],
            ],
            label=label,
            color=COLOURS[number],
            error_kw={"elinewidth": 0.8, "ecolor": "#444444"},
        )
    axes.set_xticks(range(len(kinds)), kinds, rotation=20, ha="right")
    axes.set_ylabel("seconds")
    axes.set_title(title)
    axes.legend()


def mix(all_of: All, axes: Sequence[Axes]) -> None:
    """Everyone, on the mix."""
    bars(axes[0], all_of["mix"], DUMP, f"dump, {all_of['mix'].mib} MiB")
    bars(axes[1], all_of["mix"], RESTORE, "restore")


def shards(all_of: All, axes: Sequence[Axes]) -> None:
    """Codecs by the number of shards."""
    what = all_of["shards"]
    lines: dict[str, list[int]] = {}
    for kind in what.kinds:
        if found := re.fullmatch(r"(.+)x(\d+)", kind):
            lines.setdefault(found[1], []).append(int(found[2]))
    for axis, figure, title in (
        (axes[0], "durable_s", "dump, until durable"),
        (axes[1], "restore_s", "restore, until it answers"),
    ):
        for colour, (codec, counts) in zip(COLOURS, lines.items(), strict=False):
            spreads = [what.spread(f"{codec}x{n}", figure) for n in counts]
            medians = [spread.median if spread else float("nan") for spread in spreads]
            axis.plot(counts, medians, "o-", label=codec, color=colour)
        if plain := what.spread(BASELINE, figure):
            axis.axhline(plain.median, color="#444444", linestyle="--", label="plain criu")
        axis.set_xscale("log", base=2)
        axis.set_xticks([1, 2, 4, 8], ["1", "2", "4", "8"])
        axis.set_ylim(bottom=0)
        axis.set_xlabel("shards")
        axis.set_ylabel("seconds")
        axis.set_title(title)
        axis.legend()


def workloads(all_of: All, axes: Sequence[Axes]) -> None:
    """Ours against plain criu, workload by workload."""
    names = [n for n in ("mix", "shared", "redis", "numbers", "tree", "large") if n in all_of]
    kinds = ("lz4x4", "zstd:1x4")
    for axis, figure, title in (
        (axes[0], "frozen_s", "frozen, times plain criu"),
        (axes[1], "durable_s", "until durable, times plain criu"),
        (axes[2], "restore_s", "restore, times plain criu"),
    ):
        for number, kind in enumerate(kinds):
            ratios = [all_of[name].ratio(kind, figure) or 0.0 for name in names]
            places = [at + (number - 0.5) * 0.4 for at in range(len(names))]
            axis.bar(places, ratios, 0.4, label=kind, color=COLOURS[number])
        axis.axhline(1, color="#444444", linestyle="--", linewidth=0.8)
        axis.set_xticks(range(len(names)), names, rotation=20, ha="right")
        axis.set_title(title)
        axis.legend()


PLOTS: dict[str, tuple[Callable[[All, Sequence[Axes]], None], tuple[str, ...], int]] = {
    "mix": (mix, ("mix",), 2),
    "shards": (shards, ("shards",), 2),
    "workloads": (workloads, ("mix",), 3),
}
"""What draws each, the experiments that it must have, and how many pictures lie side by side."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("file", type=Path)
    parser.add_argument("directory", type=Path)
    arguments = parser.parse_args()
    try:
        all_of = results.experiments(results.load(arguments.file))
    except (OSError, ValueError) as exc:
        sys.exit(f"plot: {exc}")
    pyplot.rcParams.update({"font.size": 8, "axes.spines.top": False, "axes.spines.right": False})
    for name, (draw, needed, count) in PLOTS.items():
        if not all(each in all_of for each in needed):
            continue
        figure, axes = pyplot.subplots(1, count, figsize=(9, 3.2), layout="constrained")
        draw(all_of, axes)
        figure.savefig(arguments.directory / f"{name}.png", dpi=110, metadata={"Software": None})
        pyplot.close(figure)


if __name__ == "__main__":
    main()
