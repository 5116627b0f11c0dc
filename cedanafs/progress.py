"""What a person sees while something takes time: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Final, Protocol

import trio

if TYPE_CHECKING:
    from rich.console import Console

_REFRESH_S: Final = 0.1


class Report(Protocol):
    """Where the steps of a dump or restore are told."""

    def say(self, line: str) -> None:
        """One thing that has happened."""

    @asynccontextmanager
    def watch(
        self, what: str, done_bytes: Callable[[], int], total_bytes: int | None
    ) -> AsyncIterator[None]:
        """Show how far *what* is while the block runs."""


class SilentReport:
    """Nowhere."""

    def say(self, line: str) -> None:
        pass

    @asynccontextmanager
    async def watch(
        self, what: str, done_bytes: Callable[[], int], total_bytes: int | None
    ) -> AsyncIterator[None]:
        yield


class TerminalReport:
    """Lines on stderr, and bars where that is a terminal.

    Only there is rich imported: it takes a tenth of the start of a command.
    """

    def __init__(self) -> None:
        self._console = _console() if sys.stderr.isatty() else None

    def say(self, line: str) -> None:
        if self._console is not None:
            self._console.print(line, markup=False)
        else:
            print(line, file=sys.stderr, flush=True)

    @asynccontextmanager
    async def watch(
        self, what: str, done_bytes: Callable[[], int], total_bytes: int | None
    ) -> AsyncIterator[None]:
        if self._console is None:
            self.say(what)
            yield
            return
        with self.bar(what, total_bytes) as show:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_refresh, show, done_bytes)
                yield
                nursery.cancel_scope.cancel()
            show(done_bytes())

    @contextmanager
    def bar(self, what: str, total_bytes: int | None) -> Iterator[Callable[[int], None]]:
        """A bar (nothing at all off a terminal); call what it yields with the bytes done so far."""
        if self._console is None:
            yield lambda _: None
            return
        from rich.progress import (
            BarColumn,
            DownloadColumn,
            Progress,
            SpinnerColumn,
            TextColumn,
            TransferSpeedColumn,
        )

        columns = (
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            DownloadColumn(binary_units=True),
            TransferSpeedColumn(),
        )
        with Progress(*columns, console=self._console, transient=True) as progress:
            task = progress.add_task(what, total=total_bytes)
            yield lambda done: progress.update(task, completed=done)


def _console() -> Console:
    from rich.console import Console

    return Console(stderr=True, highlight=False)


async def _refresh(show: Callable[[int], None], done_bytes: Callable[[], int]) -> None:
    while True:
        show(done_bytes())
        await trio.sleep(_REFRESH_S)


def human(count: float) -> str:
    """Bytes for people: `12.3 MiB`."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"
