"""dump process, restore process."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import click
import trio

from cedanafs import checkpoint
from cedanafs.cli.common import (
    DEFAULT_LOG,
    SIZE,
    PathArgument,
    base_options,
    dump_settings,
    expected_shards_option,
    given,
    json_object,
    make_default_directory,
    run,
    run_in_background,
    store_timeout_option,
    stream_options,
    write_pid,
)
from cedanafs.criu.attach import stay_attached
from cedanafs.criu.options import CGROUP_MODES, DumpOptions, InheritedFd, RestoreOptions
from cedanafs.criu.overlay import PortRemap
from cedanafs.criu.process import DumpedProcess, RunningProcess
from cedanafs.errors import UsageError
from cedanafs.lazy import PageServer, page_server
from cedanafs.progress import TerminalReport

F = TypeVar("F", bound=Callable[..., Any])


@click.group()
def dump() -> None:
    """Checkpoint something that runs."""


@click.group()
def restore() -> None:
    """Bring back what was checkpointed."""


def criu_options(command: F) -> F:
    """CRIU's options that dump and restore share."""
    for option in (
        click.option("--criu-binary", help="The criu to run [beside us, then PATH]."),
        click.option("--criu-opts", metavar="JSON", help="More of CRIU's options, over the flags."),
        click.option(
            "--log-level", type=click.IntRange(0, 4), default=4, metavar="0-4",
            help="How much CRIU logs [4].",
        ),
        click.option("--root", metavar="PATH", help="Root of its mount namespace."),
        click.option(
            "--manage-cgroups", metavar="MODE", type=click.Choice(CGROUP_MODES),
            help=f"{', '.join(CGROUP_MODES)} [as CRIU].",
        ),
        click.option("--external", multiple=True, metavar="RES", help="A resource from outside."),
        click.option("--ext-unix-sk", is_flag=True, help="Unix sockets connected to the outside."),
        click.option("--link-remap", is_flag=True, help="Restore unlinked files by hard links."),
        click.option("--file-locks", is_flag=True, help="Dump and restore file locks."),
        click.option("--tcp-close", is_flag=True, help="Close TCP connections."),
        click.option("--tcp-established", is_flag=True, help="Keep TCP connections."),
        click.option("--shell-job", is_flag=True, help="It has a shell's terminal."),
    ):  # fmt: skip
        command = option(command)
    return command


@dump.command("process")
@click.argument("pid", type=int)
@click.option(
    "-d", "--dir", "directory", type=PathArgument, help="A store, or a directory in a mount."
)
@click.option("--name", help="Of the checkpoint [dump-process-NAME-TIME].")
@stream_options
@base_options
@click.option("--leave-running/--kill", default=None, help="Let it run on after the dump.")
@click.option("--skip-in-flight", is_flag=True, help="Leave out TCP connections being opened.")
@click.option("--pre-dump", is_flag=True, help="Memory only, for a later --parent; it runs on.")
@click.option("--track-mem", is_flag=True, help="Track what changes, for the next --parent.")
@click.option("--parent", metavar="NAME", help="Leave out memory that the dump NAME in --dir has.")
@click.option("--ghost-limit", type=SIZE, help="Largest deleted file to dump [1M].")
@click.option(
    "--timeout", type=click.IntRange(1), metavar="SECONDS",
    help="For stopping the tasks [10].",
)  # fmt: skip
@criu_options
def dump_process(
    pid: int,
    directory: Path | None,
    name: str | None,
    stream: int | None,
    compression: str | None,
    memory_limit: int | None,
    store_timeout: float | None,
    base: str | None,
    page_hashes: bool,
    leave_running: bool | None,
    criu_opts: str | None,
    criu_binary: str | None,
    parent: str | None,
    **flags: Any,
) -> None:
    """Checkpoint the process PID and its children.

    It is killed only when the checkpoint is durable. The checkpoint's path is the last line of
    stdout. --stream 0 makes plain CRIU images.
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
    settings = dump_settings(defaults, base, page_hashes)
    options = DumpOptions(
        pid=pid,
        leave_running=defaults.leave_running,
        parent=f"../{parent}" if parent is not None else None,
        criu_opts=json_object(criu_opts),
        **flags,
    )
    path = run(
        lambda: checkpoint.dump(
            lambda: RunningProcess.find(options, defaults.criu_binary),
            directory=defaults.dir,
            name=name,
            parent=parent,
            settings=settings,
            report=TerminalReport(),
        )
    )
    click.echo(path)


@restore.command("process")
@click.option("-p", "--path", type=PathArgument, required=True, help="Of the checkpoint.")
@expected_shards_option
@click.option(
    "-a", "--attach", is_flag=True,
    help="Stay its parent: our streams for its pipes, our signals to it, its exit status ours.",
)  # fmt: skip
@click.option("--inherit-fd", multiple=True, metavar="fd[N]:RES", help="Our descriptor N for RES.")
@click.option(
    "--tcp-listen-remap", multiple=True, metavar="OLD:NEW",
    help="Listen on port NEW in the place of OLD.",
)  # fmt: skip
@click.option("--lazy", is_flag=True, help="Let it run at once; its memory comes as it is used.")
@click.option("--wait", is_flag=True, help="With --lazy: return when all memory has come.")
@click.option("--log-file", type=PathArgument, help=f"With --lazy: its log [{DEFAULT_LOG}].")
@click.option("--leave-stopped", is_flag=True, help="Leave it stopped (SIGCONT starts it).")
@click.option("--pid-file", type=PathArgument, help="Write the restored pid here.")
@store_timeout_option
@criu_options
def restore_process(
    path: Path,
    stream: int | None,
    attach: bool,
    inherit_fd: tuple[str, ...],
    tcp_listen_remap: tuple[str, ...],
    lazy: bool,
    wait: bool,
    log_file: Path | None,
    pid_file: Path | None,
    store_timeout: float | None,
    criu_opts: str | None,
    criu_binary: str | None,
    **flags: Any,
) -> None:
    """Bring the process in a checkpoint, or in a plain image directory, back.

    The restored pid is the last line of stdout.
    """
    defaults = given(criu_binary=criu_binary, store_timeout=store_timeout)
    options = RestoreOptions(
        attach=attach,
        lazy=lazy,
        inherit_fd=tuple(InheritedFd.parse(each) for each in inherit_fd),
        tcp_listen_remap=tuple(PortRemap.parse(each) for each in tcp_listen_remap),
        criu_opts=json_object(criu_opts),
        **flags,
    )
    serving: AbstractContextManager[PageServer | None] = nullcontext()
    if lazy:
        serving = page_server(
            path, stream or None, defaults, partial(run_in_background, log_file or DEFAULT_LOG)
        )
    elif wait or log_file is not None:
        raise UsageError("--wait and --log-file go with --lazy")
    with serving as pages:
        pid = run(
            lambda: checkpoint.restore(
                lambda: DumpedProcess.find(options, defaults.criu_binary),
                path=path,
                stream=stream or None,
                defaults=defaults,
                report=TerminalReport(),
                pages=pages,
                wait=wait,
            )
        )

    def tell() -> None:
        if pid_file is not None:
            write_pid(pid_file, pid)
        click.echo(pid)
        sys.stdout.flush()

    if attach:
        sys.exit(trio.run(stay_attached, pid, tell, not options.leave_stopped))
    tell()
