"""Lanes: the threads that compress, checksum and touch the disk, and the memory they may hold.

One lane is one thread with one queue. A checkpoint's shard k always uses lane k (modulo their
number), so what is queued for a shard is done in order without a lock, by whichever number of
checkpoints share the lanes. Nothing here waits for the caller; only `reserve` makes it wait.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

T = TypeVar("T")


class _Lane:
    def __init__(self, name: str) -> None:
        self.queued_bytes = 0
        self._jobs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def put(self, job: Callable[[], None] | None) -> None:
        self._jobs.put(job)

    def join(self) -> None:
        self._jobs.put(None)
        self._thread.join()

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            job()
            del job  # its buffers go back before the next is waited for


class Lanes:
    """*count* threads, and *budget_bytes* of written data that may be on its way to disk.

    Use as a context manager: leaving it runs what is queued and ends the threads.
    """

    def __init__(self, count: int, *, budget_bytes: int) -> None:
        self.budget_bytes = budget_bytes
        self.landed_bytes = 0
        self._in_use = 0
        self._changed = threading.Condition()
        self._lanes = [_Lane(f"cedanafs-lane-{k}") for k in range(count)]

    def __enter__(self) -> Lanes:
        return self

    def __exit__(self, *_: object) -> None:
        for lane in self._lanes:
            lane.join()

    @property
    def in_use_bytes(self) -> int:
        """Bytes reserved and not yet released."""
        return self._in_use

    def try_reserve(self, length: int) -> bool:
        """Take *length* bytes of the budget if they are to be had now.

        A request larger than the whole budget gets it when nothing else is in use.
        """
        with self._changed:
            if self._in_use and self._in_use + length > self.budget_bytes:
                return False
            self._in_use += length
            return True

    def reserve(self, length: int) -> None:
        """Like `try_reserve`, waiting for it. This is the back-pressure."""
        with self._changed:
            self._changed.wait_for(
                lambda: not self._in_use or self._in_use + length <= self.budget_bytes
            )
            self._in_use += length

    def release(self, length: int) -> None:
        with self._changed:
            self._in_use -= length
            self._changed.notify_all()

    def has_room(self, shard: int, shards: int) -> bool:
        """Whether the shard's queue holds less than its share, for dealing past a full one."""
        return self._of(shard).queued_bytes < self.budget_bytes // max(shards, 1)

    def land(self, shard: int, length: int, job: Callable[[], None]) -> None:
        """Run *job*, which must not raise, on the shard's lane; then give *length* bytes back."""
        lane = self._of(shard)

        def run() -> None:
            try:
                job()
            finally:
                with self._changed:
                    lane.queued_bytes -= length
                    self._in_use -= length
                    self.landed_bytes += length
                    self._changed.notify_all()

        with self._changed:
            lane.queued_bytes += length
        lane.put(run)

    def submit(self, shard: int, job: Callable[[], T]) -> Future[T]:
        """Run *job* on the shard's lane, after all that is queued there."""
        future: Future[T] = Future()

        def run() -> None:
            try:
                result = job()
            except BaseException as exc:
                future.set_exception(exc)
            else:
                future.set_result(result)

        self._of(shard).put(run)
        return future

    def _of(self, shard: int) -> _Lane:
        return self._lanes[shard % len(self._lanes)]
