"""What the commands share: options, exit codes, running something that can be interrupted."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any, Final, TypeVar, cast

import click
import trio
from click.shell_completion import CompletionItem

from cedanafs import errors, log
from cedanafs.config import (
    DEFAULT_CACHE_SIZE,
    DEFAULT_COMPRESSION,
    DEFAULT_STORE_TIMEOUT_S,
    Defaults,
    load_defaults,
    size_of,
)
from cedanafs.shard.asking import patiently
from cedanafs.shard.place import ObjectPath, Place, place_of

T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])

EXIT_CODES: Final[Mapping[type[errors.CedanaFsError], int]] = {
    errors.UsageError: 2,
    errors.CheckpointError: 3,
    errors.StoreError: 4,
    errors.CriuError: 5,
    errors.MachineError: 6,
}
"""0 done, 1 failed otherwise; see docs/cli.md."""

DEFAULT_LOG: Final = Path("/var/log/cedanafs.log")

PathArgument: Final = click.Path(path_type=Path)


class _Place(click.ParamType[Place]):
    name = "place"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> Place:
        return (
            place_of(os.fsdecode(value)) if isinstance(value, str | bytes) else cast(Place, value)
        )

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        return PathArgument.shell_complete(ctx, param, incomplete)


PlaceArgument: Final = _Place()
"""A path, or the URL of a place in an object store."""


def exit_code(error: BaseException) -> int:
    """The exit code for what went wrong; a subclass has its parent's."""
    for kind in type(error).__mro__:
        if kind in EXIT_CODES:
            return EXIT_CODES[kind]
    if isinstance(error, OSError) and error.filename is not None:
        return EXIT_CODES[errors.StoreError]  # a store that is gone fails wherever it is touched
    return 130 if isinstance(error, KeyboardInterrupt) else 1


def in_words(error: BaseException) -> str:
    """*error* in one line."""
    if isinstance(error, KeyboardInterrupt):
        return "interrupted"
    if isinstance(error, OSError) and error.filename is not None:
        return f"cannot use {os.fsdecode(error.filename)}: {error.strerror}"
    text = str(error) or type(error).__name__
    if isinstance(error, errors.CheckpointError) and error.repairable and "repair" not in text:
        text += "; cedanafs repair shows what can be had of it"
    return printable(text)


def printable(text: str) -> str:
    """*text* without what a terminal takes for a command: names in a checkpoint are anybody's."""
    return text if text.isprintable() else repr(text)[1:-1]


class _Size(click.ParamType[int]):
    name = "size"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> int:
        try:
            return value if isinstance(value, int) else size_of(str(value))
        except errors.UsageError as exc:
            self.fail(str(exc), param, ctx)


SIZE: Final = _Size()


def store_timeout_option(command: F) -> F:
    """--store-timeout; None where not given."""
    return click.option(
        "--store-timeout", type=click.FloatRange(0), metavar="SECONDS",
        help=f"Fail when the store does nothing for so long [{DEFAULT_STORE_TIMEOUT_S:.0f}].",
    )(command)  # fmt: skip


def patient(command: F) -> F:
    """The command, on another thread: it ends when the store does not answer. --store-timeout."""

    @functools.wraps(command)
    def patiently_done(store_timeout: float | None, **others: Any) -> None:
        timeout_s = given(store_timeout=store_timeout).store_timeout
        if store_timeout is not None:
            for name, value in others.items():
                if isinstance(value, ObjectPath):
                    others[name] = value.patient(timeout_s)
        patiently(lambda: command(**others), timeout_s)

    return store_timeout_option(cast(F, patiently_done))


def cache_options(command: F) -> F:
    """--cache-dir, --cache-size; None where not given."""
    for option in (
        click.option(
            "--cache-size", type=SIZE, help=f"Most of it [{DEFAULT_CACHE_SIZE >> 30}G]."
        ),
        click.option(
            "--cache-dir", type=PathArgument, metavar="DIR",
            help="Keep what was read here, to be read again.",
        ),
    ):  # fmt: skip
        command = option(command)
    return command


def stream_options(command: F) -> F:
    """--stream, --compression, --memory-limit, --spill, --store-timeout; None where not given."""
    spill_option = click.option(
        "--spill", type=PathArgument, metavar="DIR",
        help="Where data goes that a slow store has not taken when the memory is full.",
    )  # fmt: skip
    return shard_options(spill_option(store_timeout_option(command)))


def base_options(command: F) -> F:
    """--base, --page-hashes."""
    for option in (
        click.option("--page-hashes", is_flag=True, help="Keep what makes it a base at once."),
        click.option(
            "--base", metavar="NAME", help="Store only the pages that NAME beside it lacks."
        ),
    ):
        command = option(command)
    return command


def shard_options(command: F) -> F:
    """--stream, --compression, --memory-limit; None where not given."""
    for option in (
        click.option("--memory-limit", type=SIZE, help="Memory for data [256M]."),
        click.option(
            "-c", "--compression", metavar="CODEC[:LEVEL]",
            help=f"none, tar, lz4, zstd, gzip, zlib [{DEFAULT_COMPRESSION}].",
        ),
        click.option(
            "-n", "--stream", "--streams", type=click.IntRange(0), metavar="N",
            help="Number of shards img-0 … img-(N-1) [4].",
        ),
    ):  # fmt: skip
        command = option(command)
    return command


def given(**values: object) -> Defaults:
    """The defaults of files and environment, under the flags that were given."""
    flags: dict[str, Any] = {name: value for name, value in values.items() if value is not None}
    return dataclasses.replace(load_defaults(), **flags)


def run(work: Callable[[], Awaitable[T]]) -> T:
    """Run *work* in a trio loop of its own; Ctrl-C, SIGTERM and SIGHUP cancel it.

    Python's own KeyboardInterrupt would come up in whichever task runs just then, a handler of
    our mount among them. While it cleans up, further signals wait.
    """

    async def interruptible() -> T:
        with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM, signal.SIGHUP) as signals:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_interrupt_at, signals)
                result = await work()
                nursery.cancel_scope.cancel()
        return result

    return trio.run(interruptible)


def run_in_background(log_file: Path, work: Callable[[], Awaitable[None]]) -> None:
    """`run` where nobody looks at stderr."""
    verbose = click.get_current_context().find_root().params["verbose"]
    log.to_file(log_file, verbose)
    run(work)


async def _interrupt_at(signals: AsyncIterator[int]) -> None:
    async for _ in signals:
        raise KeyboardInterrupt


def echo_json(value: object) -> None:
    click.echo(json.dumps(value, indent=2))


def running_total(show: Callable[[int], None]) -> Callable[[int], None]:
    """What counts the bytes that were done, for a bar that shows all so far."""
    done = 0

    def add(count: int) -> None:
        nonlocal done
        done += count
        show(done)

    return add


def json_object(text: str | None) -> Mapping[str, object]:
    """What --criu-opts says; nothing where it was not given. Raises: UsageError."""
    try:
        value = json.loads(text or "{}")
    except ValueError as exc:
        raise errors.UsageError(f"--criu-opts is not JSON: {exc}") from exc
    if not isinstance(value, dict):
        raise errors.UsageError('--criu-opts is not a JSON object: write {"tcp-close": true}')
    return value


def make_default_directory(directory: Place) -> None:
    """The store that is used where none was named. Raises: StoreError."""
    if not isinstance(directory, Path):
        return
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as exc:
        raise errors.StoreError(f"cannot make {directory}: {exc.strerror}") from exc


def write_pid(pid_file: Path, pid: int) -> None:
    """Of what was restored. Raises: StoreError."""
    try:
        pid_file.write_text(f"{pid}\n")
    except OSError as exc:
        raise errors.StoreError(
            f"process {pid} is restored, but {pid_file} cannot be written: {exc.strerror}"
        ) from exc


def write_private(file: Path, text: str) -> None:
    """For the user alone, as command lines may be in it. Raises: StoreError."""
    try:
        fd = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with open(fd, "w", encoding="utf-8", errors="backslashreplace") as opened:
            opened.write(text)
    except OSError as exc:
        raise errors.StoreError(f"cannot write {file}: {exc.strerror}") from exc
