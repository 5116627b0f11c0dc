"""Waiting for the store: for room in memory, a commit, a read; and when to wait no longer.

A store can hang: a server that is gone, a network that drops packets. Whoever waits here is
let go with an error when nothing at all has got done in the store for a while, or when somebody
calls the checkpoint off. The thread that hangs is left to itself.
"""

from __future__ import annotations

import contextlib
import errno
import math
import time
from collections.abc import Callable, Iterator
from typing import Final, TypeVar

import trio

from cedanafs.errors import CedanaFsError, StoreError
from cedanafs.shard.lanes import ABANDON_S, Lanes
from cedanafs.shard.log import Log
from cedanafs.shard.reader import Reader

T = TypeVar("T")

SLOW_S: Final = 1.0
"""A store that did nothing for so long while somebody waited is taken to hang, if called off."""


class Patience:
    """The waits of one mount: each ends *timeout_s* after the store's last sign of life."""

    def __init__(self, lanes: Lanes, reader: Reader, timeout_s: float) -> None:
        self._lanes = lanes
        self._timeout_s = timeout_s or math.inf
        self._alive_at = time.monotonic()
        self._waits: dict[trio.CancelScope, Log | None] = {}
        self._room = trio.lowlevel.ParkingLot()
        self._token = trio.lowlevel.current_trio_token()
        lanes.on_progress = reader.on_progress = self._progress

    async def reserve(self, log: Log, length: int) -> None:
        """Wait until *length* bytes of the budget are taken. Raises: the log's failure."""
        with self.wait(log):
            while not self._lanes.try_reserve(length):
                log.check()
                await self._room.park()

    async def on_thread(self, log: Log | None, job: Callable[[], T]) -> T:
        """What *job* returns, which blocks in the store. Raises: what it raises, or ETIMEDOUT."""
        with self.wait(log):
            return await trio.to_thread.run_sync(job, abandon_on_cancel=True)
        raise AssertionError("a wait that was given up raises")

    @contextlib.contextmanager
    def wait(self, log: Log | None) -> Iterator[None]:
        """Around a wait for the store, on behalf of *log* if it is that of a writer.

        Raises: StoreError(ETIMEDOUT), which sticks to *log*; what *log* failed with meanwhile.
        """
        # Shielded: a thread must not go on with a log that somebody else works with already.
        scope = trio.CancelScope(deadline=self._deadline(), shield=True)
        self._waits[scope] = log
        try:
            with scope:
                yield
        finally:
            del self._waits[scope]
        if scope.cancelled_caught:
            if log is not None and log.failure is not None:  # called off
                raise log.failure
            self._lanes.abandoned = True
            silent = StoreError(
                f"the store has not answered for {self._timeout_s:.0f} s (--store-timeout)",
                os_errno=errno.ETIMEDOUT,
            )
            if log is not None:
                log.fail(silent)
            raise silent

    async def let_go(self, job: Callable[[], None]) -> None:
        """Do *job*, which only gives back what nobody needs: waited for while the store answers."""
        with trio.move_on_after(ABANDON_S if self._lanes.abandoned else math.inf, shield=True):
            await trio.to_thread.run_sync(job, abandon_on_cancel=True)

    def call_off(self, log: Log, why: CedanaFsError) -> None:
        """Fail *log*, and with it whoever waits on its behalf."""
        log.fail(why)
        waits = [scope for scope, waiting in self._waits.items() if waiting is log]
        if waits and time.monotonic() > self._alive_at + SLOW_S:
            self._lanes.abandoned = True
        for scope in waits:
            scope.cancel()

    def _deadline(self) -> float:
        return trio.current_time() + (ABANDON_S if self._lanes.abandoned else self._timeout_s)

    def _progress(self) -> None:
        """On any thread: something got done in the store."""
        self._alive_at = time.monotonic()
        self._lanes.abandoned = False
        # Who waits has entered itself before it looked for room, so none is missed.
        if self._waits:
            with contextlib.suppress(trio.RunFinishedError):
                self._token.run_sync_soon(self._go_on, idempotent=True)

    def _go_on(self) -> None:
        for scope in self._waits:
            scope.deadline = self._deadline()
        self._room.unpark_all()
