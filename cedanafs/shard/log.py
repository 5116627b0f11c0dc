"""The log of a checkpoint that is being written: records → frames → shards, and commits.

The caller serialises all calls of one log. None of them waits, but for `complete_commit`,
`seal` and `close`. What a record says is applied to the contents as soon as it is made; its
frame lands later. A failure found on a lane is kept, and raised by every later call.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from functools import partial
from typing import Any, Final
from uuid import UUID

from cedanafs import __version__
from cedanafs.errors import CedanaFsError, StoreError
from cedanafs.shard.appender import Appender, ShardFigures
from cedanafs.shard.batch import Batch
from cedanafs.shard.codec import Bytes, Codec
from cedanafs.shard.commit import Base, Index, digest_of, units_of_commit
from cedanafs.shard.contents import Contents, Image, Pending, hidden_name
from cedanafs.shard.extents import Frame
from cedanafs.shard.format import Carrier
from cedanafs.shard.lanes import Lanes
from cedanafs.shard.pages import Pages
from cedanafs.shard.records import Marker
from cedanafs.shard.spill import Spilled
from cedanafs.shard.store import ShardFile

logger = logging.getLogger(__name__)

FRAME_BYTES: Final = 1 << 20
"""Payload at which a frame is full: what CRIU's splices arrive in.

A run of a file ends at a multiple of it, as the kernel's reads do: each is then all of one frame,
and is answered from where it was decoded to.
"""

LOOSE_BYTES: Final = 4 << 20
"""Written bytes of unfinished runs that may wait in memory, per checkpoint."""


class Log:
    """Appends to the N shards of one checkpoint, and keeps *contents* in step."""

    def __init__(
        self,
        contents: Contents,
        appenders: list[Appender],
        codec: Codec,
        lanes: Lanes,
        *,
        checkpoint: UUID,
        created_ns: int,
        committed_ns: int | None = None,
        commit: int = 0,
        next_seq: int = 0,
        base: Base | None = None,
        pages: Pages | None = None,
    ) -> None:
        self.contents = contents
        self.failure: CedanaFsError | None = None
        self._appenders = appenders
        self._carrier = Carrier(codec)
        self._lanes = lanes
        self._checkpoint = checkpoint
        self._created_ns = created_ns
        self._committed_ns = committed_ns  # None: now, whenever that is
        self._commit = commit
        self._seq = next_seq
        self._turn = 0
        self._open: Batch | None = None  # small records, waiting to be a frame
        self._runs: dict[Image, None] = {}  # images with a pending run, oldest first
        self._run_bytes = 0
        self._touched: dict[Image, None] = {}
        self._unlinked = 0
        self._base = base
        self.pages = pages  # None: nothing is compared with a base
        self.removed: set[str] = set()  # names that the last commit may still have
        self._uncommitted = False
        self._unfinished = contents.unfinished()  # as the last commit says
        self._sealed_from: tuple[int, list[int]] | None = None  # seq and shards' ends without it

    @classmethod
    def create(
        cls,
        files: list[ShardFile],
        codec: Codec,
        lanes: Lanes,
        base: Base | None = None,
        base_contents: Contents | None = None,
        pages: Pages | None = None,
        dated: tuple[int, int] | None = None,
    ) -> Log:
        """The log of a new checkpoint on empty shards, which may refer to a base.

        *dated*: when it was made and committed, where that was not now.
        """
        contents = Contents()
        contents.base = base_contents
        checkpoint = UUID(bytes=os.urandom(16), version=4)
        carrier = Carrier(codec)
        appenders = [Appender(k, file, carrier, checkpoint) for k, file in enumerate(files)]
        return cls(
            contents,
            appenders,
            codec,
            lanes,
            checkpoint=checkpoint,
            created_ns=dated[0] if dated else time.time_ns(),
            committed_ns=dated[1] if dated else None,
            base=base,
            pages=pages,
        )

    # Changes. Each returns at once.

    def fail(self, exc: BaseException) -> None:
        """Take and commit nothing more for this checkpoint: *exc*, if it is the first, sticks."""
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
    def dirty(self) -> bool:
        """Whether something was written that no commit covers."""
        return self._uncommitted or bool(self._runs) or bool(self._touched)

    def create_image(self, name: str, *, mode: int, uid: int, gid: int) -> Image:
        self.check()
        now = time.time_ns()
        self._record(name, mode=mode, uid=uid, gid=gid, mtime_ns=now)
        return self.contents.images[name]

    def symlink(self, name: str, target: str, *, uid: int, gid: int) -> Image:
        self.check()
        now = time.time_ns()
        self._record(name, mode=0o777, uid=uid, gid=gid, mtime_ns=now, symlink_to=target)
        return self.contents.images[name]

    def write(self, image: Image, offset: int, data: bytes) -> None:
        """Take *data* for *image* at *offset*; its length was reserved at the lanes before.

        *data* is kept, not copied, and reads see it from now on.
        """
        self.touch(image)
        image.mtime_ns = time.time_ns()
        left = memoryview(data)
        while left:
            piece = left[: FRAME_BYTES - offset % FRAME_BYTES]
            self._take(image, offset, piece)
            offset += len(piece)
            left = left[len(piece) :]
        if self._run_bytes > LOOSE_BYTES:
            self.flush()

    def truncate(self, image: Image, size: int) -> None:
        self.check()
        self._finish_run(image)
        if size != image.size:
            self._record(image.name, truncate=size)
        if size == 0:
            image.unfinished = False
        self.touch(image)
        image.mtime_ns = time.time_ns()

    def unlink(self, image: Image, *, still_open: bool) -> None:
        """Remove the name. A file that is still open lives on under a hidden one."""
        self.check()
        self.removed.add(image.name)
        if still_open:
            self._unlinked += 1
            self._record(image.name, rename_to=hidden_name(self._unlinked))
            return
        self._drop_run(image)
        self._touched.pop(image, None)
        self._record(image.name, unlink=True)

    def forget(self, image: Image) -> None:
        """Remove the name after a failure, when nothing can be recorded any more."""
        self.removed.add(image.name)
        del self.contents.images[image.name]

    def rename(self, image: Image, name: str) -> None:
        """Give *image* another name; what had that name is gone."""
        self.check()
        if (replaced := self.contents.images.get(name)) is not None:
            self.unlink(replaced, still_open=False)
        self.removed.add(image.name)
        self._record(image.name, rename_to=name)

    def touch(self, image: Image) -> None:
        """*image* has another mode, owner or time now: the next commit records it."""
        self.check()
        self._touched[image] = None

    def figures(self) -> tuple[ShardFigures, ...]:
        """Its shards as they are at the moment."""
        return tuple(appender.figures() for appender in self._appenders)

    def flush(self) -> None:
        """Let go of all that waits in memory to be packed with more."""
        for image in list(self._runs):
            self._finish_run(image)
        self._deal_open()

    def wait_for(self, frame: Frame) -> Future[None] | None:
        """Done when *frame* has landed or failed to; None when it has landed already."""
        if frame.landed:
            return None
        if self._open is not None and self._open.frame is frame:
            self._deal_open()
        return self._lanes.submit(frame.shard, lambda: None)

    # Commit.

    def prepare_commit(self, being_written: Iterable[str] = ()) -> None:
        """Deal all that a commit has to cover.

        It says which images it may hold only in part: those *being_written*, by name, and those
        that were when an earlier server died.
        """
        self.check()
        for image in list(self._runs):
            self._finish_run(image)
        for image in self._touched:
            self._record(
                image.name,
                mode=image.mode,
                uid=image.uid,
                gid=image.gid,
                mtime_ns=image.mtime_ns,
            )
        self._touched.clear()
        self._deal_open()
        unfinished = sorted({*self.contents.unfinished(), *being_written})
        if unfinished != self._unfinished:
            self._unfinished = unfinished
            self._uncommitted = True

    def drop_base(self) -> None:
        """The next commit names no base: nothing of the contents refers to one any more."""
        self._base = self.contents.base = self.pages = None
        self._uncommitted = True

    def identity(self) -> str:
        """What `digest_of` says of all that was committed."""
        return digest_of((a.frames, bytes(a.markers)) for a in self._appenders)

    def complete_commit(self) -> None:
        """Make all that was dealt durable, and its index, on every shard; then the footers.

        Blocks; nothing else of this log may be called meanwhile.
        Raises: StoreError, or what else a lane has found; it sticks to the log.
        """
        self.check()
        if self._uncommitted:
            self._on_each(lambda _: None)  # landed: where they end is known
            content_ends = [appender.end for appender in self._appenders]
            self._append_commit(self._seq, content_ends, sealed=False)
            self._uncommitted = False
            self.removed.clear()

    def seal(self) -> None:
        """Say to other readers of the stream that the image ends: file_eof, image_eof.

        A commit of its own, after `complete_commit`, that adds no content: whoever writes next
        cuts it off again, and is left with the commit before. Blocks, like `complete_commit`.
        """
        self.check()
        if not self.contents.images or self._sealed_from is not None:
            return
        content_seq = self._seq
        content_ends = [appender.end for appender in self._appenders]
        first = self._appenders[0]
        batch = self._batch(first.k)
        for name in self.contents.images:
            if batch.frame.raw_len >= FRAME_BYTES:
                self._land(first, batch, 0)
                batch = self._batch(first.k)
            batch.add(Marker(seq=self._next_seq(), filename=name))
            batch.add(Marker(seq=self._next_seq(), file_eof=True))
        if self._carrier.codec.hides:
            batch.add(Marker(seq=self._next_seq(), image_eof=True))
        self._land(first, batch, 0)
        self._on_each(lambda _: None)
        self._append_commit(content_seq, content_ends, sealed=True)
        self._sealed_from = content_seq, content_ends

    def close(self) -> None:
        """Wait for the lanes to be done with the shards, and close them."""
        for image in list(self._runs):
            self._drop_run(image)
        if self._open is not None:
            self._lanes.release(self._open.payload_len)
            self._open = None
        # All first: shard 0's lock keeps the next writer out until none is written any more.
        self._on_each(lambda _: None, even_if_failed=True)
        for appender in reversed(self._appenders):
            appender.file.close()

    # Records, batches, dealing.

    def _take(self, image: Image, offset: int, data: Bytes) -> None:
        """Add *data*, which crosses no multiple of FRAME_BYTES, to the image's pending run."""
        if image.pending is not None and image.pending.end != offset:
            self._finish_run(image)
        if image.pending is None:
            image.pending = Pending(offset)
            self._runs[image] = None
        image.pending.add(data)
        self._run_bytes += len(data)
        if image.pending.end % FRAME_BYTES == 0:
            self._finish_run(image)

    def _next_seq(self) -> int:
        seq = self._seq
        self._seq += 1
        return seq

    def _record(self, name: str, **change: Any) -> None:
        """Make a record about *name*, in the batch of small records."""
        batch = self._open = self._open or self._batch(self._next_shard())
        self._add(batch, Marker(seq=self._next_seq(), filename=name, **change))
        if batch.frame.raw_len >= FRAME_BYTES:
            self._deal_open()

    def _finish_run(self, image: Image) -> None:
        """Make a record of *image*'s pending run: a frame of its own when it fills one."""
        pending = image.pending
        if pending is None:
            return
        self._forget_run(image)
        if pending.length >= FRAME_BYTES:
            batch = self._batch(self._next_shard())
        else:
            batch = self._open = self._open or self._batch(self._next_shard())
        # Every frame names its file first; else only where the file is not the current one.
        if not batch.pieces or self.contents.current_name != image.name:
            self._add(batch, Marker(seq=self._next_seq(), filename=image.name))
        offset = None if pending.start == image.size else pending.start
        marker = Marker(seq=self._next_seq(), file_data=pending.length, offset=offset)
        self._add(batch, marker, pending.pieces, pending.start)
        if batch is not self._open:
            self._deal(batch)
        elif batch.payload_len >= FRAME_BYTES:
            self._deal_open()

    def _forget_run(self, image: Image) -> None:
        if image.pending is not None:
            self._run_bytes -= image.pending.length
            image.pending = None
            del self._runs[image]

    def _drop_run(self, image: Image) -> None:
        """Forget what no record will ever hold, and give its memory back."""
        if image.pending is not None:
            self._lanes.release(image.pending.length)
            self._forget_run(image)

    def _add(
        self, batch: Batch, marker: Marker, payload: Sequence[Bytes] = (), start: int = 0
    ) -> None:
        try:
            if self.pages is None or marker.file_data is None:
                self.contents.apply(marker, batch.frame, batch.add(marker, payload))
            else:
                # Here and not on the lane: hashing holds the interpreter's lock, and handing that
                # to and fro costs the caller several times what hashing does.
                name = self.contents.current_name or ""
                patch = batch.add_compared(marker, payload, name, start, self.pages)
                self.contents.apply(marker, batch.frame, 0, patch)
        except BaseException as exc:  # a bug; committed, no reader could replay it
            self.fail(exc)
            raise
        self._uncommitted = True

    def _batch(self, shard: int) -> Batch:
        self._cut_seal()
        # Sequence numbers grow within a shard: small records that wait for this one go first.
        if self._open is not None and self._open.shard == shard:
            self._deal_open()
        header_seq = self._next_seq() if self._carrier.seqs_per_unit else 0
        return Batch(shard, header_seq)

    def _cut_seal(self) -> None:
        """Writing goes on after a seal: it is no longer the end."""
        if self._sealed_from is not None:
            self._seq, ends = self._sealed_from
            self._sealed_from = None
            self._commit -= 1
            gone = [
                self._lanes.submit(a.k, partial(a.cut_footer, end))
                for a, end in zip(self._appenders, ends, strict=True)
            ]
            for appender, end in zip(self._appenders, ends, strict=True):
                self._lanes.submit(appender.k, partial(self._cut, appender, end, gone))

    def _cut(self, appender: Appender, end: int, footers_gone: Sequence[Future[None]]) -> None:
        """On the lane, which waits for others; what those wait for was queued before."""
        try:
            for footer_gone in footers_gone:
                footer_gone.result()
            appender.cut(end)
        except BaseException as exc:
            self.fail(exc)

    def _next_shard(self) -> int:
        """The next shard in turn whose queue has room; it is passed over while it is full."""
        count = len(self._appenders)
        for _ in range(count):
            shard = self._turn
            self._turn = (shard + 1) % count
            if self._lanes.has_room(shard, count):
                break
        return shard

    def _deal_open(self) -> None:
        if (batch := self._open) is not None:
            self._open = None
            self._deal(batch)

    def _deal(self, batch: Batch) -> None:
        appender = self._appenders[batch.shard]
        appender.frames.append(batch.frame)
        appender.markers += batch.markers
        self._land(appender, batch, batch.payload_len)

    def _land(self, appender: Appender, batch: Batch, reserved: int) -> None:
        pack = partial(self._pack, appender, batch)
        self._lanes.land(appender.k, reserved, pack, partial(self._append, appender, batch.frame))

    # On the lane. What fails here has been acknowledged to the caller: it is kept.

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

    # Commits, on the lanes.

    def _append_commit(
        self, content_seq: int, content_ends: Sequence[int], *, sealed: bool
    ) -> None:
        committed_ns = self._committed_ns or time.time_ns()
        first_last = self._appenders[0].file.whole
        indexes = [
            Index(
                checkpoint=self._checkpoint,
                shards=len(self._appenders),
                shard=appender.k,
                codec=str(self._carrier.codec),
                commit=self._commit + 1,
                created_ns=self._created_ns,
                committed_ns=committed_ns,
                tool=f"cedanafs {__version__}",
                content_seq=content_seq,
                content_end=content_end,
                frames=appender.rows(),
                markers=bytes(appender.markers),
                unfinished=tuple(self._unfinished),
                first_last=first_last,
                base=self._base,
            )
            for appender, content_end in zip(self._appenders, content_ends, strict=True)
        ]
        units, next_seq = units_of_commit(
            self._carrier,
            indexes,
            [appender.end for appender in self._appenders],
            [appender.committed_end for appender in self._appenders],
            self._seq,
            sealed=sealed,
        )
        # A footer vouches for all that precedes it, and a disk need not write in order.
        self._on_each(lambda appender: appender.append_index(units[appender.k][:-1]))
        last = 1 if first_last else 0  # of the first it says that all have it
        for appenders in filter(None, (self._appenders[last:], self._appenders[:last])):
            self._on_each(lambda a: a.append_footer(units[a.k][-1]), appenders)
        self._seq = next_seq
        self._commit += 1

    def _on_each(
        self,
        job: Callable[[Appender], None],
        appenders: Sequence[Appender] | None = None,
        *,
        even_if_failed: bool = False,
    ) -> None:
        """Run *job* for every shard on its lane, all at once, and wait for the last."""

        def run(appender: Appender) -> None:
            if self.failure is None or even_if_failed:
                job(appender)

        chosen = self._appenders if appenders is None else appenders
        # The last first: s3fs with a cache, where locks are taken by path, sends all at once then.
        futures = [self._lanes.submit(a.k, partial(run, a)) for a in reversed(chosen)]
        for future in futures:
            try:
                future.result()
            except BaseException as exc:
                self.fail(exc)
        if not even_if_failed:
            self.check()
