"""prune."""

from __future__ import annotations

import dataclasses
import time

import click

from cedanafs.cli.common import PlaceArgument, echo_json, printable
from cedanafs.cli.look import json_option
from cedanafs.errors import UsageError
from cedanafs.progress import human
from cedanafs.shard.place import ObjectPath, Place


@click.command()
@click.argument("store", type=PlaceArgument)
@click.option("--yes", is_flag=True, help="Remove it; without, it is only shown.")
@click.option(
    "--older-than", type=click.FloatRange(0), default=24.0, metavar="HOURS", show_default=True,
    help="Only what is so old: a dump may be under way.",
)  # fmt: skip
@json_option
def prune(store: Place, yes: bool, older_than: float, as_json: bool) -> None:
    """Remove from the object store STORE what crashed dumps have left there.

    That is uploads that were begun, and objects of commits that never were; no checkpoint has them.
    """
    if not isinstance(store, ObjectPath):
        raise UsageError(f"{store} is no object store: there a crash leaves nothing that is hidden")
    from cedanafs.shard import leftovers

    found = leftovers.leftovers(store, older_than * 3600)
    if as_json:
        echo_json([dataclasses.asdict(each) for each in found])
    else:
        for each in found:
            when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(each.since_s))
            what = "upload begun" if each.bytes is None else f"{human(each.bytes)} of"
            click.echo(printable(f"{store.scheme}://{store.bucket}/{each.key}: {what} {when}"))
    if yes:
        leftovers.remove(store, found)
    done = "removed" if yes else "to remove with --yes"
    click.echo(f"{len(found)} {done}", err=True)
    if store.scheme == "gs":
        click.echo("uploads are not looked for: set the bucket's lifecycle to end them", err=True)
