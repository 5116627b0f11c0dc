"""pack: plain images into a checkpoint; the way back is `extract`."""

from __future__ import annotations

from pathlib import Path

import click

from cedanafs.cli.common import PathArgument, PlaceArgument, given, running_total, shard_options
from cedanafs.errors import UsageError
from cedanafs.fs.mounts import mounts
from cedanafs.progress import TerminalReport
from cedanafs.shard import packing
from cedanafs.shard.place import Place


@click.command()
@click.argument("directory", type=PathArgument)
@click.argument("checkpoint", type=PlaceArgument)
@shard_options
def pack(
    directory: Path,
    checkpoint: Place,
    stream: int | None,
    compression: str | None,
    memory_limit: int | None,
) -> None:
    """Make the plain images in DIRECTORY, as CRIU itself writes them, a new CHECKPOINT.

    Every byte is read back before this returns; DIRECTORY stays as it is.
    """
    defaults = given(stream=stream, compression=compression, memory_limit=memory_limit)
    settings = defaults.mount_settings(checkpoint)
    place = checkpoint.resolve()
    for mount in mounts():
        for side in (mount.mountpoint, mount.store):
            if side in (place, *place.parents) and not (mount.read_only and side == mount.store):
                raise UsageError(
                    f"{checkpoint}: that store is mounted at {mount.mountpoint}: "
                    f"copy the images into a directory there, with cp -a"
                )
    with TerminalReport().bar(f"packing {directory}", _bytes_in(directory)) as show:
        count = packing.pack(
            directory,
            settings.store,
            shards=settings.shards,
            codec=settings.codec,
            budget_bytes=settings.write_budget,
            upload_bytes=settings.upload_bytes,
            progress=running_total(show),
        )
    click.echo(f"{count} images in {checkpoint}", err=True)


def _bytes_in(directory: Path) -> int | None:
    try:
        return sum(entry.lstat().st_size for entry in directory.iterdir())
    except OSError:
        return None  # pack says what is wrong
