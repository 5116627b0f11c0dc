"""Frames → bytes: read, check, decompress, on threads, into a bounded cache.

Nothing is returned that its checksum does not vouch for. The caller serialises all calls; the
loads run on the reader's own threads, several shards at once, and the more of them the longer the
store takes (`window`).
"""

from __future__ import annotations

import sys
import threading
import time
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from functools import partial
from itertools import islice
from typing import Final

from cedanafs.errors import CorruptShard
from cedanafs.shard.codec import Codec
from cedanafs.shard.extents import ExtentMap, Frame
from cedanafs.shard.format import checksum
from cedanafs.shard.frame_cache import FrameCache
from cedanafs.shard.store import ShardFile
from cedanafs.shard.window import Window
from cedanafs.shard.workers import ABANDON_S, Workers

READ_AHEAD_FRAMES: Final = 8
"""Frames that a sequential reader is ahead by at most: two for each of four shards.

Of a slow store two for each read that it should have under way.
"""

READ_AHEAD_EXTENTS: Final = 256
"""Extents that are looked at to find them: a file may consist of a million tiny ones."""

JOINED_BYTES: Final = 1 << 20
"""Most that is read at once of frames that lie one behind the other: a request of a network
filesystem or object store is dear, and many are made at once anyway."""

JOINED_GAP: Final = 4 << 10
"""Between them lies a frame's header."""

Loads = list[tuple[Frame, "Future[bytes]"]]


def load_frame(file: ShardFile, codec: Codec, frame: Frame) -> bytes:
    """The decoded records of *frame*. Blocks.

    Raises: CorruptShard naming shard and offset, StoreError.
    """
    return _decoded(file, codec, frame, file.read_at(frame.offset, frame.stored_len))


def _decoded(file: ShardFile, codec: Codec, frame: Frame, stored: bytes) -> bytes:
    try:
        if checksum(stored) != frame.checksum:
            raise CorruptShard("the frame is damaged: its checksum does not match")
        return codec.decompress(stored, frame.raw_len)
    except CorruptShard as exc:
        raise CorruptShard(f"{file.path} at offset {frame.offset}: {exc}") from None


class Stream:
    """A file that is read in order: where the next read begins, and what was begun ahead of it."""

    __slots__ = ("ahead", "ahead_to", "offset")

    def __init__(self, offset: int = sys.maxsize) -> None:
        self.offset = self.ahead_to = offset
        self.ahead: dict[Frame, int] = {}  # and where in the file each is needed no longer

    def read(self, offset: int, length: int) -> None:
        """Somebody reads that much of it."""
        self.ahead = {frame: end for frame, end in self.ahead.items() if end > offset}
        if not self.ahead:
            self.ahead_to = offset
        self.offset = offset + length


class Reader:
    """Loads frames on *threads* threads or more, and keeps up to *cache_bytes* of them, decoded.

    What *frame_cache* has is not read from the store, and what is read from there goes to it.

    Use as a context manager: leaving it ends the threads. `on_progress` is called, on any
    thread, whenever a frame was loaded or failed to be.
    """

    def __init__(
        self, *, threads: int, cache_bytes: int, frame_cache: FrameCache | None = None
    ) -> None:
        self._cache: OrderedDict[Frame, Future[bytes]] = OrderedDict()
        self.cache_bytes = cache_bytes
        self.used_bytes = 0
        self._ahead: set[Frame] = set()  # in the cache, and nobody has asked for it yet
        self.readers = 0  # open files that are read, each at a place of its own
        self.read_bytes = self.frames = 0  # decoded since the beginning
        self.hits = self.misses = 0  # of fetched frames, those that were here, those not
        self.shard_bytes: Counter[int] = Counter()  # read, by shard
        self.shard_s: defaultdict[int, float] = defaultdict(float)  # and how long that took
        self.disk_hits = 0  # frames that were in the frame cache
        self._lock = threading.Lock()
        self.on_progress: Callable[[], None] = lambda: None
        self._frame_cache = frame_cache
        self._window = Window(threads)
        self._loading = 0  # frames
        self._workers = Workers(threads, name="cedanafs-reader")
        self._awaited = Workers(0, name="cedanafs-awaited")

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, *_: object) -> None:
        deadline = time.monotonic() + ABANDON_S
        for workers in (self._workers, self._awaited):
            workers.end(deadline, drop_queued=True)

    def has(self, frame: Frame) -> bool:
        """Whether what `fetch` gives is there already."""
        future = self._cache.get(frame)
        return future is not None and future.done()

    def fetch(self, files: Sequence[ShardFile], codec: Codec, frame: Frame) -> Future[bytes]:
        """The decoded records of *frame*, which has landed; perhaps already there.

        The future raises what `load_frame` raises, each time anew.
        """
        with self._lock:
            future = self._cache.get(frame)
            if future is not None:
                self.hits += 1
                self._cache.move_to_end(frame)
                self._ahead.discard(frame)
                return future
            self.misses += 1
            future = self._begin(frame)
            self._loading += 1
            self._expect(files)
        workers = self._workers
        if self._window.slow:  # somebody waits for it, and is not to wait for all read-ahead
            workers = self._awaited
            workers.grow(self._window.reads)
        workers.put(partial(self._load, files[frame.shard], codec, [(frame, future)]))
        return future

    def read_ahead(
        self, files: Sequence[ShardFile], codec: Codec, extents: ExtentMap, stream: Stream
    ) -> None:
        """Start loading what *stream* wants next."""
        self._expect(files)
        # The cache holds what all readers are at and ahead by: if fifty of them were ahead by as
        # much as one may be, each would throw out what the others are about to ask for.
        most = self.cache_bytes // (max(self.readers, 1) << 20) - 2
        at_a_time = 1
        if self._window.slow:  # and some of the cache is for who reads here and there
            most = min(max(2 * self._window.reads, READ_AHEAD_FRAMES), most - most // 8)
            at_a_time = max(most // 4, 1)  # so that there are some to join
        else:
            most = min(READ_AHEAD_FRAMES, most)
        ahead = stream.ahead
        if len(ahead) > most - at_a_time:
            return
        wanted: list[Frame] = []
        left = max(extents.end - stream.ahead_to, 0)
        for piece in islice(extents.slices(stream.ahead_to, left), READ_AHEAD_EXTENTS):
            frame = piece.frame
            if frame is not None and frame.landed and frame not in ahead:
                if len(ahead) >= most:
                    break
                wanted.append(frame)
            stream.ahead_to += piece.length
            if frame is not None and frame.landed:
                ahead[frame] = stream.ahead_to
        self._load_ahead(files, codec, wanted)

    def _expect(self, files: Sequence[ShardFile]) -> None:
        """What is in a bucket is far away: sixteen reads at once fill a link sooner than four."""
        if files[0].atomic:
            self._window.begin_far()

    def done_with(self, frame: Frame) -> None:
        """Somebody has had *frame* to its end: what comes next takes its memory over."""
        with self._lock:
            self._drop(frame)

    def _load_ahead(
        self, files: Sequence[ShardFile], codec: Codec, wanted: Sequence[Frame]
    ) -> None:
        """Begin to load what is not there; of a slow store, neighbours by one read."""
        begun: list[tuple[ShardFile, Codec, Loads]] = []
        newest: dict[ShardFile, Loads] = {}
        with self._lock:
            for frame in wanted:
                if frame in self._cache:
                    self._cache.move_to_end(frame)
                    continue
                load = frame, self._begin(frame)
                self._ahead.add(frame)
                theirs, by = frame.home or (files, codec)
                file = theirs[frame.shard]
                loads = newest.get(file)
                if loads is not None and self._window.slow and _joins(loads, frame):
                    loads.append(load)
                    continue
                newest[file] = [load]
                begun.append((file, by, newest[file]))
            self._loading += sum(len(loads) for _, _, loads in begun)
        self._workers.grow(self._window.reads)
        for each in begun:
            self._workers.put(partial(self._load, *each))

    def _begin(self, frame: Frame) -> Future[bytes]:
        if self.used_bytes + frame.raw_len > self.cache_bytes:
            self._make_room(frame.raw_len)
        future: Future[bytes] = Future()
        self._cache[frame] = future
        self.used_bytes += frame.raw_len
        self.read_bytes += frame.raw_len
        self.frames += 1
        return future

    def _make_room(self, length: int) -> None:
        for spared in (self._ahead, ()):
            for frame, future in list(self._cache.items()):
                if self.used_bytes + length <= self.cache_bytes:
                    return
                if future.done() and frame not in spared:
                    self._drop(frame)

    def _load(self, file: ShardFile, codec: Codec, loads: Loads) -> None:
        """On a thread: what is not in the frame cache is read, all at once if it is all of it."""
        if self._frame_cache is None or file.checkpoint is None:
            self._read(file, codec, loads)
            return
        missing: Loads = []
        for load in loads:
            stored = self._frame_cache.get(file.checkpoint, load[0])
            if stored is None:
                missing.append(load)
                continue
            with self._lock:
                self._loading -= 1
                self.disk_hits += 1
            try:
                load[1].set_result(_decoded(file, codec, load[0], stored))
            except BaseException as exc:  # a bug
                self._failed(*load, exc)
            self.on_progress()
        for each in [missing] if len(missing) == len(loads) else [[load] for load in missing]:
            for frame, stored in self._read(file, codec, each):
                self._frame_cache.put(file.checkpoint, frame, stored)

    def _read(self, file: ShardFile, codec: Codec, loads: Loads) -> list[tuple[Frame, bytes]]:
        """Read what lies one behind the other at once, and decode each; returns what is right."""
        start, end = loads[0][0].offset, _end_of(loads[-1][0])
        stored, failure = b"", None
        begun_s = time.monotonic()
        try:
            stored = file.read_at(start, end - start)
        except BaseException as exc:
            failure = exc
        took_s = time.monotonic() - begun_s
        with self._lock:
            self._window.note(end - start, took_s, full=self._loading >= self._window.reads)
            self._loading -= len(loads)
            self.shard_bytes[loads[0][0].shard] += end - start
            self.shard_s[loads[0][0].shard] += took_s
            self._workers.grow(self._window.reads)
        right = []
        for frame, future in loads:
            at = frame.offset - start
            its = stored[at : at + frame.stored_len]
            try:
                if failure is None:
                    raw = _decoded(file, codec, frame, its)
                    right.append((frame, its))
                elif len(loads) > 1:  # whose it is, its own read says
                    raw = load_frame(file, codec, frame)
                else:
                    raise failure
            except BaseException as exc:
                self._failed(frame, future, exc)
            else:
                future.set_result(raw)
            self.on_progress()
        return right

    def _failed(self, frame: Frame, future: Future[bytes], exc: BaseException) -> None:
        with self._lock:  # the next who wants it tries anew
            if self._cache.get(frame) is future:
                self._drop(frame)
        future.set_exception(exc)

    def _drop(self, frame: Frame) -> None:
        if self._cache.pop(frame, None) is not None:
            self.used_bytes -= frame.raw_len
            self._ahead.discard(frame)


def _end_of(frame: Frame) -> int:
    return frame.offset + frame.stored_len


def _joins(loads: Loads, frame: Frame) -> bool:
    """Whether *frame* can be read together with *loads* of the same shard."""
    gap = frame.offset - _end_of(loads[-1][0])
    return 0 <= gap <= JOINED_GAP and _end_of(frame) - loads[0][0].offset <= JOINED_BYTES
