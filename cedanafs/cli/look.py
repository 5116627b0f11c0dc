"""list, inspect, verify, extract, repair."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Final

import click

from cedanafs.cli.common import (
    F,
    PathArgument,
    PlaceArgument,
    echo_json,
    patient,
    printable,
    running_total,
    write_private,
)
from cedanafs.cli.page import page
from cedanafs.cli.shown import (
    SECTIONS,
    echo_processes,
    echo_section,
    echo_shards,
    echo_summary,
    echo_table,
    rows_of,
    when,
)
from cedanafs.criu import messages
from cedanafs.errors import (
    BaseUnusable,
    CheckpointError,
    CheckpointIncomplete,
    CheckpointMissing,
    CorruptShard,
    MachineError,
    UsageError,
)
from cedanafs.look import CheckpointSummary, list_store
from cedanafs.look import inspect as summary_at
from cedanafs.look.images import Images
from cedanafs.look.processes import as_plain, dump_in
from cedanafs.look.summary import summary_of
from cedanafs.progress import TerminalReport, human
from cedanafs.shard import audit
from cedanafs.shard import repair as repairing
from cedanafs.shard.chain import chain, parent_link
from cedanafs.shard.place import Place

json_option = click.option("--json", "as_json", is_flag=True, help="For programs.")


@click.command("list")
@click.argument("store", type=PlaceArgument)
@json_option
@patient
def list_(store: Place, as_json: bool) -> None:
    """Show the checkpoints in STORE."""
    found = list(list_store(store))
    if as_json:
        echo_json([_as_json(summary, brief=True) for summary in found])
        return
    echo_table(rows_of(found, store), right=(4, 5, 6, 7, 8))
    for each in found:
        if each.problem:
            click.echo(printable(f"{each.state}: {each.problem}"), err=True)
    if not found:
        click.echo(f"no checkpoints in {store}", err=True)
    try:
        messages.image_formats()
    except MachineError as exc:
        click.echo(f"what the checkpoints are of cannot be told: {exc}", err=True)


def _section_options(command: F) -> F:
    for section in reversed(SECTIONS):
        command = click.option(
            f"--{section}", "sections", flag_value=section, multiple=True,
            help=_SECTION_HELP[section],
        )(command)  # fmt: skip
    return command


_SECTION_HELP: Final = {
    "memory": "Show the mappings that hold pages.",
    "files": "Show open files.",
    "sockets": "Show sockets.",
    "mounts": "Show the mounts of mount namespaces.",
    "images": "Show CRIU's images.",
}


@click.command()
@click.argument("checkpoint", type=PlaceArgument)
@_section_options
@click.option("--all", "everything", is_flag=True, help="Show all of that.")
@click.option(
    "--html", "html_file", type=PathArgument, metavar="FILE",
    help="Write it as a page for a browser, with pictures.",
)  # fmt: skip
@json_option
@patient
def inspect(
    checkpoint: Place,
    sections: tuple[str, ...],
    everything: bool,
    html_file: Path | None,
    as_json: bool,
) -> None:
    """Show what is in CHECKPOINT: processes, shards, and what the options name."""
    with Images.open(checkpoint) as images:
        found = summary_of(images)
        dump = dump_in(images)
    if html_file is not None:
        write_private(html_file, page(found, dump))
        click.echo(f"{html_file}: written", err=True)
        if not as_json:
            return
    if as_json:
        echo_json(_as_json(found, brief=False) | {"dump": as_plain(dump)})
        return
    echo_summary(found, dump)
    if dump.processes:
        click.echo()
        echo_processes(dump)
    click.echo()
    echo_shards(found)
    for section in SECTIONS if everything else sections:
        click.echo()
        echo_section(section, found, dump)
    for problem in dump.problems:
        click.echo(printable(f"not shown: {problem}"))


@click.command()
@click.argument("checkpoint", type=PlaceArgument)
@click.option(
    "--repair", "and_repair", is_flag=True, help="Go on to repair what is wrong, see there."
)
@click.option("--yes", is_flag=True, help="With --repair: change it, not only show what could be.")
@json_option
@patient
def verify(checkpoint: Place, and_repair: bool, yes: bool, as_json: bool) -> None:
    """Read every byte of CHECKPOINT and check it; exit code 3 when something is wrong."""
    if yes and not and_repair:
        raise UsageError("verify changes nothing: --yes goes with --repair")
    if not and_repair:
        _verify(checkpoint, as_json)
        return
    if as_json:
        raise UsageError("--json goes with verify alone, not with --repair")
    try:
        if _verify(checkpoint, as_json):
            return
        found = repairing.diagnose(checkpoint)
    except (CheckpointMissing, BaseUnusable):
        raise
    except CheckpointError as exc:
        found = repairing.diagnose(checkpoint)
        if not (found.damages or found.torn_bytes or found.unfinished):
            raise  # it is its base's, or its parent's
        click.echo(printable(f"cedanafs: {exc}"), err=True)
    _bring_back_or_accept(checkpoint, found, yes=yes)


def _verify(checkpoint: Place, as_json: bool) -> bool:
    """Whether there is nothing to repair. Raises: CheckpointError for the last of its damages."""
    summary = summary_at(checkpoint)
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
    if not as_json and summary.foreign:
        click.echo(
            f"{checkpoint}: nothing is missing ({human(found.stored_bytes)}); that no byte has "
            f"changed only its compression can tell, as {summary.tool} writes no checksums"
        )
    elif not as_json:
        click.echo(
            f"{checkpoint}: every byte is right "
            f"({found.frames} frames, {human(found.stored_bytes)})"
        )
    if not as_json:
        if found.torn_bytes:
            click.echo(
                f"  {human(found.torn_bytes)} behind commit {summary.commit} are not part of it: "
                "of one that is being written, or was cut short"
            )
        for parent in parents:
            click.echo(f"  it builds on {parent}, which has to be right, too")
    return found.torn_bytes == 0 and summary.problem is None


@click.command()
@click.argument("checkpoint", type=PlaceArgument)
@click.argument("directory", type=PathArgument)
@patient
def extract(checkpoint: Place, directory: Path) -> None:
    """Write the images in CHECKPOINT into DIRECTORY, plain, as CRIU itself would have."""
    total = summary_at(checkpoint).raw_bytes
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
    _bring_back_or_accept(checkpoint, found, yes=yes, accept=accept)


def _bring_back_or_accept(
    checkpoint: Place, found: repairing.Diagnosis, *, yes: bool, accept: bool = False
) -> None:
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
        f"{checkpoint}: commit {opened.commit} of {when(opened.committed_ns)} is whole, "
        f"with {len(opened.contents.images)} images"
        + ("; its footer is missing or damaged, and is written anew" if way.unfooted else "")
    )
    lost = "nothing that was committed is lost"
    if way.lost:
        lost = printable(f"lost: {', '.join(way.lost)}")
    click.echo(f"  what is behind it is cut off; {lost}")
    if way.unknown:
        names = printable(", ".join(way.unknown))
        click.echo(f"  whether it is the base of these cannot be told: {names}", err=True)
    if not yes and not way.needed_by:
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
