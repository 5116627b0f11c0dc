"""hook install, remove, show: CRIU's own configuration, so that every driver waits for a commit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from cedanafs.cli.common import PathArgument, echo_json
from cedanafs.criu import hook as hooks
from cedanafs.criu.action_script import find_script

F = TypeVar("F", bound=Callable[..., Any])


@click.group()
def hook() -> None:
    """Have CRIU hold every dump into a mount until it is durable, whoever drives CRIU."""


def _files(command: F) -> F:
    for option in (
        click.option("--config-dir", type=PathArgument, default=hooks.CONFIG_DIR, show_default=True,
                     help="Where CRIU's configuration files are."),
        click.option(
            "--for", "drivers", type=click.Choice(list(hooks.FILES)), multiple=True,
            help="Only for this driver; criu: for all.",
        ),
    ):  # fmt: skip
        command = option(command)
    return command


@hook.command()
@_files
def install(drivers: tuple[str, ...], config_dir: Path) -> None:
    """Put the action script into CRIU's configuration; without --for, for every driver.

    What is there stays; a second time changes nothing.
    """
    script = find_script()
    for driver in drivers or ("criu",):
        new = hooks.install(driver, script, config_dir)
        file = config_dir / hooks.FILES[driver]
        click.echo(f"{file}: {'added' if new else 'has already'}: action-script {script}")


@hook.command()
@_files
def remove(drivers: tuple[str, ...], config_dir: Path) -> None:
    """Take out what `hook install` put in; without --for, wherever it did."""
    for driver in drivers or hooks.FILES:
        file = config_dir / hooks.FILES[driver]
        if hooks.remove(driver, config_dir):
            click.echo(f"{file}: removed")
        elif found := hooks.find(driver, config_dir).script:
            click.echo(f"{file}: {found} was put in by hand, and stays")
        elif drivers:
            click.echo(f"{file}: there was nothing of ours")


@hook.command()
@_files
@click.option("--json", "as_json", is_flag=True, help="For programs.")
def show(drivers: tuple[str, ...], config_dir: Path, as_json: bool) -> None:
    """Say for which drivers the action script is installed."""
    found = [hooks.find(driver, config_dir) for driver in drivers or hooks.FILES]
    if as_json:
        echo_json(
            [
                {
                    "for": each.driver,
                    "file": str(each.file),
                    "script": str(each.script) if each.script else None,
                    "ours": each.ours,
                    "works": each.works,
                }
                for each in found
            ]
        )
        return
    for each in found:
        what = f"action-script {each.script}" if each.script else "not installed"
        by_hand = " (put in by hand)" if each.script and not each.ours else ""
        broken = "" if each.works or not each.script else ": there is no such program"
        click.echo(f"{each.driver}: {each.file}: {what}{by_hand}{broken}")
