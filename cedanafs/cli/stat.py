"""stat: what a running mount is doing."""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from pathlib import Path

import click

from cedanafs.cli.common import PathArgument, echo_json, printable
from cedanafs.cli.look import json_option
from cedanafs.cli.shown import echo_table
from cedanafs.errors import UsageError
from cedanafs.fs.figures import CheckpointFigures, MountFigures
from cedanafs.fs.mounts import mount_holding
from cedanafs.progress import human
from cedanafs.watch.reading import read_figures


class _Seconds(click.ParamType[float]):
    name = "seconds"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        try:
            seconds = float(str(value))
        except ValueError:
            self.fail(f"{value!r} is no number of seconds: `stat MOUNTPOINT --watch`", param, ctx)
        if not 0.1 <= seconds <= 86400:
            self.fail(f"{seconds:g}: from 0.1 s to a day", param, ctx)
        return seconds


@click.command()
@click.argument("mountpoint", type=PathArgument)
@click.option(
    "--watch", "every_s", type=_Seconds(), is_flag=False, flag_value=1.0, metavar="[SECONDS]",
    help="Show it again and again, with what was done meanwhile [1].",
)  # fmt: skip
@json_option
def stat(mountpoint: Path, every_s: float | None, as_json: bool) -> None:
    """Show what the mount at MOUNTPOINT, or around it, is doing.

    The store is not asked: it may hang.
    """
    figures, before = read_figures(mountpoint), None
    while True:
        if as_json and every_s is None:
            echo_json(dataclasses.asdict(figures))
        elif as_json:
            click.echo(json.dumps(dataclasses.asdict(figures)))
        else:
            if every_s is not None and sys.stdout.isatty():
                click.clear()
            _show(figures, before)
        sys.stdout.flush()
        if every_s is None:
            return
        time.sleep(every_s)
        before = figures
        try:
            figures = read_figures(mountpoint)
        except UsageError:
            if mount_holding(mountpoint) is not None:
                raise
            click.echo(f"{mountpoint}: unmounted", err=True)
            return


def _show(now: MountFigures, before: MountFigures | None) -> None:
    past_s = now.uptime_s - before.uptime_s if before else now.uptime_s
    write, read = now.write, now.read

    def rate(count: int, old: int | None) -> str:
        return "" if old is None else f"{human((count - old) / max(past_s, 0.001))}/s"

    rows = [
        (
            "mount",
            printable(f"{now.store}, {'read-only, ' if now.read_only else ''}"
                      f"served by process {now.pid} for {_duration(now.uptime_s)}"),
        ),
        (
            "written",
            f"{human(write.taken_bytes)} taken, {human(write.landed_bytes)} landed as "
            f"{human(write.stored_bytes)} in {write.frames} frames"
            + (f", ratio {write.ratio:.2f}" if write.ratio else ""),
            rate(write.taken_bytes, before.write.taken_bytes if before else None),
        ),
        (
            "queue",
            f"{human(write.queued_bytes)} of {human(write.queue_limit_bytes)} "
            f"({write.queue_fill:.0%}); lanes {', '.join(map(human, write.lanes))}",
        ),
        (
            "read",
            f"{human(read.given_bytes)} given, {human(read.decoded_bytes)} decoded "
            f"of {read.frames} frames",
            rate(read.given_bytes, before.read.given_bytes if before else None),
        ),
        (
            "cache",
            f"{read.hits} hits, {read.misses} misses, {read.disk_hits} from --cache-dir; "
            f"{human(read.cache_bytes)} of {human(read.cache_limit_bytes)}",
        ),
        ("memory", f"{human(now.memory_bytes)} resident"),
        ("open", f"{now.open_files} files, {now.writers} of them to be written"),
        (
            "commits",
            f"{now.commits}, {now.failed_commits} failed"
            + ("" if now.last_commit_s is None else f"; the last took {now.last_commit_s:.2f} s"),
        ),
        ("requests", _requests(now.requests, before.requests if before else {})),
    ]  # fmt: skip
    for name, *said in rows:
        click.echo(f"{name:9} " + "  ".join(filter(None, said)))
    if now.checkpoints:
        click.echo()
        head = ("CHECKPOINT", "STATE", "IMAGES", "SIZE", "STORED", "SHARDS")
        echo_table([head, *map(_row, now.checkpoints)], right=(2, 3, 4, 5))
        for each in now.checkpoints:
            if each.failure is not None:
                click.echo(printable(f"{each.path}: {each.failure}"))


def _row(each: CheckpointFigures) -> tuple[str, ...]:
    return (
        each.path,
        state_of(each),
        str(each.images),
        human(each.image_bytes),
        human(each.stored_bytes),
        str(len(each.shards)),
    )


def state_of(each: CheckpointFigures) -> str:
    """In a word or two: what would become of it if the power failed now."""
    if each.failure is not None:
        return "failed"
    if each.durable:
        return "durable"
    return "being written" if each.writers else "not durable"


def _requests(now: dict[str, int], before: dict[str, int]) -> str:
    """The most frequent first; those since the last time."""
    counts = {name: count - before.get(name, 0) for name, count in now.items()}
    most = sorted(counts, key=lambda name: (-counts[name], name))
    return ", ".join(f"{counts[name]} {name}" for name in most if counts[name]) or "none"


def _duration(seconds: float) -> str:
    """`2 d 3 h`, `4 min 5 s`: the two largest units."""
    left = int(seconds)
    parts: list[str] = []
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60), ("s", 1)):
        count, left = divmod(left, length)
        if count or (unit == "s" and not parts):
            parts.append(f"{count} {unit}")
    return " ".join(parts[:2])
