"""check."""

from __future__ import annotations

import dataclasses

import click

from cedanafs import check as checks
from cedanafs.check import Finding, State
from cedanafs.cli.common import PlaceArgument, echo_json, given, run
from cedanafs.cli.look import json_option
from cedanafs.errors import MachineError, StoreError
from cedanafs.shard.place import Place

_COLOURS = {State.OK: "green", State.WARNING: "yellow", State.ERROR: "red"}


@click.command()
@click.argument("store", type=PlaceArgument, required=False)
@click.option("--criu", metavar="PATH", help="The criu to look at.")
@click.option(
    "--full", is_flag=True,
    help="Also every feature of CRIU, all of the store, and a process dumped and restored.",
)  # fmt: skip
@json_option
def check(store: Place | None, criu: str | None, full: bool, as_json: bool) -> None:
    """Say whether this machine is ready, and STORE if one is named, and what to do if not.

    Exit code 6 when the machine lacks something that every dump needs, 4 when the store does.
    """
    found: list[Finding] = []

    def add(finding: Finding) -> None:
        found.append(finding)
        if not as_json:
            _echo(finding)

    async def machine() -> None:
        async for finding in checks.machine(given(criu_binary=criu).criu_binary, full=full):
            add(finding)

    run(machine)
    of_machine = len(found)
    if store is not None:
        for finding in checks.store(store.resolve(), full=full):
            add(finding)
    if as_json:
        echo_json([dataclasses.asdict(finding) for finding in found])
    _require("this machine lacks", found[:of_machine], MachineError)
    _require("the store fails at", found[of_machine:], StoreError)


def _echo(finding: Finding) -> None:
    state = click.style(f"{finding.state:7}", fg=_COLOURS[finding.state])
    click.echo(f"{state}  {finding.name}: {finding.message}")
    if finding.advice:
        click.echo(f"         -> {finding.advice}")


def _require(what: str, found: list[Finding], error: type[MachineError] | type[StoreError]) -> None:
    failed = [finding.name for finding in found if finding.state is State.ERROR]
    if failed:
        raise error(f"{what}: {', '.join(failed)}")
