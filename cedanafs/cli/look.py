"""list, inspect, verify, extract."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path

import click

from cedanafs.cli.common import PathArgument, echo_json
from cedanafs.errors import CorruptShard
from cedanafs.look import CheckpointSummary, list_store
from cedanafs.look import inspect as summary_of
from cedanafs.progress import TerminalReport, human
from cedanafs.shard import audit

json_option = click.option("--json", "as_json", is_flag=True, help="For programs.")


@click.command("list")
@click.argument("store", type=PathArgument)
@json_option
def list_(store: Path, as_json: bool) -> None:
    """Show the checkpoints in STORE."""
    found = list(list_store(store))
    if as_json:
        echo_json([_as_json(summary, brief=True) for summary in found])
        return
    rows: list[tuple[str, ...]] = [
        ("CHECKPOINT", "STATE", "WHEN", "IMAGES", "RAW", "STORED", "RATIO", "SHARDS", "CODEC")
    ]
    for each in found:
        name = str(Path(each.path).relative_to(store))
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
            )
        )
    _echo_table(rows)
    for each in found:
        if each.problem:
            click.echo(f"{each.state}: {each.problem}", err=True)
    if not found:
        click.echo(f"no checkpoints in {store}", err=True)


@click.command()
@click.argument("checkpoint", type=PathArgument)
@json_option
def inspect(checkpoint: Path, as_json: bool) -> None:
    """Show what is in CHECKPOINT: its images and its shards."""
    found = summary_of(checkpoint)
    if as_json:
        echo_json(_as_json(found, brief=False))
        return
    click.echo(f"{found.path}: {found.state}" + (f" ({found.problem})" if found.problem else ""))
    sealed = ", sealed" if found.sealed else ""
    click.echo(f"  {found.checkpoint}, commit {found.commit}{sealed}, by {found.tool}")
    click.echo(f"  created {_when(found.created_ns)}, committed {_when(found.committed_ns)}")
    click.echo(
        f"  {human(found.raw_bytes)} of images in {human(found.stored_bytes)} "
        f"({found.ratio:.2f} to 1, {found.codec}, {found.shards} shards)"
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
@click.argument("checkpoint", type=PathArgument)
@json_option
def verify(checkpoint: Path, as_json: bool) -> None:
    """Read every byte of CHECKPOINT and check it; exit code 3 when something is wrong."""
    total = summary_of(checkpoint).stored_bytes
    with TerminalReport().bar(f"verifying {checkpoint}", total) as show:
        found = audit.verify(checkpoint, _running_total(show))
    if as_json:
        echo_json(dataclasses.asdict(found))
    if found.damages:
        for damage in found.damages[:-1]:
            click.echo(f"cedanafs: {damage}", err=True)
        raise CorruptShard(found.damages[-1])
    if not as_json:
        torn = f", {human(found.torn_bytes)} behind the last commit" if found.torn_bytes else ""
        click.echo(
            f"{checkpoint}: every byte is right "
            f"({found.frames} frames, {human(found.stored_bytes)}{torn})"
        )


@click.command()
@click.argument("checkpoint", type=PathArgument)
@click.argument("directory", type=PathArgument)
def extract(checkpoint: Path, directory: Path) -> None:
    """Write the images in CHECKPOINT into DIRECTORY, plain, as CRIU itself would have."""
    total = summary_of(checkpoint).raw_bytes
    with TerminalReport().bar(f"extracting {checkpoint}", total) as show:
        count = audit.extract(checkpoint, directory, _running_total(show))
    click.echo(f"{count} images in {directory}", err=True)


def _running_total(show: Callable[[int], None]) -> audit.Progress:
    done = 0

    def add(count: int) -> None:
        nonlocal done
        done += count
        show(done)

    return add


def _as_json(summary: CheckpointSummary, *, brief: bool) -> dict[str, object]:
    value = dataclasses.asdict(summary) | {"ratio": round(summary.ratio, 3)}
    if brief:
        value["images"] = len(summary.images)
        del value["shard_files"]
    return value


def _when(at_ns: int) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(at_ns / 1e9)) if at_ns else "-"


def _echo_table(rows: list[tuple[str, ...]]) -> None:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        click.echo("  ".join(cells).rstrip())
