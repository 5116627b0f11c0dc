"""rm, flatten."""

from __future__ import annotations

import os
from pathlib import Path

import click

from cedanafs import errors
from cedanafs.cli.common import PathArgument
from cedanafs.fs.mounts import mount_holding, mount_of_store
from cedanafs.images import remove_mounted
from cedanafs.progress import human
from cedanafs.shard import bases
from cedanafs.shard import flatten as flattening


@click.command()
@click.argument("checkpoint", type=PathArgument)
@click.option("--force", is_flag=True, help="Even if others need it.")
def rm(checkpoint: Path, force: bool) -> None:
    """Remove CHECKPOINT, unless others have it as their base."""
    mount = mount_holding(checkpoint)
    path = mount.store_path(checkpoint.absolute()) if mount else checkpoint
    if mount is None and (mount := mount_of_store(path.absolute().parent)) is not None:
        checkpoint = mount.mountpoint / path.name
    if mount is None:
        bases.remove(path, even_if_used=force)
    elif force:
        raise errors.UsageError(f"--force: {mount.mountpoint} is mounted: unmount it first")
    else:
        bases.refuse_if_used(path, "remove it")
        remove_mounted(checkpoint)


@click.command()
@click.argument("checkpoint", type=PathArgument)
def flatten(checkpoint: Path) -> None:
    """Make CHECKPOINT independent of its base: copy into it what it has of that."""
    mount = mount_holding(checkpoint)
    path = mount.store_path(checkpoint.absolute()) if mount else checkpoint
    count = flattening.flatten(path)
    click.echo(f"{os.fspath(checkpoint)}: {human(count)} copied; it needs no base")
