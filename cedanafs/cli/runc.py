"""dump runc, restore runc."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, TypeVar

import click

from cedanafs import checkpoint
from cedanafs.cli.common import (
    PathArgument,
    dump_settings,
    expected_shards_option,
    given,
    json_object,
    make_default_directory,
    run,
    store_timeout_option,
    stream_options,
    write_pid,
)
from cedanafs.criu.runc import DumpedContainer, RunningContainer
from cedanafs.progress import TerminalReport

F = TypeVar("F", bound=Callable[..., Any])

_FLAGS: Final = {
    "shell-job": "It has a shell's terminal.",
    "tcp-established": "Keep TCP connections.",
    "tcp-close": "Close TCP connections.",
    "file-locks": "Dump and restore file locks.",
    "link-remap": "Restore unlinked files by hard links.",
    "ext-unix-sk": "Unix sockets connected to the outside.",
}


def _runc_options(command: F) -> F:
    """What dump and restore share; CRIU's options come as the mapping `criu`."""
    for option in (
        click.option("--criu-binary", help="The criu that runc is to run [beside us, then PATH]."),
        click.option("--criu-opts", metavar="JSON", help="More of CRIU's options, over the flags."),
        click.option("--work-path", type=PathArgument, help="Keep CRIU's and runc's logs here."),
        click.option("--root", type=PathArgument, help="runc's state directory [runc's own]."),
        click.option("--manage-cgroups", metavar="MODE", help="soft, full, strict, ignore …"),
        click.option("--external", multiple=True, metavar="RES", help="A resource from outside."),
        *(click.option(f"--{name}", is_flag=True, help=text) for name, text in _FLAGS.items()),
    ):
        command = option(command)
    return command


@click.command("runc")
@click.argument("container")
@click.option("--dir", "directory", type=PathArgument, help="A store, or a directory in a mount.")
@click.option("--name", help="Of the checkpoint [dump-runc-CONTAINER-TIME].")
@stream_options
@click.option("--leave-running/--kill", default=None, help="Let it run on after the dump.")
@click.option("--skip-in-flight", is_flag=True, help="Leave out TCP connections being opened.")
@_runc_options
def dump_runc(
    container: str,
    directory: Path | None,
    name: str | None,
    stream: int | None,
    compression: str | None,
    memory_limit: int | None,
    store_timeout: float | None,
    leave_running: bool | None,
    root: Path | None,
    work_path: Path | None,
    criu_opts: str | None,
    criu_binary: str | None,
    **flags: Any,
) -> None:
    """Checkpoint the runc container CONTAINER.

    It ends only when the checkpoint is durable. The checkpoint's path is the last line of stdout.
    --stream 0 makes plain CRIU images.
    """
    defaults = given(
        dir=directory,
        stream=stream,
        compression=compression,
        memory_limit=memory_limit,
        store_timeout=store_timeout,
        leave_running=leave_running,
        criu_binary=criu_binary,
    )
    if directory is None:
        make_default_directory(defaults.dir)
    settings = dump_settings(defaults, None, page_hashes=False)
    options = _criu(flags, criu_opts)
    path = run(
        lambda: checkpoint.dump(
            lambda: RunningContainer.find(
                container,
                options,
                leave_running=defaults.leave_running,
                root=root,
                criu_binary=defaults.criu_binary,
            ),
            directory=defaults.dir,
            name=name,
            settings=settings,
            report=TerminalReport(),
            work_dir=work_path,
        )
    )
    click.echo(path)


@click.command("runc")
@click.argument("container")
@click.option("--path", type=PathArgument, required=True, help="Of the checkpoint.")
@click.option("--bundle", "-b", type=PathArgument, default=Path(), help="Of the container [.].")
@expected_shards_option
@click.option("--console-socket", type=PathArgument, help="Takes its terminal, if it has one.")
@click.option("--pid-file", type=PathArgument, help="Write the restored pid here.")
@store_timeout_option
@_runc_options
def restore_runc(
    container: str,
    path: Path,
    bundle: Path,
    stream: int | None,
    console_socket: Path | None,
    pid_file: Path | None,
    store_timeout: float | None,
    root: Path | None,
    work_path: Path | None,
    criu_opts: str | None,
    criu_binary: str | None,
    **flags: Any,
) -> None:
    """Bring the container in a checkpoint, or in a plain image directory, back as CONTAINER.

    It runs detached, its standard streams at /dev/null. Its pid is the last line of stdout.
    """
    defaults = given(criu_binary=criu_binary, store_timeout=store_timeout)
    options = _criu(flags, criu_opts)
    pid = run(
        lambda: checkpoint.restore(
            lambda: DumpedContainer.find(
                container,
                options,
                bundle=bundle.absolute(),
                root=root,
                criu_binary=defaults.criu_binary,
                console_socket=console_socket.absolute() if console_socket else None,
            ),
            path=path,
            stream=stream or None,
            defaults=defaults,
            report=TerminalReport(),
            work_dir=work_path,
        )
    )
    if pid_file is not None:
        write_pid(pid_file, pid)
    click.echo(pid)


def _criu(flags: Mapping[str, Any], criu_opts: str | None) -> dict[str, object]:
    """The flags that were given, under CRIU's own names, and --criu-opts over them."""
    wanted = {name: value for name, value in flags.items() if value}
    if "external" in wanted:
        wanted["external"] = list(wanted["external"])
    return {**wanted, **json_object(criu_opts)}
