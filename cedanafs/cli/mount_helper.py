"""What mount(8) and umount(8) run for file systems of ours: `mount.cedanafs`, `umount.cedanafs`.

mount(8) looks for `mount.TYPE` in /sbin and hands over as mount(8)'s "External helpers" says; what
stands behind -o are the options of `cedanafs mount`.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final

import click

from cedanafs import log
from cedanafs.cli.common import PathArgument
from cedanafs.cli.mounts import mount as mount_command
from cedanafs.errors import UsageError, did_you_mean
from cedanafs.fs.mounts import detach, unmount

_READ_ONLY: Final = {"ro": ["--read-only"], "rw": []}
_WITHOUT_EFFECT: Final = frozenset(
    [
        *("defaults", "auto", "noauto", "user", "users", "nouser", "group", "owner", "nofail"),
        *("_netdev", "async", "nosuid", "nodev", "exec"),
        *("atime", "noatime", "relatime", "strictatime", "diratime", "nodiratime", "lazytime"),
    ]
)
"""For mount(8) itself, or so in any case: a mount is nosuid and nodev, and keeps no atime."""
_FOR_MOUNT: Final = frozenset({"comment", "uhelper"})
"""With a value, which is not for us."""


def flags_of(options: str, *, sloppy: bool = False) -> list[str]:
    """Flags of `cedanafs mount` for what stands behind -o; *sloppy* leaves out the unknown.

    Raises: UsageError.
    """
    return [flag for each in filter(None, options.split(",")) for flag in _flag(each, sloppy)]


def _flag(text: str, sloppy: bool) -> Iterator[str]:
    name, equals, value = text.partition("=")
    if text in _READ_ONLY:
        yield from _READ_ONLY[text]
    elif text in _WITHOUT_EFFECT or name.lower().startswith("x-") or name in _FOR_MOUNT:
        return
    elif (option := _OPTIONS.get(name.replace("-", "_"))) is None:
        if not sloppy:
            known = [*_READ_ONLY, *_OPTIONS]
            near = did_you_mean(name.replace("-", "_"), known)
            raise UsageError(f"mount option {text}: unknown; there are {', '.join(known)}{near}")
    elif option.is_flag == bool(equals):
        raise UsageError(
            f"mount option {text}: " + ("takes no value" if equals else "takes a value")
        )
    else:
        yield max(option.opts, key=len) + equals + value


_OPTIONS: Final = {
    name.lstrip("-").replace("-", "_"): option
    for option in mount_command.params
    if isinstance(option, click.Option) and option.name not in ("foreground", "ready_fd")
    for name in option.opts
    if name.startswith("--")
}


@click.command()
@click.argument("store")
@click.argument("mountpoint")
@click.option("-o", "options", multiple=True, metavar="OPTIONS", help="Separated by commas.")
@click.option("-f", "fake", is_flag=True, help="Do all but the mount.")
@click.option("-s", "sloppy", is_flag=True, help="Leave out options that are not known.")
@click.option("-v", "verbose", count=True, help="Say more.")
@click.option("-n", "no_mtab", is_flag=True, help="Without effect: there is no mtab.")
@click.option("-t", "kind", metavar="TYPE", help="Without effect: there is but one.")
def mount(
    store: str, mountpoint: str, options: tuple[str, ...], fake: bool, sloppy: bool,
    verbose: int, no_mtab: bool, kind: str | None,
) -> None:  # fmt: skip
    """Mount STORE at MOUNTPOINT, for mount(8). OPTIONS are those of `cedanafs mount`."""
    flags = flags_of(",".join(options), sloppy=sloppy)
    if not fake:
        log.to_stderr(verbose)
        mount_command.main([*flags, "--", store, mountpoint], standalone_mode=False)


@click.command()
@click.argument("mountpoint", type=PathArgument)
@click.option("-f", "force", is_flag=True, help="As -l.")
@click.option("-l", "lazy", is_flag=True, help="Now, whatever is open or not durable.")
@click.option("-n", "no_mtab", is_flag=True, help="Without effect: there is no mtab.")
@click.option("-r", "read_only", is_flag=True, help="Without effect.")
@click.option("-v", "verbose", count=True, help="Say more.")
@click.option("-t", "kind", metavar="TYPE", help="Without effect: there is but one.")
def umount(mountpoint: Path, force: bool, lazy: bool, **_: object) -> None:
    """Unmount MOUNTPOINT, for umount(8), when all is durable."""
    if force or lazy:
        detach(mountpoint)
    else:
        unmount(mountpoint)
