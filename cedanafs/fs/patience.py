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
from dataclasses import dataclass
from typing import Final, TypeVar

import trio

from cedanafs.errors import CedanaFsError, StoreError
from cedanafs.fs.namespace import Directory
from cedanafs.shard.lanes import Lanes
from cedanafs.shard.log import Log
from cedanafs.shard.reader import Reader
from cedanafs.shard.workers import ABANDON_S

T = TypeVar("T")

SLOW_S: Final = 1.0
"""A store that did nothing for so long while somebody waited is taken to hang, if called off."""


@dataclass(slots=True, eq=False)
class _Wait:
    scope: trio.CancelScope
    directory: Directory | None
    begun_at: float
    why: CedanaFsError | None = None


class Patience:
    """The waits of one mount: each ends *timeout_s* after the store's last sign of life."""

    def __init__(
        self, lanes: Lanes, reader: Reader, timeout_s: float, nursery: trio.Nursery
    ) -> None:
        self._lanes = lanes
        self._timeout_s = timeout_s
        self._nursery = nursery
        self._alive_at = time.monotonic()
        self._waits: set[_Wait] = set()
        self._watched = False
        self._in_need = 0  # writers who want room
        self._room = trio.lowlevel.ParkingLot()
        self._token = trio.lowlevel.current_trio_token()
        lanes.on_progress = reader.on_progress = self._progress

    async def reserve(self, directory: Directory, log: Log, length: int) -> None:
        """Wait until *length* bytes of the budget are taken. Raises: the log's failure."""
        self._in_need += 1
        try:
            with self.wait(directory):
                while not self._lanes.try_reserve(length):
                    log.check()
                    await self._room.park()
        finally:
            self._in_need -= 1

    async def on_thread(self, directory: Directory | None, job: Callable[[], T]) -> T:
        """What *job* returns, which blocks in the store. Raises: what it raises, or ETIMEDOUT."""
        with self.wait(directory):
            return await trio.to_thread.run_sync(job, abandon_on_cancel=True)
        raise AssertionError("a wait that was given up raises")

    @contextlib.contextmanager
    def wait(self, directory: Directory | None) -> Iterator[None]:
        """Around a wait for the store, on behalf of *directory* if it is one checkpoint's.

        Raises: StoreError(ETIMEDOUT), or why it was called off; it sticks to what is written.
        """
        # Shielded: a thread must not go on with a log that somebody else works with already.
        scope = trio.CancelScope(shield=True)
        if self._lanes.abandoned:
            scope.deadline = trio.current_time() + ABANDON_S
        wait = _Wait(scope, directory, time.monotonic())
        self._waits.add(wait)
        if self._timeout_s and not self._watched:
            self._watched = True
            self._nursery.start_soon(self._watch)
        try:
            with wait.scope:
                yield
        finally:
            self._waits.remove(wait)
        if wait.scope.cancelled_caught:
            if wait.why is None:
                self._lanes.abandoned = True
                wait.why = StoreError(
                    f"the store has not answered for {self._timeout_s:.0f} s (--store-timeout)",
                    os_errno=errno.ETIMEDOUT,
                )
            if directory is not None and directory.log is not None:
                directory.log.fail(wait.why)
            raise wait.why

    async def let_go(self, job: Callable[[], None], *, failed: bool) -> None:
        """Do *job*, which closes what nobody needs any more: waited for while the store answers.

        Of what has *failed* or was called off nothing is left to do but what a thread is at.
        """
        soon = failed or self._lanes.abandoned
        wait_s = ABANDON_S if soon else self._timeout_s or math.inf
        with trio.move_on_after(wait_s, shield=True) as scope:
            await trio.to_thread.run_sync(job, abandon_on_cancel=True)
        if scope.cancelled_caught:
            # Other shards have got their part of it done meanwhile: no sign of life of this one.
            self._lanes.abandoned = True

    def call_off(self, directory: Directory, why: CedanaFsError) -> None:
        """Fail what is written into *directory*, and with it whoever waits on its behalf."""
        if directory.log is not None:
            directory.log.fail(why)
        waits = [wait for wait in self._waits if wait.directory is directory]
        if waits and time.monotonic() > self._alive_at + SLOW_S:
            self._lanes.abandoned = True
        for wait in waits:
            wait.why = why
            wait.scope.cancel()

    async def _watch(self) -> None:
        """Let go of who waits for a store that hangs; here as long as anybody waits."""
        try:
            while self._waits:
                await trio.sleep(self._timeout_s / 8)
                now = time.monotonic()
                for wait in self._waits:
                    if now - max(self._alive_at, wait.begun_at) > self._timeout_s:
                        wait.scope.cancel()
        finally:
            self._watched = False

    def _progress(self) -> None:
        """On any thread: something got done in the store."""
        self._alive_at = time.monotonic()
        self._lanes.abandoned = False
        # Who wants room says so before looking for it, so none is missed.
        if self._in_need:
            with contextlib.suppress(trio.RunFinishedError):
                self._token.run_sync_soon(self._room.unpark_all, idempotent=True)
