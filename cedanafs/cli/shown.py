"""Checkpoints and what is in them, as text for people."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

import click

from cedanafs.cli.common import printable
from cedanafs.criu.stats import DumpStats
from cedanafs.look.processes import Dump, Process
from cedanafs.look.summary import CheckpointSummary
from cedanafs.progress import human
from cedanafs.shard.place import Place, path_below, place_of

SECTIONS: Final = ("memory", "files", "sockets", "mounts", "images")
"""What `inspect` shows when asked to."""


def when(at_ns: int) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(at_ns / 1e9)) if at_ns else "-"


def echo_table(table: Sequence[tuple[str, ...]], *, right: Sequence[int] = ()) -> None:
    """Rows under their head; on a terminal cut to its width. Columns *right* are aligned so."""
    rows = [tuple(map(printable, row)) for row in table]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    room = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    for row in rows:
        cells = (
            cell.rjust(width) if column in right else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        line = "  ".join(cells).rstrip()
        if room is not None and len(line) > room:
            line = line[: room - 1] + "…"
        click.echo(line)


def echo_summary(found: CheckpointSummary, dump: Dump) -> None:
    """What it is, when it was made and how large it is."""
    problem = f" ({found.problem})" if found.problem else ""
    click.echo(printable(f"{found.path}: {found.state}{problem}"))
    if dump.processes:
        count = len(dump.processes)
        of = f"container {dump.container}, " if dump.container else ""
        plural = "es" if count > 1 else ""
        click.echo(printable(f"  {of}{count} process{plural}: {dump.processes[0].title}"))
    sealed = ", sealed" if found.sealed else ""
    if found.foreign:
        click.echo(f"  by {found.tool}: can only be read here, and has no checksums")
    else:
        click.echo(f"  {found.checkpoint}, commit {found.commit}{sealed}, by {found.tool}")
    if found.parent is not None:
        click.echo(printable(f"  builds on {found.parent}"))
    times = [f"created {when(found.created_ns)}"]
    if dump.written_at_ns:
        times.append(f"written {when(dump.written_at_ns)}")
    times.append(f"committed {when(found.committed_ns)}")
    click.echo(f"  {', '.join(times)}")
    if dump.stats is not None:
        click.echo(f"  {frozen_in_words(dump.stats)}")
    click.echo(
        f"  {human(found.raw_bytes)} of images in {human(found.stored_bytes)} "
        f"({found.ratio:.2f} to 1, {found.codec}, {found.shards} shards)"
    )
    if found.base is not None:
        click.echo(
            printable(f"  {human(found.shared_bytes)} of them are those of its base {found.base}")
        )
    if found.torn_bytes:
        click.echo(f"  {human(found.torn_bytes)} behind the last commit are not part of it")


def frozen_in_words(stats: DumpStats) -> str:
    frozen, freezing = in_ms(stats.frozen_time_us), in_ms(stats.freezing_time_us)
    taken, written = in_ms(stats.memdump_time_us), in_ms(stats.memwrite_time_us)
    return (
        f"frozen for {frozen}, {taken} of it to take its memory ({written} to write it), "
        f"after {freezing} of freezing"
    )


def in_ms(time_us: int) -> str:
    return f"{time_us / 1e6:.2f} s" if time_us >= 10_000_000 else f"{time_us / 1000:.1f} ms"


def echo_processes(dump: Dump) -> None:
    rows: list[tuple[str, ...]] = [
        ("PID", "MEMORY", "STORED", "THREADS", "FILES", "SOCKETS", "USER", "COMMAND")
    ]
    for process, branch in tree(dump.processes):
        sockets = sum(file.is_socket for file in process.files)
        rows.append(
            (
                str(process.pid),
                human(process.image_bytes),
                human(process.stored_bytes),
                str(process.threads),
                str(len(process.files) - sockets),
                str(sockets),
                "-" if process.uid is None else str(process.uid),
                branch + process.title + _said_of(process.state),
            )
        )
    echo_table(rows, right=(0, 1, 2, 3, 4, 5, 6))
    if dump.namespaces:
        words = [
            f"{each.kind} {each.id}" + (f" ({each.detail})" if each.detail else "")
            for each in dump.namespaces
        ]
        click.echo(printable(f"namespaces of their own: {', '.join(words)}"))


def _said_of(state: str) -> str:
    return f" ({state})" if state not in ("", "running") else ""


def tree(processes: Sequence[Process]) -> Iterator[tuple[Process, str]]:
    """Each process once, children under their parent, with the branch to draw before it."""
    there = {process.pid for process in processes}
    below: dict[int, list[int]] = {}
    roots = []
    for number, process in enumerate(processes):
        if process.parent in there and process.parent != process.pid:
            below.setdefault(process.parent, []).append(number)
        else:
            roots.append(number)
    seen: set[int] = set()
    for start in [*roots, *range(len(processes))]:  # of a circle, which only damage makes, each
        left = [(start, "", "")]
        while left:
            number, branch, indent = left.pop()
            if number in seen:
                continue
            seen.add(number)
            yield processes[number], branch
            children = [n for n in below.get(processes[number].pid, ()) if n not in seen]
            for child in reversed(children):
                last = child == children[-1]
                left.append(
                    (
                        child,
                        indent + ("└─ " if last else "├─ "),
                        indent + ("   " if last else "│  "),
                    )
                )


def echo_shards(found: CheckpointSummary) -> None:
    mean = found.stored_bytes / len(found.shard_files) if found.shard_files else 0
    rows: list[tuple[str, ...]] = [("SHARD", "STORED", "OF MEAN", "FRAMES", "HOLDS")]
    rows += [
        (
            shard.name,
            human(shard.stored_bytes),
            f"{100 * shard.stored_bytes / mean:.0f} %" if mean else "-",
            str(shard.frames),
            human(shard.image_bytes),
        )
        for shard in found.shard_files
    ]
    echo_table(rows, right=(1, 2, 3, 4))


def section_rows(
    section: str, found: CheckpointSummary, dump: Dump
) -> tuple[list[tuple[str, ...]], tuple[int, ...]]:
    """One of SECTIONS: its head and rows, and which columns are aligned to the right."""
    rows: list[tuple[str, ...]] = []
    right: tuple[int, ...] = ()
    match section:
        case "memory":
            rows.append(("PID", "ADDRESS", "PROT", "MAPPED", "IN IMAGES", "STORED", "NAME"))
            right = (0, 3, 4, 5)
            rows += [
                (
                    str(process.pid),
                    f"{mapping.start:012x}",
                    mapping.protection,
                    human(mapping.end - mapping.start),
                    human(mapping.image_bytes + mapping.parent_bytes),
                    human(mapping.stored_bytes),
                    mapping.name,
                )
                for process in dump.processes
                for mapping in process.mappings
                if mapping.image_bytes or mapping.parent_bytes
            ]
        case "files":
            rows.append(("PID", "FD", "KIND", "MODE", "POSITION", "WHAT"))
            right = (0, 1, 4)
            for process in dump.processes:
                for what, path in (("root", process.root), ("cwd", process.directory)):
                    if path:
                        rows.append((str(process.pid), what, "", "", "", path))
                rows += [
                    (
                        str(process.pid),
                        str(file.fd),
                        file.kind,
                        file.flags,
                        "" if file.position is None else str(file.position),
                        file.what,
                    )
                    for file in process.files
                    if not file.is_socket
                ]
        case "sockets":
            rows.append(("PID", "FD", "STATE", "WHAT"))
            right = (0, 1)
            rows += [
                (str(process.pid), str(file.fd), file.state, file.what)
                for process in dump.processes
                for file in process.files
                if file.is_socket
            ]
        case "mounts":
            rows.append(("MOUNTPOINT", "TYPE", "SOURCE", "ROOT", "OPTIONS"))
            rows += [(m.mountpoint, m.kind, m.source, m.root, m.options) for m in dump.mounts]
        case _:
            rows.append(("IMAGE", "BYTES", "MODE"))
            rows += [
                (i.name + (f" -> {i.symlink_to}" if i.symlink_to else ""), str(i.bytes), i.mode)
                for i in found.images
            ]
    return rows, right


def echo_section(section: str, found: CheckpointSummary, dump: Dump) -> None:
    """One of SECTIONS."""
    rows, right = section_rows(section, found, dump)
    if len(rows) > 1:
        echo_table(rows, right=right)
    else:
        click.echo(f"{section}: none")


def rows_of(found: Iterable[CheckpointSummary], store: Place) -> list[tuple[str, ...]]:
    """What `list` shows."""
    rows: list[tuple[str, ...]] = [
        ("CHECKPOINT", "STATE", "WHEN", "WHAT", "IMAGES", "RAW", "STORED", "RATIO", "SHARDS",
         "CODEC", "BUILDS ON"),
    ]  # fmt: skip
    for each in found:
        name = str(path_below(place_of(each.path), store))
        rows.append(
            (
                "(the store itself)" if name == "." else name,
                each.state,
                when(each.committed_ns),
                _what(each),
                str(len(each.images)),
                human(each.raw_bytes),
                human(each.stored_bytes),
                f"{each.ratio:.2f}",
                str(each.shards),
                each.codec,
                each.parent or each.base or "-",
            )
        )
    return rows


def _what(each: CheckpointSummary) -> str:
    if each.process is None:
        return "-"
    more = f" +{each.processes - 1}" if each.processes > 1 else ""
    of = f" in {each.container[:12]}" if each.container else ""
    return f"{each.process}{more}{of}"
