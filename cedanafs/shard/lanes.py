"""Lanes: the threads that compress, checksum and touch the disk, and the memory they may hold.

One lane is one thread with one queue. A checkpoint's shard k always uses lane k (modulo their
number), so what is queued for a shard is done in order without a lock, by whichever number of
checkpoints share the lanes. Nothing here waits for the caller, and nothing of the caller's waits
here: who finds no room is told by `on_progress` when to try again.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Final, TypeVar

T = TypeVar("T")

logger = logging.getLogger(__name__)

ABANDON_S: Final = 2.0
"""How long the end waits for a thread that a dead store may hold for ever."""


class Workers:
    """*count* threads that do jobs in the order in which they come.

    They are daemons: a store that never answers must not keep the process from ending.
    """

    def __init__(self, count: int, *, name: str) -> None:
        self._jobs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._name = name
        self._threads: list[threading.Thread] = []
        self.grow(count)

    def grow(self, count: int) -> None:
        """Have *count* threads from now on, if there are fewer."""
        while (number := len(self._threads)) < count:
            name = f"{self._name}-{number}"
            thread = threading.Thread(target=self._run, name=name, daemon=True)
            self._threads.append(thread)
            thread.start()

    def put(self, job: Callable[[], None]) -> None:
        """Do *job*, which must not raise."""
        self._jobs.put(job)

    def submit(self, job: Callable[[], T]) -> Future[T]:
        """Do *job*; its result or exception is the future's."""
        future: Future[T] = Future()
        self.put(lambda: settle(future, job))
        return future

    def end(self, deadline: float | None = None, *, drop_queued: bool = False) -> bool:
        """Let the threads end behind what is queued; whether they did by *deadline*."""
        with contextlib.suppress(queue.Empty):
            while drop_queued:
                self._jobs.get_nowait()
        for _ in self._threads:
            self._jobs.put(None)
        for thread in self._threads:
            thread.join(None if deadline is None else max(deadline - time.monotonic(), 0))
        return not any(thread.is_alive() for thread in self._threads)

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            job()
            del job  # its buffers go back before the next is waited for


class _Lane(Workers):
    def __init__(self, number: int) -> None:
        super().__init__(1, name=f"cedanafs-lane-{number}")
        self.queued_bytes = 0


class Lanes:
    """*count* threads, and *budget_bytes* of written data that may be on its way to disk.

    Behind that *upload_bytes* of compressed data may be on their way to an object store, for each
    checkpoint that is written.

    Use as a context manager: leaving it does what is queued and ends the threads, or gives up
    on them when they were `abandoned`, as the store hangs. `on_progress` is called, on any
    thread, whenever a job is done and bytes are given back.
    """

    def __init__(self, count: int, *, budget_bytes: int, upload_bytes: int = 0) -> None:
        self.budget_bytes = budget_bytes
        self.upload_bytes = upload_bytes
        self.landed_bytes = 0
        self.on_progress: Callable[[], None] = lambda: None
        self.abandoned = False
        self._in_use = 0
        self._lock = threading.Lock()
        self._lanes = [_Lane(k) for k in range(count)]

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
            if self._in_use and self._in_use + length > self.budget_bytes:
                return False
            self._in_use += length
            return True

    def release(self, length: int) -> None:
        with self._lock:
            self._in_use -= length
        self.on_progress()

    def has_room(self, shard: int, shards: int) -> bool:
        """Whether the shard's queue holds less than its share, for dealing past a full one."""
        return self._of(shard).queued_bytes < self.budget_bytes // max(shards, 1)

    def land(self, shard: int, length: int, job: Callable[[], None]) -> None:
        """Do *job*, which must not raise, on the shard's lane; then give *length* bytes back."""
        lane = self._of(shard)

        def run() -> None:
            try:
                job()
            finally:
                with self._lock:
                    lane.queued_bytes -= length
                    self._in_use -= length
                    self.landed_bytes += length
                self.on_progress()

        with self._lock:
            lane.queued_bytes += length
        lane.put(run)

    def submit(self, shard: int, job: Callable[[], T]) -> Future[T]:
        """Do *job* on the shard's lane, after all that is queued there."""
        future = self._of(shard).submit(job)
        future.add_done_callback(lambda _: self.on_progress())
        return future

    def _of(self, shard: int) -> _Lane:
        return self._lanes[shard % len(self._lanes)]


def settle(future: Future[T], job: Callable[[], T]) -> None:
    """Do *job*; its result or exception is the future's."""
    try:
        result = job()
    except BaseException as exc:
        future.set_exception(exc)
    else:
        future.set_result(result)
