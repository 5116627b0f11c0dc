"""rm, flatten."""

from __future__ import annotations

from pathlib import Path

import click

from cedanafs import errors
from cedanafs.cli.common import PlaceArgument
from cedanafs.fs.mounts import mount_holding, mount_of_store
from cedanafs.images import remove_mounted
from cedanafs.progress import human
from cedanafs.shard import bases
from cedanafs.shard import flatten as flattening
from cedanafs.shard.place import Place


@click.command()
@click.argument("checkpoint", type=PlaceArgument)
@click.option("--force", is_flag=True, help="Even if others need it.")
def rm(checkpoint: Place, force: bool) -> None:
    """Remove CHECKPOINT, unless others have it as their base."""
    mount = mount_holding(checkpoint)
    path = mount.store_path(checkpoint) if mount else checkpoint
    in_mount = Path(str(checkpoint))
    if mount is None and (mount := mount_of_store(path.absolute().parent)) is not None:
        in_mount = mount.mountpoint / path.name
    if mount is None:
        bases.remove(path, even_if_used=force)
    elif force:
        raise errors.UsageError(f"--force: {mount.mountpoint} is mounted: unmount it first")
    else:
        bases.refuse_if_used(path, "remove it")
        remove_mounted(in_mount)


@click.command()
@click.argument("checkpoint", type=PlaceArgument)
def flatten(checkpoint: Place) -> None:
    """Make CHECKPOINT independent of its base: copy into it what it has of that."""
    mount = mount_holding(checkpoint)
    path = mount.store_path(checkpoint) if mount else checkpoint
    count = flattening.flatten(path)
    click.echo(f"{checkpoint}: {human(count)} copied; it needs no base")
