"""How many reads a store should have under way at a time: found out, not set.  PURE."""

from __future__ import annotations

from typing import Final

SLOW_S: Final = 0.005
"""A read that takes longer may come from afar."""

CONVINCED: Final = 8
"""Or else the machine is busy: then one of so many in a row takes less."""

QUEUED: Final = 3
"""A read that took so many times what such a read can take has waited for others."""

FAR_READS: Final = 16
"""Where a bucket is read, to begin with; if it answers at once, a few reads show it."""

MAX_READS: Final = 64


class Window:
    """As many reads as fill bandwidth times delay, which shows in how long they take.

    With too few under way each takes as long as it would alone: then one more. With too many they
    wait for one another: then one less. Reads are compared with others of about their length. A
    store that answers at once needs no more than *least*.
    """

    def __init__(self, least: int) -> None:
        self.least = least
        self.reads = least
        self._begun = False
        self._long_in_a_row = 0
        self._begun_before = 0
        self._quickest: dict[int, float] = {}

    def begin_far(self) -> None:
        """Expect a store that takes its time, if nothing was read yet."""
        if not self._begun:
            self._begun = True
            self.reads = max(self.reads, FAR_READS)

    @property
    def slow(self) -> bool:
        """Whether the store takes its time, so that more has to be asked of it at once."""
        return self.reads > self.least

    def note(self, length: int, took_s: float, *, full: bool) -> None:
        """A read of *length* bytes *took_s*; *full*: as many as may be were under way."""
        self._begun = True
        self._begun_before = max(self._begun_before - 1, 0)
        if took_s <= SLOW_S:
            self._long_in_a_row = 0
            self.reads = max(self.reads // 2, self.least)
            return
        self._long_in_a_row += 1
        alike = length.bit_length()
        quickest = self._quickest[alike] = min(took_s, self._quickest.get(alike, took_s))
        if took_s >= QUEUED * quickest:
            # Whether that helps the reads tell that are begun from now on. If each that is under
            # way took one away, too, next to none would be left.
            if not self._begun_before:
                self._begun_before = self.reads
                self.reads = max(self.reads - 1, self.least)
        elif full and self._long_in_a_row >= CONVINCED:
            self.reads = min(self.reads + 1, max(MAX_READS, self.least))
