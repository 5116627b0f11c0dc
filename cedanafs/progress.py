"""What a person sees while something takes time: one line on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import (
    AbstractAsyncContextManager,
    asynccontextmanager,
    contextmanager,
    nullcontext,
)
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Protocol

import trio

from cedanafs.errors import the_error

if TYPE_CHECKING:
    from cedanafs.terminal import Line, Terminal

_REFRESH_S: Final = 0.25


@dataclass(frozen=True, slots=True)
class Shard:
    """One shard: what of it was written or read, and how long its threads were at that."""

    bytes: int
    busy_s: float


@dataclass(frozen=True, slots=True)
class Far:
    """How far something is: `done_bytes` of images; `landed_bytes` became `stored_bytes` in the
    store; the memory for what is on its way there is full to `queue_fill`, from 0 to 1."""

    done_bytes: int = 0
    landed_bytes: int = 0
    stored_bytes: int = 0
    queue_fill: float | None = None
    shards: tuple[Shard, ...] = ()

    @property
    def ratio(self) -> float | None:
        return self.landed_bytes / self.stored_bytes if self.stored_bytes else None


HowFar = Callable[[], Awaitable[Far]]


class Report(Protocol):
    """Where the steps of a dump or restore are told."""

    @property
    def for_programs(self) -> bool:
        """Whether `tell` has anybody to tell."""

    def say(self, line: str) -> None:
        """One thing that has happened."""

    def tell(self, event: str, **details: object) -> None:
        """The same for a program; docs/watching.md has the events."""

    def watch(
        self, what: str, how_far: HowFar, total_bytes: int | None
    ) -> AbstractAsyncContextManager[None]:
        """Show how far *what* is while the block runs."""


class SilentReport:
    """Nowhere."""

    for_programs = False

    def say(self, line: str) -> None:
        pass

    def tell(self, event: str, **details: object) -> None:
        pass

    @asynccontextmanager
    async def watch(
        self, what: str, how_far: HowFar, total_bytes: int | None
    ) -> AsyncIterator[None]:
        yield


class Bar:
    """What `TerminalReport.bar` shows, or does not."""

    def __init__(self, line: Line | None) -> None:
        self._line = line

    def __call__(self, done_bytes: int) -> None:
        """So much is done."""
        self.show(Far(done_bytes))

    def show(self, far: Far) -> None:
        if self._line is not None:
            self._line.show(far.done_bytes, _more(far))

    def expect(self, total_bytes: int) -> None:
        """So much it will be, as is known now."""
        if self._line is not None:
            self._line.expect(total_bytes)


class TerminalReport:
    """Lines on stderr, and one that changes where that is a terminal; events go to *tell*."""

    def __init__(self, tell: Callable[..., None] | None = None) -> None:
        self._terminal = _terminal() if sys.stderr.isatty() else None
        self._tell = tell

    @property
    def for_programs(self) -> bool:
        return self._tell is not None

    def say(self, line: str) -> None:
        if self._terminal is not None:
            self._terminal.say(line)
        else:
            print(line, file=sys.stderr, flush=True)

    def tell(self, event: str, **details: object) -> None:
        if self._tell is not None:
            self._tell(event, **details)

    @asynccontextmanager
    async def watch(
        self, what: str, how_far: HowFar, total_bytes: int | None
    ) -> AsyncIterator[None]:
        if self._terminal is None:
            self.say(what)
        if self._terminal is None and not self.for_programs:
            yield
            return
        try:
            with self.bar(what, total_bytes) as bar:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._follow, how_far, bar, total_bytes)
                    yield
                    nursery.cancel_scope.cancel()
        except BaseExceptionGroup as group:
            raise the_error(group) from None

    @contextmanager
    def bar(self, what: str, total_bytes: int | None) -> Iterator[Bar]:
        """A line (none off a terminal); call what it yields with the bytes done so far."""
        drawn = self._terminal.line(what, total_bytes) if self._terminal else nullcontext()
        with drawn as line:
            yield Bar(line)

    async def _follow(self, how_far: HowFar, bar: Bar, total_bytes: int | None) -> None:
        for turn in range(sys.maxsize):
            far = await how_far()
            bar.show(far)
            if turn % round(1 / _REFRESH_S) == 0:
                self.tell("progress", **as_event(far), total_bytes=total_bytes)
            await trio.sleep(_REFRESH_S)


def _terminal() -> Terminal:
    from cedanafs.terminal import Terminal

    return Terminal()


def _more(far: Far) -> str:
    ratio = f"ratio {far.ratio:.1f}" if far.ratio else ""
    queue = f"queue {far.queue_fill:.0%}" if far.queue_fill is not None else ""
    return " ".join(filter(None, (ratio, queue)))


def as_event(far: Far) -> dict[str, Any]:
    """For `Report.tell`. Shards have the names of criu-image-streamer's statistics."""
    return {
        "done_bytes": far.done_bytes,
        "landed_bytes": far.landed_bytes,
        "stored_bytes": far.stored_bytes,
        "queue_fill": None if far.queue_fill is None else round(far.queue_fill, 3),
        "shards": [
            {"size": each.bytes, "transfer_duration_millis": round(each.busy_s * 1000)}
            for each in far.shards
        ],
    }


def human(count: float) -> str:
    """Bytes for people: `12.3 MiB`."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"
