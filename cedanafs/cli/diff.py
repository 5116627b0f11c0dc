"""diff."""

from __future__ import annotations

import dataclasses

import click

from cedanafs.cli.common import PlaceArgument, echo_json, printable
from cedanafs.cli.look import json_option
from cedanafs.cli.shown import echo_table
from cedanafs.look.difference import PagesDiffer, difference
from cedanafs.look.images import Images
from cedanafs.look.memory import PAGE
from cedanafs.look.processes import as_plain, dump_in
from cedanafs.progress import human
from cedanafs.shard.place import Place


@click.command()
@click.argument("first", metavar="A", type=PlaceArgument)
@click.argument("second", metavar="B", type=PlaceArgument)
@click.option("--memory", is_flag=True, help="Show the mappings in which pages differ.")
@json_option
def diff(first: Place, second: Place, memory: bool, as_json: bool) -> None:
    """Show what changed from checkpoint A to B: processes, open files, pages of memory."""
    with Images.open(first) as before, Images.open(second) as after:
        dumps = dump_in(before), dump_in(after)
        found = difference((before, after), dumps)
    if as_json:
        plain = dataclasses.asdict(found)
        for which in ("gone", "new"):
            plain[which] = as_plain(dataclasses.replace(dumps[0], processes=getattr(found, which)))[
                "processes"
            ]
        echo_json(plain)
        return
    rows: list[tuple[str, ...]] = [("PID", "", "CHANGED", "NEW", "GONE", "SAME", "COMMAND")]
    rows += [(str(each.pid), "gone", *[""] * 4, each.title) for each in found.gone]
    rows += [(str(each.pid), "new", *[""] * 4, each.title) for each in found.new]
    for both in found.both:
        differs = both.command or both.opened or both.closed or _differ(both.pages)
        state = "differs" if differs else "same"
        rows.append((str(both.pid), state, *_sizes(both.pages), both.title))
    echo_table(rows, right=(0, 2, 3, 4, 5))
    for both in found.both:
        if both.command:
            click.echo(printable(f"{both.pid} was {both.command[0]}"))
        for sign, files in (("-", both.closed), ("+", both.opened)):
            for file in files:
                click.echo(printable(f"{both.pid} {sign} fd {file.fd} {file.what or file.kind}"))
    if memory:
        click.echo()
        rows = [("PID", "ADDRESS", "CHANGED", "NEW", "GONE", "SAME", "NAME")]
        rows += [
            (str(both.pid), f"{each.start:012x}", *_sizes(each.pages), each.name)
            for both in found.both
            for each in both.mappings
            if _differ(each.pages)
        ]
        echo_table(rows, right=(0, 2, 3, 4, 5))
    for problem in found.problems:
        click.echo(printable(f"not shown: {problem}"))


def _differ(pages: PagesDiffer) -> bool:
    return bool(pages.changed or pages.new or pages.gone)


def _sizes(pages: PagesDiffer) -> tuple[str, ...]:
    counts = pages.changed, pages.new, pages.gone, pages.same
    return tuple(human(count * PAGE) for count in counts)
