"""The line that a terminal shows. Its own module, as importing rich takes a tenth of a command's
start."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.table import Column

_BAR_WIDTH: Final = 10


class Terminal:
    """stderr, which is one."""

    def __init__(self) -> None:
        self._console = Console(stderr=True, highlight=False)

    def say(self, line: str) -> None:
        """Above the line, if there is one."""
        self._console.print(line, markup=False, soft_wrap=True)

    @contextmanager
    def line(self, what: str, total_bytes: int | None) -> Iterator[Line]:
        """One line that goes with the block: what is too long is cut, so that it stays one."""
        progress = Progress(
            SpinnerColumn(),
            TextColumn(
                "{task.description}",
                markup=False,
                table_column=Column(no_wrap=True, overflow="ellipsis", ratio=1),
            ),
            BarColumn(_BAR_WIDTH),
            DownloadColumn(binary_units=True, table_column=Column(no_wrap=True)),
            TransferSpeedColumn(table_column=Column(no_wrap=True)),
            TimeRemainingColumn(compact=True, table_column=Column(no_wrap=True)),
            TextColumn("{task.fields[more]}", table_column=Column(no_wrap=True)),
            console=self._console,
            transient=True,
            expand=True,
        )
        name = what if what.isprintable() else repr(what)[1:-1]
        with progress:
            yield Line(progress, progress.add_task(name, total=total_bytes, more=""))


class Line:
    """Use `Terminal.line`."""

    def __init__(self, progress: Progress, task: TaskID) -> None:
        self._progress, self._task = progress, task

    def show(self, done_bytes: int, more: str) -> None:
        self._progress.update(self._task, completed=done_bytes, more=more)

    def expect(self, total_bytes: int) -> None:
        self._progress.update(self._task, total=total_bytes)
