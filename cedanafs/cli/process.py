"""dump process, restore process."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import click

from cedanafs import checkpoint
from cedanafs.cli.common import (
    DEFAULT_LOG,
    SIZE,
    PathArgument,
    json_object,
    run,
    run_in_background,
)
from cedanafs.cli.drivers import (
    Destination,
    Source,
    criu_options,
    dump_options,
    reporting,
    restore_options,
)
from cedanafs.criu.options import CGROUP_MODES, DumpOptions, InheritedFd, RestoreOptions
from cedanafs.criu.overlay import PortRemap
from cedanafs.criu.process import DumpedProcess, RunningProcess
from cedanafs.errors import UsageError
from cedanafs.lazy import PageServer, page_server

F = TypeVar("F", bound=Callable[..., Any])


@click.group()
def dump() -> None:
    """Checkpoint something that runs."""


@click.group()
def restore() -> None:
    """Bring back what was checkpointed."""


def _process_options(command: F) -> F:
    """CRIU's options that a runtime sets by itself."""
    for option in (
        click.option(
            "--log-level", type=click.IntRange(0, 4), default=4, metavar="0-4",
            help="How much CRIU logs [4].",
        ),
        click.option("--root", metavar="PATH", help="Root of its mount namespace."),
        click.option(
            "--manage-cgroups", metavar="MODE", type=click.Choice(CGROUP_MODES),
            help=f"{', '.join(CGROUP_MODES)} [as CRIU].",
        ),
    ):  # fmt: skip
        command = option(command)
    return command


@dump.command("process")
@click.argument("pid", type=int)
@dump_options("process-NAME")
@click.option("--pre-dump", is_flag=True, help="Memory only, for a later --parent; it runs on.")
@click.option("--track-mem", is_flag=True, help="Track what changes, for the next --parent.")
@click.option("--parent", metavar="NAME", help="Leave out memory that the dump NAME in --dir has.")
@click.option("--ghost-limit", type=SIZE, help="Largest deleted file to dump [1M].")
@click.option(
    "--timeout", type=click.IntRange(1), metavar="SECONDS",
    help="For stopping the tasks [10].",
)  # fmt: skip
@_process_options
@criu_options
def dump_process(
    pid: int,
    into: Destination,
    criu_opts: str | None,
    parent: str | None,
    progress_json: int | None,
    **flags: Any,
) -> None:
    """Checkpoint the process PID and its children.

    It is killed only when the checkpoint is durable. The checkpoint's path is the last line of
    stdout. --stream 0 makes plain CRIU images.
    """
    options = DumpOptions(
        pid=pid,
        leave_running=into.leave_running,
        parent=f"../{parent}" if parent is not None else None,
        criu_opts=json_object(criu_opts),
        **flags,
    )
    with reporting(progress_json) as report:
        path = run(
            lambda: checkpoint.dump(
                lambda: RunningProcess.find(options, into.criu_binary),
                directory=into.directory,
                name=into.name,
                parent=parent,
                settings=into.settings,
                report=report,
            )
        )
    click.echo(path)


@restore.command("process")
@restore_options
@click.option("--inherit-fd", multiple=True, metavar="fd[N]:RES", help="Our descriptor N for RES.")
@click.option(
    "--tcp-listen-remap", multiple=True, metavar="OLD:NEW",
    help="Listen on port NEW in the place of OLD.",
)  # fmt: skip
@click.option("--lazy", is_flag=True, help="Let it run at once; its memory comes as it is used.")
@click.option("--wait", is_flag=True, help="With --lazy: return when all memory has come.")
@click.option("--log-file", type=PathArgument, help=f"With --lazy: its log [{DEFAULT_LOG}].")
@click.option("--leave-stopped", is_flag=True, help="Leave it stopped (SIGCONT starts it).")
@_process_options
@criu_options
def restore_process(
    source: Source,
    attach: bool,
    inherit_fd: tuple[str, ...],
    tcp_listen_remap: tuple[str, ...],
    lazy: bool,
    wait: bool,
    log_file: Path | None,
    criu_opts: str | None,
    progress_json: int | None,
    **flags: Any,
) -> None:
    """Bring the process in a checkpoint, or in a plain image directory, back.

    The restored pid is the last line of stdout.
    """
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
        in_background = partial(run_in_background, log_file or DEFAULT_LOG)
        serving = page_server(source.path, source.stream, source.defaults, in_background)
    elif wait or log_file is not None:
        raise UsageError("--wait and --log-file go with --lazy")
    with reporting(progress_json) as report, serving as pages:
        pid = run(
            lambda: checkpoint.restore(
                lambda: DumpedProcess.find(options, source.defaults.criu_binary),
                path=source.path,
                stream=source.stream,
                defaults=source.defaults,
                report=report,
                pages=pages,
                wait=wait,
            )
        )
    if attach:
        source.tell_and_stay(pid, child=pid, resume=not options.leave_stopped)
    source.tell(pid)
