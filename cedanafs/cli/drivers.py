"""What `process` and `runc` share: where a dump goes, where a restore comes from, CRIU's flags."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

import click
import trio

from cedanafs.cli.common import (
    PathArgument,
    PlaceArgument,
    base_options,
    cache_options,
    exit_code,
    given,
    in_words,
    make_default_directory,
    store_timeout_option,
    stream_options,
    write_pid,
)
from cedanafs.config import Defaults, MountSettings
from cedanafs.criu.attach import stay_attached
from cedanafs.errors import UsageError, the_error
from cedanafs.progress import TerminalReport
from cedanafs.shard.place import Place
from cedanafs.watch.events import EventLog

F = TypeVar("F", bound=Callable[..., Any])

_FLAGS: Final = {
    "tcp-established": "Keep TCP connections.",
    "tcp-close": "Close TCP connections.",
    "file-locks": "Dump and restore file locks.",
    "link-remap": "Restore unlinked files by hard links.",
    "ext-unix-sk": "Unix sockets connected to the outside.",
    "shell-job": "It has a shell's terminal.",
}


@dataclass(frozen=True, slots=True)
class Destination:
    """Where a dump goes. `settings` say how it is streamed; None: plain CRIU images."""

    directory: Place
    name: str | None
    settings: MountSettings | None
    leave_running: bool
    criu_binary: str | None


@dataclass(frozen=True, slots=True)
class Source:
    """What is restored. `stream`, if not None, is the number of shards that it must have."""

    path: Place
    stream: int | None
    defaults: Defaults
    pid_file: Path | None

    def tell(self, pid: int) -> None:
        """Say what was restored. Raises: StoreError."""
        if self.pid_file is not None:
            write_pid(self.pid_file, pid)
        click.echo(pid)
        sys.stdout.flush()

    def tell_and_stay(self, pid: int, child: int, *, resume: bool = True) -> None:
        """`tell`, then end as our *child* does, which *pid* is or which looks after it."""
        sys.exit(trio.run(stay_attached, child, lambda: self.tell(pid), resume))


@contextmanager
def reporting(progress_json: int | None) -> Iterator[TerminalReport]:
    """Where a dump or restore tells what it does; the last that a program hears is how it failed.

    Raises: UsageError.
    """
    if progress_json is None:
        yield TerminalReport()
        return
    events = EventLog(progress_json)
    try:
        yield TerminalReport(events.tell)
    except BaseException as exc:
        error = the_error(exc)
        events.tell(
            "failed",
            error=in_words(error),
            kind=type(error).__name__,
            exit_code=exit_code(error),
        )
        raise
    finally:
        events.close()


_progress_option = click.option(
    "--progress-json", type=click.IntRange(0), metavar="FD",
    help="Write what happens to descriptor FD, for programs.",
)  # fmt: skip


def dump_options(name: str) -> Callable[[F], Callable[..., None]]:
    """Those of a dump, which the command gets as *into*, a `Destination`."""

    def decorate(command: F) -> Callable[..., None]:
        @functools.wraps(command)
        def with_destination(
            directory: Place | None,
            name: str | None,
            base: str | None,
            page_hashes: bool,
            stream: int | None,
            compression: str | None,
            memory_limit: int | None,
            store_timeout: float | None,
            spill: Path | None,
            leave_running: bool | None,
            criu_binary: str | None,
            **others: Any,
        ) -> None:
            defaults = given(
                dir=directory,
                stream=stream,
                compression=compression,
                memory_limit=memory_limit,
                store_timeout=store_timeout,
                spill=spill,
                leave_running=leave_running,
                criu_binary=criu_binary,
            )
            if not defaults.stream and (base is not None or page_hashes):
                raise UsageError("--stream 0 makes plain images: no --base, no --page-hashes")
            if directory is None:
                make_default_directory(defaults.dir)
            settings = None
            if defaults.stream:
                settings = defaults.mount_settings(defaults.dir, base=base, page_hashes=page_hashes)
            into = Destination(
                defaults.dir, name, settings, defaults.leave_running, defaults.criu_binary
            )
            command(into=into, **others)

        return _with_options(
            with_destination,
            click.option(
                "-d", "--dir", "directory", type=PlaceArgument,
                help="A store, or a directory in a mount.",
            ),
            click.option("--name", help=f"Of the checkpoint [dump-{name}-TIME]."),
            stream_options,
            base_options,
            click.option(
                "--leave-running/--kill", default=None, help="Let it run on after the dump."
            ),
            click.option(
                "--skip-in-flight", is_flag=True, help="Leave out TCP connections being opened."
            ),
            _progress_option,
        )  # fmt: skip

    return decorate


def restore_options(command: F) -> Callable[..., None]:
    """Those of a restore, which the command gets as *source*, a `Source`."""

    @functools.wraps(command)
    def with_source(
        path: Place,
        stream: int | None,
        pid_file: Path | None,
        store_timeout: float | None,
        cache_dir: Path | None,
        cache_size: int | None,
        criu_binary: str | None,
        **others: Any,
    ) -> None:
        defaults = given(
            criu_binary=criu_binary,
            store_timeout=store_timeout,
            cache_dir=cache_dir,
            cache_size=cache_size,
        )
        command(source=Source(path, stream or None, defaults, pid_file), **others)

    return _with_options(
        with_source,
        click.option("-p", "--path", type=PlaceArgument, required=True, help="Of the checkpoint."),
        click.option(
            "-n", "--stream", "--streams", type=click.IntRange(0), metavar="N",
            help="Fail unless it has N shards.",
        ),
        click.option(
            "-a", "--attach", is_flag=True,
            help="Stay its parent: our streams for its pipes, our signals to it, its exit status.",
        ),
        click.option("--pid-file", type=PathArgument, help="Write the restored pid here."),
        _progress_option,
        store_timeout_option,
        cache_options,
    )  # fmt: skip


def criu_options(command: F) -> F:
    """CRIU's options that dump and restore share, whoever drives it."""
    return _with_options(
        command,
        *(click.option(f"--{name}", is_flag=True, help=text) for name, text in _FLAGS.items()),
        click.option("--external", multiple=True, metavar="RES", help="A resource from outside."),
        click.option("--criu-opts", metavar="JSON", help="More of CRIU's options, over the flags."),
        click.option("--criu-binary", help="The criu to run [beside us, then PATH]."),
    )


def _with_options(command: F, *options: Callable[[F], F]) -> F:
    """*command* with *options*, which `--help` shows in their order."""
    for option in reversed(options):
        command = option(command)
    return command
