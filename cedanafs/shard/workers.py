"""Threads that do jobs in the order in which they come."""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Final, TypeVar

T = TypeVar("T")

ABANDON_S: Final = 2.0
"""How long the end waits for a thread that a dead store may hold for ever."""


class Workers:
    """*count* threads with one queue.

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


def settle(future: Future[T], job: Callable[[], T]) -> None:
    """Do *job*; its result or exception is the future's."""
    try:
        result = job()
    except BaseException as exc:
        future.set_exception(exc)
    else:
        future.set_result(result)
