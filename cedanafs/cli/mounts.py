"""mount, umount, commit."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path

import click
import trio

from cedanafs import errors, log
from cedanafs.cli import service
from cedanafs.cli.common import (
    DEFAULT_LOG,
    EXIT_CODES,
    PathArgument,
    PlaceArgument,
    base_options,
    cache_options,
    exit_code,
    given,
    in_words,
    stream_options,
)
from cedanafs.config import MountSettings
from cedanafs.fs.mount import check_before_mounting, mounted, until_stopped
from cedanafs.fs.mounts import mount_holding, unmount
from cedanafs.shard.place import Place
from cedanafs.watch.server import Address, address_of, metrics_server


class _Address(click.ParamType[Address]):
    name = "address"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> Address:
        return value if isinstance(value, Address) else address_of(str(value))


@click.command()
@click.argument("store", type=PlaceArgument)
@click.argument("mountpoint", type=PathArgument)
@stream_options
@cache_options
@base_options
@click.option("--durable", is_flag=True, help="CRIU's last writes wait until all is durable.")
@click.option("--read-only", "-r", is_flag=True, help="Only read; another mount may write.")
@click.option("--allow-other", is_flag=True, help="Let other users in, by the files' modes.")
@click.option("--foreground", "-f", is_flag=True, help="Serve in this process until stopped.")
@click.option("--log-file", type=PathArgument, help=f"Where the server logs [{DEFAULT_LOG}].")
@click.option(
    "--log-format",
    type=click.Choice(["text", "json"]),
    default="text",
    help="json: an object in each line [text].",
)
@click.option(
    "--metrics", type=_Address(), metavar="ADDRESS",
    help="Metrics for Prometheus at unix:PATH, HOST:PORT or PORT.",
)  # fmt: skip
@click.option("--ready-fd", type=int, hidden=True)
@click.pass_context
def mount(
    ctx: click.Context,
    store: Place,
    mountpoint: Path,
    stream: int | None,
    compression: str | None,
    memory_limit: int | None,
    store_timeout: float | None,
    spill: Path | None,
    cache_dir: Path | None,
    cache_size: int | None,
    base: str | None,
    page_hashes: bool,
    durable: bool,
    read_only: bool,
    allow_other: bool,
    foreground: bool,
    log_file: Path | None,
    log_format: str,
    metrics: Address | None,
    ready_fd: int | None,
) -> None:
    """Mount STORE at MOUNTPOINT: image directories there are checkpoints here.

    Returns when the mount answers; its server runs on in the background.
    """
    defaults = given(
        stream=stream,
        compression=compression,
        memory_limit=memory_limit,
        store_timeout=store_timeout,
        spill=spill,
        cache_dir=cache_dir,
        cache_size=cache_size,
    )
    settings = defaults.mount_settings(
        store.resolve(),
        base=base,
        page_hashes=page_hashes,
        durable=durable,
        read_only=read_only,
        allow_other=allow_other,
    )
    mountpoint = mountpoint.absolute()
    verbose = ctx.parent.params["verbose"] if ctx.parent else 0
    if foreground:
        os.umask(0o077)  # the log, rotated or not, is nobody else's
        if log_file is not None:
            log.to_file(log_file, verbose, as_json=log_format == "json")
        elif log_format == "json" or log.stderr_is_journal():
            log.to_stderr(max(verbose, 1), as_json=log_format == "json")
        _serve(settings, mountpoint, metrics, ready_fd)
    else:
        check_before_mounting(settings, mountpoint)
        flags = [f"--log-file={log_file or DEFAULT_LOG}", f"--log-format={log_format}"]
        flags += [f"--metrics={metrics}"] if metrics is not None else []
        _serve_in_background(settings, mountpoint, log_file or DEFAULT_LOG, flags, verbose)


def _serve(
    settings: MountSettings, mountpoint: Path, metrics: Address | None, ready_fd: int | None
) -> None:
    async def serve() -> None:
        async with AsyncExitStack() as stack:
            begin = None
            if metrics is not None:  # before the mount: what is wrong with it is said at once
                begin = await stack.enter_async_context(metrics_server(metrics))
            filesystem = await stack.enter_async_context(mounted(settings, mountpoint))
            if begin is not None:
                begin(filesystem.figures)
            if ready_fd is not None:
                os.write(ready_fd, b"ready")
                os.close(ready_fd)
            service.tell("READY=1", f"STATUS=serving {settings.store} at {mountpoint}")
            try:
                await until_stopped()
            finally:
                service.tell("STOPPING=1", "STATUS=committing and unmounting")

    try:
        trio.run(serve)
    except BaseException as exc:
        error = errors.the_error(exc)
        if ready_fd is not None:
            try:
                os.write(ready_fd, f"{exit_code(error)} {in_words(error)}".encode())
            except OSError:  # it was ready: whoever waited is gone
                log.failed(error)
        raise


def _serve_in_background(
    settings: MountSettings, mountpoint: Path, log_file: Path, flags: Sequence[str], verbose: int
) -> None:
    read_end, write_end = os.pipe()
    paths = {"--spill": settings.spill, "--cache-dir": settings.cache_dir}
    command = [
        sys.executable, "-m", "cedanafs", *["-v"] * verbose, "mount", "--foreground",
        f"--ready-fd={write_end}", *flags,
        f"--stream={settings.shards}", f"--compression={settings.codec}",
        f"--memory-limit={settings.memory_limit}", f"--store-timeout={settings.store_timeout_s}",
        f"--cache-size={settings.cache_size}",
        *(f"{flag}={path.absolute()}" for flag, path in paths.items() if path is not None),
        *([f"--base={settings.base}"] if settings.base is not None else []),
        *(["--page-hashes"] if settings.page_hashes else []),
        *(["--durable"] if settings.durable else []),
        *(["--read-only"] if settings.read_only else []),
        *(["--allow-other"] if settings.allow_other else []),
        "--", str(settings.store), os.fspath(mountpoint),
    ]  # fmt: skip
    with open(os.devnull, "r+b") as null:
        server = subprocess.Popen(
            command,
            cwd="/",
            stdin=null,
            stdout=null,
            stderr=null,
            pass_fds=[write_end],
            start_new_session=True,
        )
    os.close(write_end)
    with open(read_end, "rb") as answer:
        text = answer.read().decode(errors="replace")
    if text != "ready":
        server.wait()
        code, _, reason = text.partition(" ")
        kind = next((k for k, c in EXIT_CODES.items() if str(c) == code), errors.CedanaFsError)
        raise kind(reason or f"the server died; its log is {log_file}")


@click.command()
@click.argument("mountpoint", type=PathArgument)
def umount(mountpoint: Path) -> None:
    """Commit what was written, unmount, and wait until the server has ended.

    Fails when anything is not durable; the mount then stays.
    """
    unmount(mountpoint)


@click.command()
@click.argument("directory", type=PathArgument)
def commit(directory: Path) -> None:
    """Make durable what was written into DIRECTORY of a mount; the same as `sync DIRECTORY`."""
    if mount_holding(directory) is None:
        raise errors.UsageError(
            f"{directory} is not in a mount of cedanafs: findmnt -t fuse.cedanafs shows them; "
            "what is in a store was committed by whoever wrote it"
        )
    try:
        fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
    except NotADirectoryError:
        raise errors.UsageError(f"{directory} is not a directory") from None
    except FileNotFoundError:
        raise errors.UsageError(f"{directory} does not exist") from None
    except OSError as exc:
        raise errors.StoreError(
            f"{directory} is not durable: {exc.strerror}; the server's log says why"
        ) from exc
