"""Compressed frames in local files, while the store is slow."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from writing import read_checkpoint, writing

from cedanafs.errors import CorruptShard, StoreError, UsageError
from cedanafs.shard import spill as spill_module
from cedanafs.shard.codec import Bytes
from cedanafs.shard.lanes import Lanes
from cedanafs.shard.local import LocalShard
from cedanafs.shard.spill import FILE_BYTES, Spill, Spilled

KIB = 1 << 10
MIB = 1 << 20
PATIENCE_S = 10.0


@pytest.fixture
def spill(tmp_path: Path) -> Iterator[Spill]:
    (tmp_path / "spill").mkdir()
    with Spill(tmp_path / "spill") as spill:
        yield spill


def space_of(spill: Spill) -> int:
    """Bytes that its files take on the disk."""
    return sum(os.fstat(each.bytes._fd).st_blocks * 512 for each in spill._files)


def test_it_gives_back_what_it_got_and_nobody_sees_it(spill: Spill) -> None:
    pieces = [[os.urandom(n * 100), b"-", os.urandom(n)] for n in range(20)]
    held = [spill.put(each) for each in pieces]
    assert list(spill.directory.iterdir()) == []
    for spilled, expected in zip(held, pieces, strict=True):
        assert spilled is not None
        assert spilled.read() == b"".join(expected)


def test_the_disk_has_its_space_back_while_more_comes(spill: Spill) -> None:
    """The store takes one frame for each two that come."""
    frame = bytes(4 * MIB)
    held: list[Spilled] = []
    for n in range(100):
        spilled = spill.put([frame])
        assert spilled is not None
        held.append(spilled)
        if n % 2:
            held.pop(0).give_back()
        assert space_of(spill) <= len(held) * len(frame) + FILE_BYTES
    for each in held:
        each.give_back()
    assert space_of(spill) == 0


def test_without_room_it_takes_nothing_and_says_so_once(
    spill: Spill, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(2):
        with monkeypatch.context() as patch:
            patch.setattr(spill_module, "LEFT_FREE_BYTES", 1 << 62)
            assert spill.put([b"x"]) is None
            assert spill.put([b"x"]) is None
        spilled = spill.put([b"x"])
        assert spilled is not None
        spilled.give_back()
    told = [record.message for record in caplog.records]
    assert len(told) == 2
    assert str(spill.directory) in told[0]
    assert os.strerror(errno.ENOSPC) in told[0]
    assert space_of(spill) == 0


def test_bytes_that_have_changed_are_not_given_back(spill: Spill) -> None:
    spilled = spill.put([b"good"])
    assert spilled is not None
    spilled.file.bytes.write_at(spilled.at, [b"evil"])
    with pytest.raises(StoreError, match="other bytes"):
        spilled.read()


def test_a_directory_that_cannot_be_used(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"--spill .*/none"):
        Spill(tmp_path / "none")


# Lanes with a spill.


def test_writers_go_on_while_the_store_takes_nothing(spill: Spill) -> None:
    appended: list[tuple[int, bytes]] = []
    store_takes = threading.Event()

    def append(shard: int, held: Sequence[Bytes] | Spilled) -> None:
        assert store_takes.wait(PATIENCE_S)
        data = held.read() if isinstance(held, Spilled) else b"".join(held)
        appended.append((shard, data))

    frames = [(n % 2, os.urandom(10 * KIB)) for n in range(200)]
    with Lanes(2, budget_bytes=100 * KIB, spill=spill) as lanes:
        for shard, data in frames:
            room = threading.Event()
            lanes.on_progress = room.set
            while not lanes.try_reserve(len(data)):
                assert room.wait(PATIENCE_S)
                room.clear()
            assert lanes.in_use_bytes <= lanes.budget_bytes
            lanes.land(shard, len(data), lambda d=data: [d], lambda h, k=shard: append(k, h))
        assert not appended
        assert lanes.landed_bytes == 0
        assert lanes.written_bytes == 2000 * KIB
        barrier = lanes.submit(0, lambda: [each for each in appended if each[0] == 0])
        assert not barrier.done()
        store_takes.set()
        assert barrier.result(PATIENCE_S) == [each for each in frames if each[0] == 0]
        lanes.submit(1, lambda: None).result(PATIENCE_S)
        assert lanes.in_use_bytes == 0
        assert lanes.landed_bytes == lanes.written_bytes == 2000 * KIB
    assert [each for each in appended if each[0] == 1] == [each for each in frames if each[0] == 1]
    assert space_of(spill) == 0


def test_without_room_on_disk_writers_wait(spill: Spill, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spill_module, "LEFT_FREE_BYTES", 1 << 62)
    store_takes = threading.Event()
    with Lanes(1, budget_bytes=100 * KIB, spill=spill) as lanes:
        for _ in range(10):
            assert lanes.try_reserve(10 * KIB)
            lanes.land(
                0,
                10 * KIB,
                lambda: [bytes(10 * KIB)],
                lambda _: store_takes.wait(PATIENCE_S) and None,
            )
        packed = threading.Event()
        lanes._of(0).put(packed.set)
        assert packed.wait(PATIENCE_S)
        assert not lanes.try_reserve(1)
        store_takes.set()
        lanes.submit(0, lambda: None).result(PATIENCE_S)
        assert lanes.try_reserve(100 * KIB)
        lanes.release(100 * KIB)


# A checkpoint.


@pytest.fixture
def store_takes(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Nothing is written into a shard until it is set."""
    event = threading.Event()
    write_at = LocalShard.write_at

    def held_write(file: LocalShard, offset: int, buffers: Sequence[Bytes]) -> None:
        if file.name.startswith("img-"):
            assert event.wait(PATIENCE_S)
        write_at(file, offset, buffers)

    monkeypatch.setattr(LocalShard, "write_at", held_write)
    return event


def wait_until_packed(lanes: Lanes, shards: int) -> None:
    for k in range(shards):
        packed = threading.Event()
        lanes._of(k).put(packed.set)
        assert packed.wait(PATIENCE_S)


def test_it_is_the_same_checkpoint(
    tmp_path: Path, spill: Spill, store_takes: threading.Event
) -> None:
    """Committed, sealed, and gone on with behind the seal, which is cut off first."""
    images = {f"pages-{n}.img": os.urandom(2 * MIB) for n in range(4)}
    late = os.urandom(8 * MIB)
    with writing(tmp_path / "c", shards=3, budget_bytes=4 * MIB, spill=spill) as writer:
        for name, data in images.items():
            writer.create(name, data)
        writer.log.flush()
        wait_until_packed(writer.lanes, 3)
        assert space_of(spill) >= 4 * MIB
        store_takes.set()
        writer.commit(seal=True)
        store_takes.clear()
        image = writer.create("late.img")
        for offset in range(0, len(late), MIB):
            writer.write(image, offset, late[offset : offset + MIB])
        wait_until_packed(writer.lanes, 3)
        assert space_of(spill) >= 3 * MIB
        store_takes.set()
        writer.commit(seal=True)
    assert read_checkpoint(tmp_path / "c") == {**images, "late.img": late}


def test_a_spill_that_loses_bytes_fails_the_checkpoint(
    tmp_path: Path, spill: Spill, store_takes: threading.Event
) -> None:
    with writing(tmp_path / "c", budget_bytes=4 * MIB, spill=spill) as writer:
        image = writer.create("pages-1.img")
        for offset in range(0, 8 * MIB, MIB):
            writer.write(image, offset, os.urandom(MIB))
        wait_until_packed(writer.lanes, 1)
        for each in spill._files:
            each.bytes.truncate(0)
        store_takes.set()
        with pytest.raises(CorruptShard, match=str(spill.directory.name)):
            writer.commit()
