"""dump runc, restore runc."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import click
import trio

from cedanafs import checkpoint
from cedanafs.cli.common import PathArgument, json_object, run
from cedanafs.cli.drivers import (
    Destination,
    Source,
    criu_options,
    dump_options,
    reporting,
    restore_options,
)
from cedanafs.criu.runc import DumpedContainer, RunningContainer

F = TypeVar("F", bound=Callable[..., Any])


def _runc_options(command: F) -> F:
    """What dump and restore share; CRIU's options come as the mapping `criu`."""
    for option in (
        click.option("--work-path", type=PathArgument, help="Keep CRIU's and runc's logs here."),
        click.option("--root", type=PathArgument, help="runc's state directory [runc's own]."),
        click.option("--manage-cgroups", metavar="MODE", help="soft, full, strict, ignore …"),
    ):
        command = option(command)
    return criu_options(command)


@click.command("runc")
@click.argument("container")
@dump_options("runc-CONTAINER")
@_runc_options
def dump_runc(
    container: str,
    into: Destination,
    root: Path | None,
    work_path: Path | None,
    criu_opts: str | None,
    progress_json: int | None,
    **flags: Any,
) -> None:
    """Checkpoint the runc container CONTAINER.

    It ends only when the checkpoint is durable. The checkpoint's path is the last line of stdout.
    --stream 0 makes plain CRIU images.
    """
    options = _criu(flags, criu_opts)
    with reporting(progress_json) as report:
        path = run(
            lambda: checkpoint.dump(
                lambda: RunningContainer.find(
                    container,
                    options,
                    leave_running=into.leave_running,
                    root=root,
                    criu_binary=into.criu_binary,
                ),
                directory=into.directory,
                name=into.name,
                settings=into.settings,
                report=report,
                work_dir=work_path,
            )
        )
    click.echo(path)


@click.command("runc")
@click.argument("container")
@restore_options
@click.option("--bundle", "-b", type=PathArgument, default=Path(), help="Of the container [.].")
@click.option("--console-socket", type=PathArgument, help="Takes its terminal, if it has one.")
@_runc_options
def restore_runc(
    container: str,
    source: Source,
    attach: bool,
    bundle: Path,
    console_socket: Path | None,
    root: Path | None,
    work_path: Path | None,
    criu_opts: str | None,
    progress_json: int | None,
    **flags: Any,
) -> None:
    """Bring the container in a checkpoint, or in a plain image directory, back as CONTAINER.

    It runs detached, its standard streams at /dev/null, or with --attach behind a runc that stays.
    Its pid is the last line of stdout.
    """
    options = _criu(flags, criu_opts)
    staying: list[trio.Process] = []
    with reporting(progress_json) as report:
        pid = run(
            lambda: checkpoint.restore(
                lambda: DumpedContainer.find(
                    container,
                    options,
                    bundle=bundle.absolute(),
                    root=root,
                    criu_binary=source.defaults.criu_binary,
                    console_socket=console_socket.absolute() if console_socket else None,
                    on_attached=staying.append if attach else None,
                ),
                path=source.path,
                stream=source.stream,
                defaults=source.defaults,
                report=report,
                work_dir=work_path,
            )
        )
    if attach:
        source.tell_and_stay(pid, child=staying[0].pid)
    source.tell(pid)


def _criu(flags: Mapping[str, Any], criu_opts: str | None) -> dict[str, object]:
    """The flags that were given, under CRIU's own names, and --criu-opts over them."""
    wanted = {name: value for name, value in flags.items() if value}
    if "external" in wanted:
        wanted["external"] = list(wanted["external"])
    return {**wanted, **json_object(criu_opts)}
