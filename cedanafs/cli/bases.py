"""rm, flatten."""

from __future__ import annotations

import click

from cedanafs import keep
from cedanafs.cli.common import PlaceArgument
from cedanafs.fs.mounts import mount_holding
from cedanafs.progress import human
from cedanafs.shard import flatten as flattening
from cedanafs.shard.place import Place


@click.command()
@click.argument("checkpoint", type=PlaceArgument)
@click.option("--force", is_flag=True, help="Even if others need it.")
def rm(checkpoint: Place, force: bool) -> None:
    """Remove CHECKPOINT, unless others have it as their base."""
    keep.remove(checkpoint, force=force)


@click.command()
@click.argument("checkpoint", type=PlaceArgument)
def flatten(checkpoint: Place) -> None:
    """Make CHECKPOINT independent of its base: copy into it what it has of that."""
    mount = mount_holding(checkpoint)
    path = mount.store_path(checkpoint) if mount else checkpoint
    count = flattening.flatten(path)
    click.echo(f"{checkpoint}: {human(count)} copied; it needs no base")
