"""What befalls an operation on a store, and when."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

ANY: Final = "any"


@dataclass(frozen=True, slots=True)
class Fault:
    """What befalls operations of one kind, a handler's name below, or of any kind.

    After the first *after* of them, and after *after_bytes* of data for reads and writes (the
    one that crosses the line is cut short there), each waits *delay_s*, hangs, if *hang*, then
    fails with *error*, if not 0, or takes no more than *short* bytes, if not 0. No more than
    *times*, if not 0; only where *where* is in the path, `/x/img-0`; not before *after_fsyncs* of
    such files.
    """

    operation: str
    error: int = 0
    short: int = 0
    hang: bool = False
    delay_s: float = 0
    after: int = 0
    after_bytes: int = 0
    after_fsyncs: int = 0
    times: int = 0
    where: str = ""


@dataclass(slots=True)
class Seen:
    """Operations so far by kind, their bytes, and how many of a kind there were at once.

    Which of them met the faults of now; how many hang now.
    """

    operations: dict[str, int] = field(default_factory=dict)
    lengths: dict[str, int] = field(default_factory=dict)
    at_once: dict[str, int] = field(default_factory=dict)
    met: list[str] = field(default_factory=list)
    hanging: int = 0


class Armed:
    """A fault on the watch."""

    def __init__(self, fault: Fault) -> None:
        self.fault = fault
        self._matched = self._bytes = self._fsyncs = self._hits = 0

    def let_through(self, operation: str, path: str, length: int) -> int | None:
        """How many of *length* bytes pass unharmed, None for all of the operation."""
        fault = self.fault
        if fault.where not in path:
            return None
        fsyncs, self._fsyncs = self._fsyncs, self._fsyncs + (operation == "fsync")
        if fault.operation not in (operation, ANY) or fsyncs < fault.after_fsyncs:
            return None
        if fault.times and self._hits == fault.times:
            return None
        self._matched += 1
        left = fault.after_bytes - self._bytes
        self._bytes += max(min(length, left), 0)
        if self._matched <= fault.after or (left and left >= length):
            return None
        if not left:  # what only ends at the line is no hit yet
            self._hits += 1
        return left
