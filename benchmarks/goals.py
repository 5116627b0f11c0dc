"""What the figures are to be, and whether they are: one row for each goal."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from benchmarks.results import Experiment

OURS = ("lz4x4", "zstd:1x4")

STREAMER_S = {"durable_s": 1.76, "cpu_s": 1.81}
"""criu-image-streamer, 4 x lz4, 1000 MiB of the same mix, medians of 5, in an earlier run on a
quiet machine with 2 cores, for where it is not on PATH. Plain criu took 1.58 s and 0.84 s there."""

PER_GIB = ("durable_s", "cpu_s", "restore_s")

All = dict[str, Experiment]


@dataclass(frozen=True)
class Goal:
    """A figure, the most it may be, and how it comes out of the results for a kind."""

    what: str
    most: float
    experiments: tuple[str, ...]
    value: Callable[[All, str], float | None]
    floor: Callable[[All], float | None] | None = None
    unit: str = "x"


def per_gib(what: Experiment, kind: str, figure: str) -> float | None:
    """The median of a figure for each GiB of memory."""
    spread = what.spread(kind, figure)
    return spread.median / what.mib * 1024 if spread else None


def to_plain(name: str, figure: str) -> Callable[[All, str], float | None]:
    return lambda all_of, kind: all_of[name].ratio(kind, figure)


def floor(name: str, figure: str, *kinds: str) -> Callable[[All], float | None]:
    """The ratio to plain of the better of the bare mounts *kinds*."""

    def value(all_of: All) -> float | None:
        ratios = [all_of[name].ratio(kind, figure) for kind in kinds]
        return min((ratio for ratio in ratios if ratio is not None), default=None)

    return value


def to_streamer(figure: str) -> Callable[[All, str], float | None]:
    def value(all_of: All, kind: str) -> float | None:
        mix = all_of["mix"]
        if "streamer" in mix.kinds:
            return mix.ratio(kind, figure, to="streamer")
        spread = mix.spread(kind, figure)
        return spread.median / STREAMER_S[figure] if spread and mix.mib == 1000 else None

    return value


def to_archive(figure: str) -> Callable[[All, str], float | None]:
    return lambda all_of, kind: all_of["mix"].ratio(kind, figure, to="tar-lz4")


def peak(*names: str) -> Callable[[All, str], float | None]:
    """The most of any round, dumping or restoring."""

    def value(all_of: All, kind: str) -> float | None:
        spreads = [
            all_of[name].spread(kind, figure)
            for name in names
            if name in all_of
            for figure in ("dump_peak_mib", "restore_peak_mib")
        ]
        return max((spread.most for spread in spreads if spread), default=None)

    return value


def growth(figure: str) -> Callable[[All, str], float | None]:
    """A GiB's cost of 4 GiB against that of 1000 MiB."""

    def value(all_of: All, kind: str) -> float | None:
        large, small = (per_gib(all_of[name], kind, figure) for name in ("large", "mix"))
        return large / small if large and small else None

    return value


def second(figure: str) -> Callable[[All, str], float | None]:
    """A dump onto a base, against the first."""
    return lambda all_of, kind: all_of[f"base {kind.removesuffix('x4')}"].ratio(
        "second, --base", figure, to="first"
    )


def full_log(all_of: All, kind: str) -> float | None:
    return all_of["logs"].ratio(f"{kind}+v4", "criu_s", to=kind)


GOALS = (
    Goal(
        "until durable, against plain criu and sync", 0.9, ("mix",), to_plain("mix", "durable_s"),
        floor("mix", "durable_s", "bare-copy", "bare-lz4"),
    ),
    Goal(
        "the same, shared memory", 0.5, ("shared",), to_plain("shared", "durable_s"),
        floor("shared", "durable_s", "bare-copy", "bare-lz4"),
    ),
    Goal(
        "frozen, against plain criu", 1.25, ("mix",), to_plain("mix", "frozen_s"),
        floor("mix", "frozen_s", "bare-copy", "bare-lz4"),
    ),
    Goal("until durable, against criu-image-streamer", 0.85, ("mix",), to_streamer("durable_s")),
    Goal("CPU, against criu-image-streamer", 0.9, ("mix",), to_streamer("cpu_s")),
    Goal("until durable, against plain criu and tar, lz4", 0.3, ("mix",), to_archive("durable_s")),
    Goal("CPU, against plain criu and tar, lz4", 0.5, ("mix",), to_archive("cpu_s")),
    Goal(
        "restore until it answers, against plain criu", 1.2, ("mix",), to_plain("mix", "restore_s"),
        floor("mix", "restore_s", "memory", "memory-direct"),
    ),
    Goal(
        "server's peak, 1000 MiB and 4 GiB", 300, ("mix",), peak("mix", "large"),
        unit=" MiB",
    ),
    Goal(
        "50 processes, until durable, against plain criu", 1.5, ("tree",),
        to_plain("tree", "durable_s"), floor("tree", "durable_s", "bare-copy", "bare-lz4"),
    ),
    Goal(
        "50 processes, frozen, against plain criu", 1.5, ("tree",), to_plain("tree", "frozen_s"),
        floor("tree", "frozen_s", "bare-copy", "bare-lz4"),
    ),
    Goal(
        "50 processes, restore, against plain criu", 1.5, ("tree",), to_plain("tree", "restore_s"),
        floor("tree", "restore_s", "memory", "memory-direct"),
    ),
    Goal(
        "until durable for a GiB, of 4 GiB against 1000 MiB", 1.1, ("mix", "large"),
        growth("durable_s"),
    ),
    Goal("CPU for a GiB, likewise", 1.1, ("mix", "large"), growth("cpu_s")),
    Goal("restore for a GiB, likewise", 1.1, ("mix", "large"), growth("restore_s")),
    Goal(
        "second dump onto a base, 5 % of the pages changed: stored", 0.1,
        ("base lz4", "base zstd:1"), second("stored_mib"),
    ),
    Goal("the same: the whole command", 0.7, ("base lz4", "base zstd:1"), second("command_s")),
    Goal("dump with a -v4 log in the mount, against without", 1.05, ("logs",), full_log),
)  # fmt: skip


def table(all_of: All) -> Iterator[str]:
    """What was measured of each goal by each of ours, and by the floor where there is one."""
    yield f"| 4 shards | goal | {' | '.join(OURS)} | floor |"
    yield "|---" * (len(OURS) + 3) + "|"
    for goal in GOALS:
        cells = [
            shown(goal, None if goal_missing(goal, all_of) else goal.value(all_of, kind))
            for kind in OURS
        ]
        least = goal.floor(all_of) if goal.floor and not goal_missing(goal, all_of) else None
        cells.append("" if least is None else f"{least:.2f}x")
        yield f"| {goal.what} | <= {goal.most:g}{goal.unit} | {' | '.join(cells)} |"


def goal_missing(goal: Goal, all_of: All) -> bool:
    return any(name not in all_of for name in goal.experiments)


def shown(goal: Goal, value: float | None) -> str:
    """A value, in bold when the goal is reached."""
    if value is None:
        return "-"
    text = f"{value:.0f}{goal.unit}" if goal.unit != "x" else f"{value:.2f}x"
    return f"**{text}**" if value <= goal.most else text
