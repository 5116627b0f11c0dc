"""The shards of one checkpoint that is being written: frames dealt to them in turn, and commits.

One log calls it, one call at a time. What fails on a lane has been acknowledged to a writer
already: the first failure sticks, and nothing more is taken after it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from functools import partial
from typing import Final

from cedanafs.errors import CedanaFsError, StoreError
from cedanafs.shard.appender import Appender
from cedanafs.shard.batch import Batch
from cedanafs.shard.codec import Bytes
from cedanafs.shard.extents import Frame
from cedanafs.shard.lanes import Lanes
from cedanafs.shard.spill import Spilled

logger = logging.getLogger(__name__)


class Dealer:
    """Deals to *appenders*, by shard, on *lanes*. Only `commit`, `settle` and `close` wait."""

    def __init__(self, appenders: Sequence[Appender], lanes: Lanes) -> None:
        self.appenders: Final = appenders
        self.failure: CedanaFsError | None = None
        self._lanes = lanes
        self._turn = 0

    def fail(self, exc: BaseException) -> None:
        """Take and commit nothing more: *exc*, if it is the first, sticks."""
        if self.failure is None:
            if not isinstance(exc, CedanaFsError):
                logger.error("unexpected failure while writing a shard", exc_info=exc)
                exc = StoreError(f"writing a shard failed: {exc!r}")
            self.failure = exc
            logger.error("%s: nothing more is taken for this checkpoint", exc)

    def check(self) -> None:
        """Raise the failure that a lane has found, if any."""
        if self.failure is not None:
            raise self.failure

    @property
    def first_last(self) -> bool:
        """Whether shard 0 is committed after all others, and so says that they are, too."""
        return self.appenders[0].file.whole

    def ends(self) -> list[int]:
        """How long each shard is, once it is settled."""
        return [appender.end for appender in self.appenders]

    # Frames. Each returns at once.

    def next_shard(self) -> int:
        """The next shard in turn whose queue has room; it is passed over while it is full."""
        count = len(self.appenders)
        for _ in range(count):
            shard = self._turn
            self._turn = (shard + 1) % count
            if self._lanes.has_room(shard, count):
                break
        return shard

    def deal(self, batch: Batch) -> None:
        """Let *batch* land as a frame of its shard that the next commit's index lists."""
        appender = self.appenders[batch.shard]
        appender.frames.append(batch.frame)
        appender.markers += batch.markers
        self.land(batch, batch.payload_len)

    def land(self, batch: Batch, reserved: int) -> None:
        """Compress and append *batch*, then give back *reserved* bytes of the lanes' budget."""
        appender = self.appenders[batch.shard]
        self._lanes.land(
            batch.shard,
            reserved,
            partial(self._pack, appender, batch),
            partial(self._append, appender, batch.frame),
        )

    def give_back(self, reserved: int) -> None:
        """Of what was reserved for a writer *reserved* bytes will never be dealt."""
        self._lanes.release(reserved)

    def landed(self, shard: int) -> Future[None]:
        """Done when all that was dealt to *shard* so far has landed, or failed to."""
        return self._lanes.submit(shard, lambda: None)

    def cut(self, ends: Sequence[int]) -> None:
        """Take the last commit off again, and of each shard what is behind its end in *ends*."""
        each = list(zip(self.appenders, ends, strict=True))
        gone = [self._lanes.submit(a.k, partial(a.cut_footer, end)) for a, end in each]
        for appender, end in each:
            self._lanes.submit(appender.k, partial(self._cut, appender, end, gone))

    # Commits.

    def settle(self) -> None:
        """Wait until all that was dealt has landed. Raises: what a lane has found."""
        self._on_each(lambda _: None, self.appenders)
        self.check()

    def commit(self, units: Sequence[Sequence[bytes]]) -> None:
        """Append the *units* of each shard, the last of which completes it, and make all durable.

        Raises: StoreError, or what else a lane has found.
        """
        # A footer vouches for all that precedes it, and a disk need not write in order.
        self._on_each(lambda a: a.append_index(units[a.k][:-1]), self.appenders)
        self.check()
        last = 1 if self.first_last else 0
        for appenders in filter(None, (self.appenders[last:], self.appenders[:last])):
            self._on_each(lambda a: a.append_footer(units[a.k][-1]), appenders)
            self.check()

    def close(self) -> None:
        """Wait for the lanes to be done with the shards, and close them."""
        # All first: shard 0's lock keeps the next writer out until none is written any more.
        for future in [self.landed(appender.k) for appender in self.appenders]:
            future.result()
        for appender in reversed(self.appenders):
            appender.file.close()

    def _on_each(self, job: Callable[[Appender], None], appenders: Sequence[Appender]) -> None:
        """Run *job* for each shard on its lane, all at once, and wait for the last."""

        def run(appender: Appender) -> None:
            if self.failure is None:
                job(appender)

        # The last first: s3fs with a cache, where locks are taken by path, sends all at once then.
        futures = [self._lanes.submit(a.k, partial(run, a)) for a in reversed(appenders)]
        for future in futures:
            try:
                future.result()
            except BaseException as exc:
                self.fail(exc)

    # On the lane.

    def _pack(self, appender: Appender, batch: Batch) -> Sequence[Bytes] | None:
        if self.failure is None:
            try:
                return appender.pack(batch.frame, batch.pieces, batch.header_seq)
            except BaseException as exc:
                self.fail(exc)
        return None

    def _append(self, appender: Appender, frame: Frame, packed: Sequence[Bytes] | Spilled) -> None:
        if self.failure is None:
            try:
                appender.append(frame, [packed.read()] if isinstance(packed, Spilled) else packed)
            except BaseException as exc:
                self.fail(exc)

    def _cut(self, appender: Appender, end: int, footers_gone: Sequence[Future[None]]) -> None:
        """On the lane, which waits for others; what those wait for was queued before."""
        try:
            for footer_gone in footers_gone:
                footer_gone.result()
            appender.cut(end)
        except BaseException as exc:
            self.fail(exc)
