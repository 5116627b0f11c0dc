"""prune, copy, compact."""

from __future__ import annotations

import dataclasses
import fnmatch
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from cedanafs import keep
from cedanafs.cli.common import PlaceArgument, echo_json, printable, running_total
from cedanafs.cli.look import json_option
from cedanafs.cli.shown import echo_table, when
from cedanafs.errors import UsageError
from cedanafs.fs.mounts import mount_holding, mounts
from cedanafs.look import inspect, list_store
from cedanafs.progress import TerminalReport, human
from cedanafs.shard import compacting
from cedanafs.shard.place import ObjectPath, Place, path_below, place_of
from cedanafs.shard.segments import is_shard_name
from cedanafs.shard.store import directory_at
from cedanafs.shard.transfer import copy as copy_shards

if TYPE_CHECKING:
    from cedanafs.shard import leftovers

LEFTOVERS_S: Final = 24 * 3600.0
"""Of object stores what is younger may be of a dump that is under way."""

_SECONDS: Final = {"m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}


class _Age(click.ParamType[float]):
    name = "age"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        match = re.fullmatch(r"([0-9]+)([mhdw])", str(value))
        if match is None:
            self.fail(f"{value!r}: write 90m, 12h, 7d or 4w", param, ctx)
        return float(int(match[1]) * _SECONDS[match[2]])


@click.command()
@click.argument("store", type=PlaceArgument)
@click.option(
    "--keep-last", type=click.IntRange(0), metavar="N", help="Keep the N newest checkpoints."
)
@click.option(
    "--keep-daily", type=click.IntRange(0), metavar="N",
    help="Keep the newest of each of the last N days that have any.",
)  # fmt: skip
@click.option(
    "--older-than", type=_Age(), metavar="AGE", help="Remove only what is older: 90m, 12h, 7d, 4w."
)
@click.option("--name", metavar="GLOB", help="Look only at checkpoints so named: 'web-*'.")
@click.option("--yes", is_flag=True, help="Remove it; without, it is only shown.")
@json_option
def prune(
    store: Place,
    keep_last: int | None,
    keep_daily: int | None,
    older_than: float | None,
    name: str | None,
    yes: bool,
    as_json: bool,
) -> None:
    """Remove from STORE the checkpoints that no rule keeps.

    One that another needs stays. From an object store what crashes have left there goes, too.
    """
    rules = keep.Rules(keep_last, keep_daily, older_than)
    if rules == keep.Rules() and (name or not isinstance(store, ObjectPath)):
        raise UsageError("prune what? --keep-last, --keep-daily or --older-than says it")
    verdicts = _verdicts(store, rules, name) if rules != keep.Rules() else []
    left = _leftovers(store)
    if as_json:
        checkpoints = [
            {"path": each.checkpoint.path, "keep": each.keep, "why": each.why} for each in verdicts
        ]
        echo_json(
            {"checkpoints": checkpoints, "leftovers": [dataclasses.asdict(each) for each in left]}
        )
    else:
        _show(store, verdicts, left)
    going = [each.checkpoint for each in verdicts if not each.keep]
    said = f"{len(going)} checkpoints, {human(sum(each.stored_bytes for each in going))}"
    if isinstance(store, ObjectPath):
        said += f", {len(left)} leftovers"
    if not yes:
        click.echo(f"{said}: --yes removes them", err=True)
        return
    failures = keep.remove_all(verdicts)
    if isinstance(store, ObjectPath):
        from cedanafs.shard import leftovers

        leftovers.remove(store, left)
    for failure in failures[:-1]:
        click.echo(printable(f"cedanafs: {failure}"), err=True)
    if failures:
        raise failures[-1]
    click.echo(f"{said} removed", err=True)


def _leftovers(store: Place) -> list[leftovers.Leftover]:
    """What crashes have left: only object stores hide something of it."""
    if not isinstance(store, ObjectPath):
        return []
    if store.scheme == "gs":
        click.echo("uploads are not looked for: set the bucket's lifecycle to end them", err=True)
    from cedanafs.shard import leftovers  # object stores are an extra

    return leftovers.leftovers(store, LEFTOVERS_S)


def _verdicts(store: Place, rules: keep.Rules, name: str | None) -> list[keep.Verdict]:
    pattern = name or "*"
    return keep.verdicts(
        list(list_store(store)),
        rules,
        lambda each: fnmatch.fnmatchcase(str(path_below(place_of(each.path), store)), pattern),
    )


def _show(
    store: Place, verdicts: Sequence[keep.Verdict], left: Sequence[leftovers.Leftover]
) -> None:
    rows: list[tuple[str, ...]] = [("", "CHECKPOINT", "WHEN", "STORED", "WHY")]
    rows += [
        (
            "keep" if each.keep else "remove",
            str(path_below(place_of(each.checkpoint.path), store)),
            when(each.checkpoint.committed_ns),
            human(each.checkpoint.stored_bytes),
            each.why,
        )
        for each in verdicts
        if each.why != keep.NOT_ASKED_FOR
    ]
    rows += [
        (
            "remove",
            each.key,
            when(round(each.since_s * 1e9)),
            "-" if each.bytes is None else human(each.bytes),
            "of an upload that was begun" if each.upload else "of a commit that never was",
        )
        for each in left
    ]
    if len(rows) > 1:
        echo_table(rows, right=(3,))


@click.command()
@click.argument("checkpoint", type=PlaceArgument)
@click.argument("target", type=PlaceArgument)
def copy(checkpoint: Place, target: Place) -> None:
    """Copy CHECKPOINT to TARGET, or into it where that is a store.

    It appears there when every byte was read back and is right. An interrupted copy goes on where
    it was when it is started again. The new path is the last line of stdout.
    """
    mount = mount_holding(checkpoint)
    source = mount.store_path(checkpoint) if mount else checkpoint
    if isinstance(target, Path):
        target = target.absolute()
        names = directory_at(target).entries()[1] if target.is_dir() else ()
        if target.is_dir() and not any(map(is_shard_name, names)):
            target /= source.absolute().name
        _refuse_if_mounted(target)
    total = 2 * inspect(source).stored_bytes
    with TerminalReport().bar(f"copying {checkpoint}", total) as show:
        count = copy_shards(source, target, running_total(show))
    click.echo(f"{human(count)} copied and checked", err=True)
    if (problem := inspect(target).problem) is not None:
        click.echo(printable(f"{target}: {problem}"), err=True)
    click.echo(str(target))


@click.command()
@click.argument("checkpoint", type=PlaceArgument)
@click.option("--yes", is_flag=True, help="Do it; without, only what it would bring is shown.")
@json_option
def compact(checkpoint: Place, yes: bool, as_json: bool) -> None:
    """Write CHECKPOINT anew, without what was written over or removed in it.

    The old shards stay until the new ones are durable, and were read back and compared.
    """
    room = compacting.survey(checkpoint)
    if yes:
        if isinstance(checkpoint, Path):
            _refuse_if_mounted(checkpoint.resolve())
        total = inspect(checkpoint).raw_bytes
        with TerminalReport().bar(f"compacting {checkpoint}", total) as show:
            room = compacting.compact(checkpoint, running_total(show))
    freed = room.before_bytes - room.after_bytes
    if as_json:
        echo_json(dataclasses.asdict(room) | {"done": yes and freed > 0})
    elif not freed:
        click.echo(f"{checkpoint}: {human(room.before_bytes)}: nothing to compact")
    elif yes:
        click.echo(
            f"{checkpoint}: {human(room.before_bytes)} before, {human(room.after_bytes)} now"
        )
    else:
        click.echo(
            f"{checkpoint}: {human(room.before_bytes)}, of which about {human(freed)} are not "
            "needed any more: --yes gives them back"
        )


def _refuse_if_mounted(target: Path) -> None:
    """What appears in a mounted store by another way is not seen in the mount."""
    if (mount := mount_holding(target)) is not None:
        raise UsageError(f"{target}: is in a mount: name a place in its store, unmounted")
    for mount in mounts():
        if not mount.read_only and str(mount.store) in map(str, (target, *target.parents)):
            raise UsageError(f"{mount.store} is mounted on {mount.mountpoint}: unmount it first")
