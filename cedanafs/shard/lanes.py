"""Lanes: the threads that compress, checksum and touch the disk, and the memory they may hold.

One lane is one thread with one queue. A checkpoint's shard k always uses lane k (modulo their
number), so what is queued for a shard is done in order without a lock, by whichever number of
checkpoints share the lanes. Nothing here waits for the caller, and nothing of the caller's waits
here: who finds no room is told by `on_progress` when to try again.

With a spill a lane has two threads, one behind the other: the first compresses, the second
appends, and what waits between them takes half of the memory at most, and then the spill's.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from functools import partial
from typing import TypeVar

from cedanafs.shard.codec import Bytes
from cedanafs.shard.spill import Spill, Spilled
from cedanafs.shard.workers import ABANDON_S, Workers, settle

T = TypeVar("T")

logger = logging.getLogger(__name__)


class _Lane(Workers):
    def __init__(self, number: int, *, spills: bool) -> None:
        super().__init__(1, name=f"cedanafs-lane-{number}")
        self.queued_bytes = 0
        self.appends = Workers(1, name=f"cedanafs-append-{number}") if spills else self

    def end(self, deadline: float | None = None, *, drop_queued: bool = False) -> bool:
        ended = super().end(deadline, drop_queued=drop_queued)
        return ended and (self.appends is self or self.appends.end(deadline))


class Lanes:
    """*count* threads, and *budget_bytes* of written data that may be on its way to disk.

    Behind that *upload_bytes* of compressed data may be on their way to an object store, for each
    checkpoint that is written. What a slow store has not taken when half of the budget is
    compressed goes to *spill*, if there is one.

    Use as a context manager: leaving it does what is queued and ends the threads, or gives up
    on them when they were `abandoned`, as the store hangs. `on_progress` is called, on any
    thread, whenever a job is done and bytes are given back.
    """

    def __init__(
        self,
        count: int,
        *,
        budget_bytes: int,
        upload_bytes: int = 0,
        spill: Spill | None = None,
    ) -> None:
        self.budget_bytes = budget_bytes
        self.upload_bytes = upload_bytes
        self.landed_bytes = 0
        self.stored_bytes = 0  # what became of them
        self.frames = 0
        self._spill = spill
        self._packed_bytes = 0  # compressed, in memory, and not appended yet
        self._saved_bytes = 0  # that what was compressed takes less in memory than when written
        self.on_progress: Callable[[], None] = lambda: None
        self.abandoned = False
        self._in_use = 0
        self._lock = threading.Lock()
        self._lanes = [_Lane(k, spills=spill is not None) for k in range(count)]

    def __enter__(self) -> Lanes:
        return self

    def __exit__(self, *_: object) -> None:
        deadline = time.monotonic() + ABANDON_S if self.abandoned else None
        if not all([lane.end(deadline) for lane in self._lanes]):
            logger.error("the store has not answered to the end: what it held up is lost")

    @property
    def in_use_bytes(self) -> int:
        """Bytes reserved and not yet released."""
        return self._in_use

    def try_reserve(self, length: int) -> bool:
        """Take *length* bytes of the budget if they are to be had now.

        A request larger than the whole budget gets it when nothing else is in use.
        """
        with self._lock:
            if not self.has_budget(length):
                return False
            self._in_use += length
            return True

    def has_budget(self, length: int) -> bool:
        """What `try_reserve` would say now, if nobody else takes some."""
        return not self._in_use or self._in_use + length <= self.budget_bytes

    def release(self, length: int) -> None:
        with self._lock:
            self._in_use -= length
        self.on_progress()

    def has_room(self, shard: int, shards: int) -> bool:
        """Whether the shard's queue holds less than its share, for dealing past a full one."""
        return self._of(shard).queued_bytes < self.budget_bytes // max(shards, 1)

    def land(
        self,
        shard: int,
        length: int,
        pack: Callable[[], Sequence[Bytes] | None],
        append: Callable[[Sequence[Bytes] | Spilled], None],
    ) -> None:
        """Do *pack* on the shard's lane, and *append* with what it made, if it made something;
        then give *length* bytes back. Neither may raise.
        """
        lane = self._of(shard)

        def run() -> None:
            stored = 0
            try:
                if (packed := pack()) is not None:
                    append(packed)
                    stored = sum(map(len, packed))
            finally:
                with self._lock:
                    self.stored_bytes += stored
                    self.frames += stored > 0
                    lane.queued_bytes -= length
                    self._in_use -= length
                    self.landed_bytes += length
                self.on_progress()

        with self._lock:
            lane.queued_bytes += length
        if self._spill is None:
            lane.put(run)
        else:
            lane.put(partial(self._pack, self._spill, lane, length, pack, append))

    def submit(self, shard: int, job: Callable[[], T]) -> Future[T]:
        """Do *job* on the shard's lane, after all that is queued there."""
        lane = self._of(shard)
        future: Future[T] = Future()
        future.add_done_callback(lambda _: self.on_progress())
        settled = partial(settle, future, job)
        lane.put(settled if lane.appends is lane else lambda: lane.appends.put(settled))
        return future

    def queued_bytes(self) -> list[int]:
        """What each lane has before it, of what was written."""
        return [lane.queued_bytes for lane in self._lanes]

    @property
    def written_bytes(self) -> int:
        """Bytes that were ever taken from writers, whether landed or on their way."""
        return self.landed_bytes + self._in_use + self._saved_bytes

    # With a spill.

    def _pack(
        self,
        spill: Spill,
        lane: _Lane,
        length: int,
        pack: Callable[[], Sequence[Bytes] | None],
        append: Callable[[Sequence[Bytes] | Spilled], None],
    ) -> None:
        """On the lane's first thread."""
        packed = pack()
        held: Sequence[Bytes] | Spilled = packed or []
        kept = sum(map(len, packed or []))
        if packed is not None and self._packed_bytes + kept > self.budget_bytes // 2:
            spilled = spill.put(packed)
            if spilled is not None:
                held, kept = spilled, 0
        with self._lock:
            lane.queued_bytes -= length
            self._in_use -= length - kept
            self._packed_bytes += kept
            self._saved_bytes += length - kept
        self.on_progress()
        lane.appends.put(partial(self._append, held, kept, length, append))

    def _append(
        self,
        held: Sequence[Bytes] | Spilled,
        kept: int,
        length: int,
        append: Callable[[Sequence[Bytes] | Spilled], None],
    ) -> None:
        """On its second."""
        stored = held.length if isinstance(held, Spilled) else sum(map(len, held))
        if held:
            append(held)
        if isinstance(held, Spilled):
            held.give_back()
        with self._lock:
            self.stored_bytes += stored
            self.frames += stored > 0
            self._in_use -= kept
            self._packed_bytes -= kept
            self._saved_bytes -= length - kept
            self.landed_bytes += length
        self.on_progress()

    def _of(self, shard: int) -> _Lane:
        return self._lanes[shard % len(self._lanes)]
