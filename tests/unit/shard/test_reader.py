"""Frames as a reader gets them: from the cache, or checked and decoded; damage is named."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import pytest
from writing import make_checkpoint

from cedanafs.errors import CorruptShard, StoreError
from cedanafs.shard.extents import ExtentMap, Frame
from cedanafs.shard.local import LocalShard
from cedanafs.shard.opening import Opened, open_checkpoint
from cedanafs.shard.reader import READ_AHEAD_FRAMES, Reader, Stream, load_frame

MIB = 1 << 20
PATIENCE_S = 10.0


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Opened]:
    """A checkpoint of 12 frames in two shards."""
    data = {f"pages-{n}.img": bytes([n]) * MIB for n in range(12)}
    opened = open_checkpoint(make_checkpoint(tmp_path / "c", data, shards=2, codec="lz4"))
    yield opened
    opened.close()


@pytest.fixture
def loads(opened: Opened, monkeypatch: pytest.MonkeyPatch) -> list[Frame]:
    """The frames that were read, in order; those found in the cache are not among them."""
    loaded: list[Frame] = []
    known = {(frame.shard, frame.offset): frame for frame in chain(*opened.frames)}
    read_at = LocalShard.read_at

    def read(file: LocalShard, offset: int, length: int) -> bytes:
        frame = known[opened.files.index(file), offset]
        assert length == frame.stored_len
        loaded.append(frame)
        return read_at(file, offset, length)

    monkeypatch.setattr(LocalShard, "read_at", read)
    return loaded


def frames_of(opened: Opened) -> list[Frame]:
    """The frame of pages-0.img, pages-1.img, …"""
    images = opened.contents.images
    return [
        piece.frame
        for n in range(12)
        for _, piece in images[f"pages-{n}.img"].extents
        if piece.frame is not None
    ]


def test_a_frame_is_loaded_once(opened: Opened, loads: list[Frame]) -> None:
    frame = frames_of(opened)[3]
    with Reader(threads=2, cache_bytes=4 * MIB) as reader:
        first = reader.fetch(opened.files, opened.codec, frame)
        assert reader.fetch(opened.files, opened.codec, frame) is first
        assert first.result(PATIENCE_S)[-MIB:] == bytes([3]) * MIB
        reader.fetch(opened.files, opened.codec, frame).result(PATIENCE_S)
    assert loads == [frame]


def test_the_cache_keeps_what_was_used_last_within_its_bytes(
    opened: Opened, loads: list[Frame]
) -> None:
    frames = frames_of(opened)
    most = 3 * max(frame.raw_len for frame in frames)
    with Reader(threads=1, cache_bytes=most) as reader:
        for n in (0, 1, 2, 0, 3, 0, 1):  # 3 drops 1, as 0 was used since; then 1 drops 2
            reader.fetch(opened.files, opened.codec, frames[n]).result(PATIENCE_S)
            assert reader.used_bytes <= most
        for n in (0, 3, 1):
            reader.fetch(opened.files, opened.codec, frames[n]).result(PATIENCE_S)
    assert loads == [frames[n] for n in (0, 1, 2, 3, 1)]


def test_a_frame_larger_than_the_cache_is_read(opened: Opened) -> None:
    with Reader(threads=1, cache_bytes=1000) as reader:
        for frame in frames_of(opened):
            raw = reader.fetch(opened.files, opened.codec, frame).result(PATIENCE_S)
            assert len(raw) == frame.raw_len
        assert reader.used_bytes <= max(frame.raw_len for frame in frames_of(opened))


def test_reading_ahead_is_bounded(opened: Opened, loads: list[Frame]) -> None:
    frames = frames_of(opened)
    extents = ExtentMap()
    for n, frame in enumerate(frames):
        extents.put(n * MIB, frame, 0, MIB)
    extents.put(2 * MIB, Frame(0), 0, MIB)  # written, and not landed yet
    with Reader(threads=1, cache_bytes=64 * MIB) as reader:
        stream = Stream(0)
        for start, end in ((MIB + 1, READ_AHEAD_FRAMES + 2), (4 * MIB, READ_AHEAD_FRAMES + 4)):
            stream.read(start, 1)
            reader.read_ahead(opened.files, opened.codec, extents, stream)
            reader.fetch(opened.files, opened.codec, frames[end - 1]).result(PATIENCE_S)
            assert loads == [frames[1], *frames[3:end]]


def test_a_file_in_which_frames_take_turns_is_read_ahead(
    opened: Opened, loads: list[Frame]
) -> None:
    """As where pages of a base's are between those of the checkpoint's own."""
    frames = frames_of(opened)
    extents = ExtentMap()
    for n in range(200):
        extents.put(n * 4096, frames[n % 2], n * 2048, 4096)
    extents.put(200 * 4096, frames[2], 0, MIB)
    with Reader(threads=1, cache_bytes=64 * MIB) as reader:
        stream = Stream(0)
        for n in range(0, 200, 10):
            stream.read(n * 4096, 4096)
            reader.read_ahead(opened.files, opened.codec, extents, stream)
        reader.fetch(opened.files, opened.codec, frames[2]).result(PATIENCE_S)
    assert loads == frames[:3]


def test_damage_names_shard_and_offset_and_is_not_kept(opened: Opened) -> None:
    frame = frames_of(opened)[5]
    path = opened.files[frame.shard].path
    place = frame.offset + frame.stored_len // 2
    with path.open("r+b") as shard, Reader(threads=1, cache_bytes=MIB) as reader:
        shard.seek(place)
        original = shard.read(1)
        shard.seek(place)
        shard.write(bytes([original[0] ^ 0x10]))
        shard.flush()
        for _ in range(2):
            damaged = reader.fetch(opened.files, opened.codec, frame)
            with pytest.raises(CorruptShard, match=f"{path} at offset {frame.offset}: .*checksum"):
                damaged.result(PATIENCE_S)
        shard.seek(place)
        shard.write(original)
        shard.flush()
        while damaged is reader.fetch(opened.files, opened.codec, frame):
            time.sleep(0.001)  # what forgets a failure may come a moment after it
        good = reader.fetch(opened.files, opened.codec, frame).result(PATIENCE_S)
        assert good[-MIB:] == bytes([5]) * MIB


def test_a_failed_load_is_tried_anew(opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    frame = frames_of(opened)[0]

    def fail(*_: object) -> bytes:
        raise StoreError("the store is away")

    with Reader(threads=1, cache_bytes=MIB) as reader:
        with monkeypatch.context() as patch:
            patch.setattr(LocalShard, "read_at", fail)
            failed = reader.fetch(opened.files, opened.codec, frame)
            forgotten = threading.Event()
            failed.add_done_callback(lambda _: forgotten.set())  # runs after the reader's own
            assert forgotten.wait(PATIENCE_S)
            with pytest.raises(StoreError):
                failed.result(PATIENCE_S)
        assert reader.used_bytes == 0
        assert reader.fetch(opened.files, opened.codec, frame).result(PATIENCE_S)


def test_a_shard_that_was_cut_short_is_named(opened: Opened) -> None:
    frame = max(frames_of(opened), key=lambda frame: (frame.shard, frame.offset))
    file = opened.files[frame.shard]
    with file.path.open("r+b") as shard:
        shard.truncate(frame.offset + 10)
    with pytest.raises(CorruptShard, match=f"{file.name} at offset {frame.offset}.*cut short"):
        load_frame(file, opened.codec, frame)
