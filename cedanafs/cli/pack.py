"""pack, convert, export: new sets of shards out of what is there; `extract` makes plain images."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import click

from cedanafs.cli.common import PathArgument, PlaceArgument, given, running_total, shard_options
from cedanafs.config import DEFAULT_STREAM
from cedanafs.errors import UsageError
from cedanafs.fs.mounts import mounts
from cedanafs.progress import TerminalReport
from cedanafs.shard import copying, exporting, packing
from cedanafs.shard.codec import codec_of
from cedanafs.shard.exporting import Layout
from cedanafs.shard.format import MAX_SHARDS
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
    _refuse_mounted(checkpoint)
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


@click.command()
@click.argument("source", type=PlaceArgument)
@click.argument("checkpoint", type=PlaceArgument)
@shard_options
def convert(
    source: Place,
    checkpoint: Place,
    stream: int | None,
    compression: str | None,
    memory_limit: int | None,
) -> None:
    """Write what SOURCE holds as a new CHECKPOINT, with other shards or another compression.

    SOURCE may be another streamer's set, or have a base: the new one needs none. Every byte is read
    back and compared before this returns; SOURCE stays as it is.
    """
    defaults = given(stream=stream, compression=compression, memory_limit=memory_limit)
    settings = defaults.mount_settings(checkpoint)
    _refuse_mounted(checkpoint)
    with TerminalReport().bar(f"converting {source}", None) as show:
        count = copying.convert(
            source,
            settings.store,
            shards=settings.shards,
            codec=settings.codec,
            budget_bytes=settings.write_budget,
            upload_bytes=settings.upload_bytes,
            progress=running_total(show),
            expect=show.expect,
        )
    click.echo(f"{count} images in {checkpoint}", err=True)


@click.command()
@click.argument("checkpoint", type=PlaceArgument)
@click.argument("directory", type=PlaceArgument)
@click.option(
    "--layout",
    type=click.Choice([layout.value for layout in Layout]),
    required=True,
    help="criu-image-streamer's, or that of Cedana's fork of it.",
)
@click.option(
    "-n",
    "--stream",
    "--streams",
    type=click.IntRange(1, MAX_SHARDS),
    metavar="N",
    help="Number of shards img-0 … img-(N-1) [4]; cedana: 2 at least.",
)
@click.option(
    "-c", "--compression", metavar="CODEC[:LEVEL]",
    help="streamer: none, lz4, zstd, gzip; cedana: none, lz4, gzip, zlib [lz4].",
)  # fmt: skip
def export(
    checkpoint: Place, directory: Place, layout: str, stream: int | None, compression: str | None
) -> None:
    """Write CHECKPOINT into DIRECTORY as another streamer writes its images.

    Every byte is read back and compared before this returns; CHECKPOINT stays as it is.
    """
    defaults = given(stream=stream)
    settings = dataclasses.replace(
        defaults, stream=defaults.stream or DEFAULT_STREAM
    ).mount_settings(directory)
    _refuse_mounted(directory)
    with TerminalReport().bar(f"exporting {checkpoint}", None) as show:
        count = exporting.export(
            checkpoint,
            settings.store,
            layout=Layout(layout),
            shards=settings.shards,
            codec=codec_of(compression or "lz4"),
            upload_bytes=settings.upload_bytes,
            progress=running_total(show),
            expect=show.expect,
        )
    click.echo(f"{count} images in {directory}", err=True)


def _refuse_mounted(directory: Place) -> None:
    """Raises: UsageError when a mount writes there."""
    place = directory.resolve()
    for mount in mounts():
        for side in (mount.mountpoint, mount.store):
            if side in (place, *place.parents) and not (mount.read_only and side == mount.store):
                raise UsageError(
                    f"{directory}: that store is mounted at {mount.mountpoint}: "
                    f"copy the images into a directory there, with cp -a"
                )


def _bytes_in(directory: Path) -> int | None:
    try:
        return sum(entry.lstat().st_size for entry in directory.iterdir())
    except OSError:
        return None  # pack says what is wrong
