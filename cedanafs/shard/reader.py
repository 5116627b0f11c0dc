"""Frames → bytes: read, check, decompress, on threads, into a bounded cache.

Nothing is returned that its checksum does not vouch for. The caller serialises all calls; the
loads run on the reader's own threads, several shards at once.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from functools import partial
from itertools import islice
from typing import Final

from cedanafs.errors import CorruptShard
from cedanafs.shard.codec import Codec
from cedanafs.shard.extents import ExtentMap, Frame
from cedanafs.shard.format import checksum
from cedanafs.shard.lanes import ABANDON_S, Workers
from cedanafs.shard.store import ShardFile

READ_AHEAD_FRAMES: Final = 8
"""Frames that a sequential reader is ahead by at most: two for each of four shards."""

READ_AHEAD_EXTENTS: Final = 256
"""Extents that are looked at to find them: a file may consist of a million tiny ones."""


def load_frame(file: ShardFile, codec: Codec, frame: Frame) -> bytes:
    """The decoded records of *frame*. Blocks.

    Raises: CorruptShard naming shard and offset, StoreError.
    """
    stored = file.read_at(frame.offset, frame.stored_len)
    try:
        if checksum(stored) != frame.checksum:
            raise CorruptShard("the frame is damaged: its checksum does not match")
        return codec.decompress(stored, frame.raw_len)
    except CorruptShard as exc:
        raise CorruptShard(f"{file.path} at offset {frame.offset}: {exc}") from None


class Reader:
    """Loads frames on *threads* threads and keeps up to *cache_bytes* of them, decoded.

    Use as a context manager: leaving it ends the threads. `on_progress` is called, on any
    thread, whenever a frame was loaded or failed to be.
    """

    def __init__(self, *, threads: int, cache_bytes: int) -> None:
        self._cache: OrderedDict[Frame, Future[bytes]] = OrderedDict()
        self._cache_bytes = cache_bytes
        self._used_bytes = 0
        self.readers = 0  # open files that are read, each at a place of its own
        self.read_bytes = 0
        self._lock = threading.Lock()
        self.on_progress: Callable[[], None] = lambda: None
        self._workers = Workers(threads, name="cedanafs-reader")

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, *_: object) -> None:
        self._workers.end(time.monotonic() + ABANDON_S, drop_queued=True)

    def fetch(self, files: Sequence[ShardFile], codec: Codec, frame: Frame) -> Future[bytes]:
        """The decoded records of *frame*, which has landed; perhaps already there.

        The future raises what `load_frame` raises, each time anew.
        """
        with self._lock:
            future = self._cache.get(frame)
            if future is not None:
                self._cache.move_to_end(frame)
                return future
            self._make_room(frame.raw_len)
            load = partial(load_frame, files[frame.shard], codec, frame)
            future = self._workers.submit(load)
            self._cache[frame] = future
            self._used_bytes += frame.raw_len
            self.read_bytes += frame.raw_len
        future.add_done_callback(lambda done: self._loaded(frame, done))
        return future

    def read_ahead(
        self, files: Sequence[ShardFile], codec: Codec, extents: ExtentMap, offset: int
    ) -> None:
        """Start loading what a sequential reader wants from *offset* on."""
        # The cache holds what all readers are at and ahead by: if fifty of them were ahead by as
        # much as one may be, each would throw out what the others are about to ask for.
        most = min(READ_AHEAD_FRAMES, self._cache_bytes // (max(self.readers, 1) << 20) - 2)
        wanted: dict[Frame, None] = {}
        ahead = extents.slices(offset, max(extents.end - offset, 0))
        for piece in islice(ahead, READ_AHEAD_EXTENTS):
            if len(wanted) >= most:
                break
            if piece.frame is not None and piece.frame.landed:
                wanted[piece.frame] = None
        for frame in wanted:
            self.fetch(*(frame.home or (files, codec)), frame)

    def done_with(self, frame: Frame) -> None:
        """Somebody has had *frame* to its end: what comes next takes its memory over."""
        with self._lock:
            self._drop(frame)

    def _make_room(self, length: int) -> None:
        for frame, future in list(self._cache.items()):
            if self._used_bytes + length <= self._cache_bytes:
                break
            if future.done():
                self._drop(frame)

    def _loaded(self, frame: Frame, done: Future[bytes]) -> None:
        if done.exception() is not None:  # the next who wants it tries anew
            with self._lock:
                if self._cache.get(frame) is done:
                    self._drop(frame)
        self.on_progress()

    def _drop(self, frame: Frame) -> None:
        if self._cache.pop(frame, None) is not None:
            self._used_bytes -= frame.raw_len
