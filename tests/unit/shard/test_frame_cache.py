"""The cache of frames on a local disk: right bytes or none, within its bound, ours alone."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from writing import make_checkpoint

from cedanafs.errors import UsageError
from cedanafs.shard.extents import Frame
from cedanafs.shard.frame_cache import SHARE, FrameCache
from cedanafs.shard.local import LocalShard
from cedanafs.shard.opening import Opened, open_checkpoint
from cedanafs.shard.reader import Reader

MIB = 1 << 20
PATIENCE_S = 10.0


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Opened]:
    """A checkpoint of 12 frames, which do not compress, in two shards."""
    data = {f"pages-{n}.img": os.urandom(MIB) for n in range(12)}
    opened = open_checkpoint(make_checkpoint(tmp_path / "c", data, shards=2, codec="lz4"))
    yield opened
    opened.close()


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The lengths of what is read from shards from now on."""
    lengths: list[int] = []
    read_at = LocalShard.read_at

    def read(file: LocalShard, offset: int, length: int) -> bytes:
        lengths.append(length)
        return read_at(file, offset, length)

    monkeypatch.setattr(LocalShard, "read_at", read)
    return lengths


def large_frames(opened: Opened) -> list[Frame]:
    return [frame for frames in opened.frames for frame in frames if frame.raw_len > MIB]


def read_all(opened: Opened, directory: Path, most_bytes: int = 1 << 40) -> list[bytes]:
    """Each frame's bytes, by a reader that has just come, whose end has kept what is to be."""
    cache = FrameCache(directory, most_bytes)
    with Reader(threads=1, cache_bytes=64 * MIB, frame_cache=cache) as reader:
        return [
            reader.fetch(opened.files, opened.codec, frame).result(PATIENCE_S)
            for frame in large_frames(opened)
        ]


def test_what_was_read_once_is_not_read_again(
    tmp_path: Path, opened: Opened, reads: list[int]
) -> None:
    first = read_all(opened, tmp_path / "cache")
    assert len(reads) == 12
    assert read_all(opened, tmp_path / "cache") == first
    assert len(reads) == 12
    held = [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]
    assert len(held) == 12
    assert {path.parent.name for path in held} == {str(opened.checkpoint)}
    assert (tmp_path / "cache").stat().st_mode & 0o777 == 0o700
    assert {path.parent.stat().st_mode & 0o777 for path in held} == {0o700}


@pytest.mark.parametrize("damage", ["flipped", "short", "empty", "gone", "a directory"])
def test_damage_is_read_anew_and_mended(
    tmp_path: Path, opened: Opened, reads: list[int], damage: str
) -> None:
    first = read_all(opened, tmp_path / "cache")
    for path in list((tmp_path / "cache").rglob("*-*-*")):
        if not path.is_file():
            continue
        data = path.read_bytes()
        path.unlink()
        if damage == "flipped":
            path.write_bytes(data[:100] + bytes([data[100] ^ 1]) + data[101:])
        elif damage == "short":
            path.write_bytes(data[:-1])
        elif damage == "empty":
            path.touch()
        elif damage == "a directory":
            path.mkdir()
    assert read_all(opened, tmp_path / "cache") == first
    assert len(reads) == 24
    assert read_all(opened, tmp_path / "cache") == first
    assert len(reads) == (36 if damage == "a directory" else 24)


def test_it_is_bounded_and_what_was_used_last_stays(
    tmp_path: Path, opened: Opened, reads: list[int]
) -> None:
    frames = large_frames(opened)
    assert opened.checkpoint is not None
    most = 8 * MIB + MIB // 2
    cache = FrameCache(tmp_path / "cache", most)
    stored = {f: opened.files[f.shard].read_at(f.offset, f.stored_len) for f in frames}
    for n, frame in enumerate(frames):
        cache.put(opened.checkpoint, frame, stored[frame])
        os.utime(cache._path(opened.checkpoint, frame), (n, n))
        assert cache.get(opened.checkpoint, frames[0]) == stored[frames[0]]
        held = [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]
        assert sum(path.stat().st_blocks * 512 for path in held) <= most + most // SHARE + MIB
    assert cache.get(opened.checkpoint, frames[1]) is None
    assert cache.get(opened.checkpoint, frames[-1]) == stored[frames[-1]]


def test_many_use_it_at_once(tmp_path: Path, opened: Opened) -> None:
    """Each adds, finds and removes what the others do."""
    expected = read_all(opened, tmp_path / "cache")
    found: list[list[bytes]] = []

    def read() -> None:
        found.extend(read_all(opened, tmp_path / "cache", most_bytes=3 * MIB) for _ in range(5))

    readers = [threading.Thread(target=read) for _ in range(4)]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join(60)
    assert found == [expected] * 20
    assert not list((tmp_path / "cache").rglob(".*"))


def test_a_directory_that_is_not_ours_alone_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    with pytest.raises(UsageError, match="chmod 700"):
        FrameCache(tmp_path, MIB)
    with pytest.raises(UsageError, match=r"--cache-dir /proc/x cannot be used"):
        FrameCache(Path("/proc/x"), MIB)


def test_a_disk_that_fails_is_told_once_and_does_no_harm(
    tmp_path: Path, opened: Opened, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "cache").mkdir(mode=0o700)
    (tmp_path / "cache" / str(opened.checkpoint)).touch()
    assert len(read_all(opened, tmp_path / "cache")) == 12
    (record,) = caplog.records
    assert "--cache-dir" in record.message
