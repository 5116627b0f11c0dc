"""One open image file: reads over extents and what is not yet in any, writes into the log."""

from __future__ import annotations

import errno
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import Future
from typing import Final, TypeVar

import trio

from cedanafs.errors import CorruptShard, StoreError
from cedanafs.fs.checkpoints import Checkpoints
from cedanafs.fs.namespace import File, StatFile
from cedanafs.shard.codec import Bytes
from cedanafs.shard.contents import MAX_FILE_LEN, Image, Pending
from cedanafs.shard.extents import Frame, Slice
from cedanafs.shard.reader import Reader, Stream

T = TypeVar("T")

SKIPPED_BYTES: Final = 1 << 20
"""What a file is read in order in spite of: less than a frame that was not asked for."""

MOST_PARTS: Final = 16
"""Of an answer: of more, tiny ones, each costs more than copying it does."""


class FileHandle:
    """An open file; keeps its checkpoint from resting until it is closed."""

    def __init__(
        self,
        file: File,
        image: Image,
        checkpoints: Checkpoints,
        reader: Reader,
        *,
        writes: bool,
        appends: bool,
    ) -> None:
        self.file = file
        self.image = image
        self.writes = writes
        self.appends = appends
        # CRIU opens each pages image twice: what the kernel has read ahead is kept.
        self.keeps_cache = not writes and not file.stale
        file.stale = writes or file.writers + file.appenders > 0
        self._checkpoints = checkpoints
        self._reader = reader
        self._stream, self._other = Stream(0), Stream()
        self._asked: Counter[Frame] = Counter()  # by how many requests not yet answered
        self._ended: set[Frame] = set()  # of these: one has had it to its end
        reader.readers += not writes
        file.handles += 1
        file.writers += writes and not appends
        file.appenders += appends
        file.directory.open_files += 1
        file.directory.open_writers += writes

    def close(self) -> None:
        self._reader.readers -= not self.writes
        self.file.handles -= 1
        self.file.writers -= self.writes and not self.appends
        self.file.appenders -= self.appends
        self.file.directory.open_files -= 1
        self.file.directory.open_writers -= self.writes

    def check(self) -> None:
        """Raise what has failed since the writes were taken; close(2) then reports it."""
        log = self.file.directory.log
        if self.writes and log is not None:
            log.check()

    def write_waits(self, length: int) -> bool:
        """Whether `write` may have to wait for something."""
        return self._checkpoints.write_waits(self.file, length)

    async def write(self, offset: int, data: Bytes) -> int:
        """Take all of *data*; waits only for memory. Raises: a failure found since."""
        directory = self.file.directory
        if offset + len(data) > MAX_FILE_LEN:
            raise OSError(errno.EFBIG, "too large", self.file.name)
        log = await self._checkpoints.writable(directory)
        await self._checkpoints.reserve(directory, log, len(data))
        try:
            if directory.busy.locked():  # a commit: what comes now belongs to the next
                async with directory.busy:
                    log.write(self.image, offset, data)
            else:
                log.write(self.image, offset, data)
        except BaseException:
            self._checkpoints.release(len(data))
            raise
        self._checkpoints.written(log)
        if not self.appends:
            await self._checkpoints.make_durable_if_asked(self.file)
        return len(data)

    def read_waits(self, offset: int, length: int) -> bool:
        """Whether some of it is not here yet."""
        length = min(length, self.image.length - offset)
        return length > 0 and (
            not self.file.directory.at_hand
            or not all(
                piece.frame is None or self._reader.has(piece.frame)
                for piece in self.image.extents.slices(offset, length)
            )
        )

    async def read(self, offset: int, length: int) -> list[Bytes]:
        """Up to *length* bytes, in pieces; fewer at the end of the file.

        Raises: CorruptShard naming file, shard and offset, never wrong bytes.
        """
        image = self.image
        length = min(length, image.length - offset)
        if length <= 0:
            return []
        try:
            return await self._read(image, offset, length)
        except CorruptShard as exc:
            damage = CorruptShard(f"{image.name} at offset {offset}: {exc}")
            self._checkpoints.damage = self._checkpoints.damage or damage
            raise damage from exc
        except StoreError as exc:
            self._checkpoints.damage = self._checkpoints.damage or exc
            raise

    async def _read(self, image: Image, offset: int, length: int) -> list[Bytes]:
        # Of several requests in flight each is answered when its frames are there: the order of
        # their coming is not that of their answers.
        stream = self._stream_at(offset)
        stream.read(offset, length)
        if sequential := stream is self._stream:
            await self._read_ahead(image, stream)
        pieces = list(image.extents.slices(offset, length))  # others may write meanwhile
        while waited := next((p.frame for p in pieces if p.frame and not p.frame.landed), None):
            await self._landed(waited)
            pieces = list(image.extents.slices(offset, length))  # only now it is known where
        pending = image.pending
        frames = [piece.frame for piece in pieces if piece.frame is not None]
        self._asked.update(frames)
        try:
            parts = await self._parts(pieces)
            if sequential:
                self._ended.update(p.frame for p in pieces if p.frame and p.ends_a_run)
        finally:
            self._asked.subtract(frames)
            for frame in {frame for frame in frames if not self._asked[frame]}:
                del self._asked[frame]
                if frame in self._ended:
                    self._ended.remove(frame)
                    self._reader.done_with(frame)
        if pending is not None and pending.start < offset + length and pending.end > offset:
            return [_overlaid(b"".join(parts), offset, pending)]
        return parts

    async def _parts(self, pieces: Sequence[Slice]) -> list[Bytes]:
        parts: list[Bytes] = []
        # The next is asked for before one waits for this: of the kernel's read-ahead several
        # requests come at once, and a frame that two of them share is decoded for both.
        after = await self._fetched(pieces[0])
        for piece, following in zip(pieces, (*pieces[1:], None), strict=True):
            loading, after = after, await self._fetched(following) if following else None
            part = await self._piece(piece, loading)
            if after is not None and not after.done():
                part = bytes(part)  # a hundred may wait: a view would keep a whole frame for each
            parts.append(part)
        return parts if len(parts) <= MOST_PARTS else [b"".join(parts)]

    def _stream_at(self, offset: int) -> Stream:
        """What goes on at *offset*: `_stream`, or what becomes it by a second read in order.

        So that a stream goes on whatever is read elsewhere meanwhile, such as the pages that a
        lazily restored process waits for; it skips them, as the kernel has them.
        """
        if not 0 <= offset - self._stream.offset <= SKIPPED_BYTES:
            if offset != self._other.offset:
                self._other = Stream()
                return self._other
            self._stream, self._other = self._other, self._stream
        return self._stream

    async def _fetched(self, piece: Slice) -> Future[bytes] | None:
        """The records that *piece* lies in, on their way; None for a hole."""
        if piece.frame is None:
            return None
        checkpoint = await self._checkpoints.load(self.file.directory)
        assert checkpoint.codec is not None
        files, codec = piece.frame.home or (checkpoint.files, checkpoint.codec)
        return self._reader.fetch(files, codec, piece.frame)

    async def _piece(self, piece: Slice, loading: Future[bytes] | None) -> bytes | memoryview:
        if loading is None:
            return bytes(piece.length)
        if not loading.done():
            with self._checkpoints.patience.wait(None):
                await result_of(loading)
        return memoryview(loading.result())[piece.at : piece.at + piece.length]

    async def _landed(self, frame: Frame) -> None:
        log = await self._checkpoints.writable(self.file.directory)
        waiting = log.wait_for(frame)
        if waiting is not None:
            with self._checkpoints.patience.wait(self.file.directory):
                await result_of(waiting)
            log.check()
        if not frame.landed:  # what an object store has been given it shows when that is committed
            await self._checkpoints.commit(self.file.directory)

    async def _read_ahead(self, image: Image, stream: Stream) -> None:
        checkpoint = await self._checkpoints.load(self.file.directory)
        if checkpoint.codec is not None:
            self._reader.read_ahead(checkpoint.files, checkpoint.codec, image.extents, stream)


class Snapshot:
    """An open `StatFile`: the figures as they were when it was opened."""

    keeps_cache = False

    def __init__(self, file: StatFile, content: bytes) -> None:
        self.file = file
        self._content = content

    def check(self) -> None:
        pass

    def write_waits(self, length: int) -> bool:
        return False

    async def write(self, offset: int, data: Bytes) -> int:
        raise OSError(errno.EBADF, "not open for writing", self.file.name)

    def read_waits(self, offset: int, length: int) -> bool:
        return False

    async def read(self, offset: int, length: int) -> list[Bytes]:
        return [self._content[offset : offset + length]]


def _overlaid(whole: bytes, offset: int, pending: Pending) -> bytes:
    """*whole*, which lies at *offset*, with the bytes that are in no record yet laid over it."""
    out = bytearray(whole)
    at = pending.start
    for piece in pending.pieces:
        start, end = max(at, offset), min(at + len(piece), offset + len(out))
        if start < end:
            out[start - offset : end - offset] = piece[start - at : end - at]
        at += len(piece)
    return bytes(out)


async def result_of(future: Future[T]) -> T:
    """The result of a thread's *future*, without blocking the event loop for it."""
    if not future.done():
        done = trio.Event()
        token = trio.lowlevel.current_trio_token()
        future.add_done_callback(lambda _: token.run_sync_soon(done.set))
        await done.wait()
    return future.result()
