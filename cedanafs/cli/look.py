"""list, inspect, verify, extract, repair."""

from __future__ import annotations

import dataclasses
import os
import time
from pathlib import Path

import click

from cedanafs.cli.common import PathArgument, PlaceArgument, echo_json, printable, running_total
from cedanafs.errors import CheckpointIncomplete, CorruptShard, UsageError
from cedanafs.look import CheckpointSummary, list_store
from cedanafs.look import inspect as summary_of
from cedanafs.progress import TerminalReport, human
from cedanafs.shard import audit
from cedanafs.shard import repair as repairing
from cedanafs.shard.chain import chain, parent_link
from cedanafs.shard.place import Place, path_below, place_of

json_option = click.option("--json", "as_json", is_flag=True, help="For programs.")


@click.command("list")
@click.argument("store", type=PlaceArgument)
@json_option
def list_(store: Place, as_json: bool) -> None:
    """Show the checkpoints in STORE."""
    found = list(list_store(store))
    if as_json:
        echo_json([_as_json(summary, brief=True) for summary in found])
        return
    rows: list[tuple[str, ...]] = [
        (
            "CHECKPOINT",
            "STATE",
            "WHEN",
            "IMAGES",
            "RAW",
            "STORED",
            "RATIO",
            "SHARDS",
            "CODEC",
            "PARENT",
        )
    ]
    for each in found:
        name = str(path_below(place_of(each.path), store))
        rows.append(
            (
                "(the store itself)" if name == "." else name,
                each.state,
                _when(each.committed_ns),
                str(len(each.images)),
                human(each.raw_bytes),
                human(each.stored_bytes),
                f"{each.ratio:.2f}",
                str(each.shards),
                each.codec,
                each.parent or "-",
            )
        )
    _echo_table(rows)
    for each in found:
        if each.problem:
            click.echo(printable(f"{each.state}: {each.problem}"), err=True)
    if not found:
        click.echo(f"no checkpoints in {store}", err=True)


@click.command()
@click.argument("checkpoint", type=PlaceArgument)
@json_option
def inspect(checkpoint: Place, as_json: bool) -> None:
    """Show what is in CHECKPOINT: its images and its shards."""
    found = summary_of(checkpoint)
    if as_json:
        echo_json(_as_json(found, brief=False))
        return
    problem = f" ({found.problem})" if found.problem else ""
    click.echo(printable(f"{found.path}: {found.state}{problem}"))
    sealed = ", sealed" if found.sealed else ""
    click.echo(f"  {found.checkpoint}, commit {found.commit}{sealed}, by {found.tool}")
    if found.parent is not None:
        click.echo(printable(f"  builds on {found.parent}"))
    click.echo(f"  created {_when(found.created_ns)}, committed {_when(found.committed_ns)}")
    click.echo(
        f"  {human(found.raw_bytes)} of images in {human(found.stored_bytes)} "
        f"({found.ratio:.2f} to 1, {found.codec}, {found.shards} shards)"
    )
    if found.base is not None:
        click.echo(
            printable(f"  {human(found.shared_bytes)} of them are those of its base {found.base}")
        )
    if found.torn_bytes:
        click.echo(f"  {human(found.torn_bytes)} behind the last commit are not part of it")
    click.echo()
    rows: list[tuple[str, ...]] = [("SHARD", "STORED", "FRAMES", "HOLDS")]
    rows += [
        (s.name, human(s.stored_bytes), str(s.frames), human(s.image_bytes))
        for s in found.shard_files
    ]
    _echo_table(rows)
    click.echo()
    rows = [("IMAGE", "BYTES", "MODE")]
    rows += [
        (i.name + (f" -> {i.symlink_to}" if i.symlink_to else ""), str(i.bytes), i.mode)
        for i in found.images
    ]
    _echo_table(rows)


@click.command()
@click.argument("checkpoint", type=PlaceArgument)
@json_option
def verify(checkpoint: Place, as_json: bool) -> None:
    """Read every byte of CHECKPOINT and check it; exit code 3 when something is wrong."""
    summary = summary_of(checkpoint)
    total = summary.stored_bytes
    with TerminalReport().bar(f"verifying {checkpoint}", total) as show:
        found = audit.verify(checkpoint, running_total(show))
    if as_json:
        echo_json(dataclasses.asdict(found))
    if found.damages:
        for damage in found.damages[:-1]:
            click.echo(printable(f"cedanafs: {damage}"), err=True)
        raise CorruptShard(found.damages[-1])
    if summary.commit == 0:
        raise CheckpointIncomplete(f"{checkpoint}: {summary.problem}")
    parents = chain(checkpoint.absolute())[1:]
    if not as_json:
        click.echo(
            f"{checkpoint}: every byte is right "
            f"({found.frames} frames, {human(found.stored_bytes)})"
        )
        if found.torn_bytes:
            click.echo(
                f"  {human(found.torn_bytes)} behind commit {summary.commit} are not part of it: "
                "of one that is being written, or was cut short"
            )
        for parent in parents:
            click.echo(f"  it builds on {parent}, which has to be right, too")


@click.command()
@click.argument("checkpoint", type=PlaceArgument)
@click.argument("directory", type=PathArgument)
def extract(checkpoint: Place, directory: Path) -> None:
    """Write the images in CHECKPOINT into DIRECTORY, plain, as CRIU itself would have."""
    total = summary_of(checkpoint).raw_bytes
    with TerminalReport().bar(f"extracting {checkpoint}", total) as show:
        count = audit.extract(checkpoint, directory, running_total(show))
    click.echo(f"{count} images in {directory}", err=True)
    if (target := parent_link(checkpoint)) is not None and not (directory / target).is_dir():
        beside = Path(os.path.normpath(directory / target))
        click.echo(
            printable(
                f"{count} images in {directory} build on others: extract {target} to {beside}"
            ),
            err=True,
        )


@click.command()
@click.argument("checkpoint", type=PlaceArgument)
@click.option("--yes", is_flag=True, help="Change it; without, only what could be done is shown.")
@click.option(
    "--into",
    "directory",
    type=PathArgument,
    metavar="DIRECTORY",
    help="Change nothing; write the images that are whole into DIRECTORY, plain.",
)
@click.option(
    "--accept", is_flag=True,
    help="Take images that were being written when the server died for whole.",
)  # fmt: skip
def repair(checkpoint: Place, yes: bool, directory: Path | None, accept: bool) -> None:
    """Bring back what can be had of CHECKPOINT after a crash or a fault of its disk.

    Exit code 3 when something is lost, or nothing was done yet.
    """
    if directory is not None:
        if yes or accept:
            raise UsageError("--into changes nothing: it goes with neither --yes nor --accept")
        count, lost = repairing.salvage(checkpoint, directory)
        click.echo(f"{count} images in {directory}", err=True)
        if lost:
            raise CorruptShard(f"{checkpoint}: lost: {', '.join(lost)}")
        return
    found = repairing.diagnose(checkpoint)
    for damage in found.damages:
        click.echo(printable(f"cedanafs: {damage}"), err=True)
    if found.way is None and (found.damages or found.torn_bytes):
        raise CorruptShard(
            f"{checkpoint}: no commit of it is whole; "
            "repair --into DIRECTORY writes the images that are"
        )
    if found.way is not None:
        _bring_back(checkpoint, found.way, yes=yes)
    if found.unfinished:
        names = printable(", ".join(found.unfinished))
        if not accept:
            raise CheckpointIncomplete(
                f"{checkpoint}: {names}: still being written when the server died, so perhaps only "
                "a part is there. Write anew, or repair --accept if you know that all is there"
            )
        repairing.accept(checkpoint)
        click.echo(f"{checkpoint}: taken for whole: {names}")
    elif found.way is None:
        click.echo(f"{checkpoint}: nothing to repair")


def _bring_back(checkpoint: Place, way: repairing.Way, *, yes: bool) -> None:
    opened = way.opened
    click.echo(
        f"{checkpoint}: commit {opened.commit} of {_when(opened.committed_ns)} is whole, "
        f"with {len(opened.contents.images)} images"
        + ("; its footer is missing or damaged, and is written anew" if way.unfooted else "")
    )
    lost = "nothing that was committed is lost"
    if way.lost:
        lost = printable(f"lost: {', '.join(way.lost)}")
    click.echo(f"  what is behind it is cut off; {lost}")
    if not yes:
        raise CheckpointIncomplete(f"{checkpoint}: nothing was changed; repair --yes does it")
    found = repairing.bring_back(checkpoint, way)
    if found.damages:
        raise CorruptShard(f"{found.damages[0]}; repair --into DIRECTORY writes what is whole")
    if way.lost:
        raise CorruptShard(f"{checkpoint}: repaired; {lost}")
    click.echo(f"{checkpoint}: repaired")


def _as_json(summary: CheckpointSummary, *, brief: bool) -> dict[str, object]:
    value = dataclasses.asdict(summary) | {"ratio": round(summary.ratio, 3)}
    if brief:
        value["images"] = len(summary.images)
        del value["shard_files"]
    return value


def _when(at_ns: int) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(at_ns / 1e9)) if at_ns else "-"


def _echo_table(table: list[tuple[str, ...]]) -> None:
    rows = [tuple(map(printable, row)) for row in table]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        click.echo("  ".join(cells).rstrip())
