"""The log of a checkpoint that is being written: changes become records, records frames.

The caller serialises all calls of one log. None of them waits, but for `complete_commit`,
`seal` and `close`. What a record says is applied to the contents as soon as it is made; its
frame lands later. A failure found on a lane is kept, and raised by every later call.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import Future
from typing import Any, Final
from uuid import UUID

from cedanafs import __version__
from cedanafs.errors import CedanaFsError
from cedanafs.shard.appender import Appender, ShardFigures
from cedanafs.shard.batch import Batch
from cedanafs.shard.codec import Bytes, Codec
from cedanafs.shard.commit import Base, Index, digest_of, units_of_commit
from cedanafs.shard.contents import Contents, Image, Pending, hidden_name
from cedanafs.shard.dealing import Dealer
from cedanafs.shard.extents import Frame
from cedanafs.shard.format import Carrier
from cedanafs.shard.lanes import Lanes
from cedanafs.shard.pages import Pages
from cedanafs.shard.records import Marker
from cedanafs.shard.store import ShardFile

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
        self._dealer = Dealer(appenders, lanes)
        self._carrier = Carrier(codec)
        self._checkpoint = checkpoint
        self._created_ns = created_ns
        self._committed_ns = committed_ns  # None: now, whenever that is
        self._commit = commit
        self._seq = next_seq
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
        self._dealer.fail(exc)

    def check(self) -> None:
        """Raise the failure that a lane has found, if any."""
        self._dealer.check()

    @property
    def failure(self) -> CedanaFsError | None:
        """What `check` raises."""
        return self._dealer.failure

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

    def write(self, image: Image, offset: int, data: Bytes) -> None:
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
        return tuple(appender.figures() for appender in self._dealer.appenders)

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
        return self._dealer.landed(frame.shard)

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
        return digest_of((a.frames, bytes(a.markers)) for a in self._dealer.appenders)

    def complete_commit(self) -> None:
        """Make all that was dealt durable, and its index, on every shard; then the footers.

        Blocks; nothing else of this log may be called meanwhile.
        Raises: StoreError, or what else a lane has found; it sticks to the log.
        """
        self.check()
        if self._uncommitted:
            self._dealer.settle()  # where they end is known only then
            self._append_commit(self._seq, self._dealer.ends(), sealed=False)
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
        content_ends = self._dealer.ends()
        batch = self._batch(0)
        for name in self.contents.images:
            if batch.frame.raw_len >= FRAME_BYTES:
                self._dealer.land(batch, 0)
                batch = self._batch(0)
            batch.add(Marker(seq=self._next_seq(), filename=name))
            batch.add(Marker(seq=self._next_seq(), file_eof=True))
        if self._carrier.codec.hides:
            batch.add(Marker(seq=self._next_seq(), image_eof=True))
        self._dealer.land(batch, 0)
        self._dealer.settle()
        self._append_commit(content_seq, content_ends, sealed=True)
        self._sealed_from = content_seq, content_ends

    def close(self) -> None:
        """Wait for the lanes to be done with the shards, and close them."""
        for image in list(self._runs):
            self._drop_run(image)
        if self._open is not None:
            self._dealer.give_back(self._open.payload_len)
            self._open = None
        self._dealer.close()

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
        batch = self._open = self._open or self._batch(self._dealer.next_shard())
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
            batch = self._batch(self._dealer.next_shard())
        else:
            batch = self._open = self._open or self._batch(self._dealer.next_shard())
        # Every frame names its file first; else only where the file is not the current one.
        if not batch.pieces or self.contents.current_name != image.name:
            self._add(batch, Marker(seq=self._next_seq(), filename=image.name))
        offset = None if pending.start == image.size else pending.start
        marker = Marker(seq=self._next_seq(), file_data=pending.length, offset=offset)
        self._add(batch, marker, pending.pieces, pending.start)
        if batch is not self._open:
            self._dealer.deal(batch)
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
            self._dealer.give_back(image.pending.length)
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
            self._dealer.cut(ends)

    def _deal_open(self) -> None:
        if (batch := self._open) is not None:
            self._open = None
            self._dealer.deal(batch)

    def _append_commit(
        self, content_seq: int, content_ends: Sequence[int], *, sealed: bool
    ) -> None:
        committed_ns = self._committed_ns or time.time_ns()
        appenders = self._dealer.appenders
        indexes = [
            Index(
                checkpoint=self._checkpoint,
                shards=len(appenders),
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
                first_last=self._dealer.first_last,
                base=self._base,
            )
            for appender, content_end in zip(appenders, content_ends, strict=True)
        ]
        units, next_seq = units_of_commit(
            self._carrier,
            indexes,
            self._dealer.ends(),
            [appender.committed_end for appender in appenders],
            self._seq,
            sealed=sealed,
        )
        self._dealer.commit(units)
        self._seq = next_seq
        self._commit += 1
