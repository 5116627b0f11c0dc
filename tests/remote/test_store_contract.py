"""What every kind of store does alike: local directories and object stores on two servers."""

from __future__ import annotations

import os
from collections.abc import Sequence

import pytest

from cedanafs.errors import CorruptShard, StoreBusy, StoreError
from cedanafs.shard.bucket import bucket_at
from cedanafs.shard.codec import codec_of
from cedanafs.shard.place import ObjectPath, Place
from cedanafs.shard.store import (
    ShardFile,
    create_shards,
    directory_at,
    open_shards,
    remove_shards,
    require_shards,
    shard_paths,
)

ZSTD = codec_of("zstd")
SMALL = b"some bytes"
LARGE = os.urandom(12 << 20)  # more than two parts of an upload


def reads(place: Place) -> bool:
    """rclone's server answers a ranged read with 200, which obstore takes for wrong."""
    return not isinstance(place, ObjectPath) or place.bucket not in RCLONE_BUCKETS


RCLONE_BUCKETS: set[str] = set()


@pytest.fixture(autouse=True)
def _know_rclone(request: pytest.FixtureRequest, place: Place) -> None:
    if request.node.callspec.params["place"] == "rclone" and isinstance(place, ObjectPath):
        RCLONE_BUCKETS.add(place.bucket)


def written(place: Place, pieces: Sequence[Sequence[bytes]], shards: int = 2) -> None:
    """New shards, to each of which the *pieces* are appended, those of each group synced."""
    files = create_shards(place, shards, ZSTD, 64 << 20)
    try:
        for group in pieces:
            for file in reversed(files):
                for piece in group:
                    file.write_at(file.length(), [piece])
                file.sync()
    finally:
        close(files)


def close(files: Sequence[ShardFile]) -> None:
    for file in files:
        file.close()


@pytest.mark.parametrize(
    "place", ["moto", "rclone", pytest.param("azurite", marks=pytest.mark.full)], indirect=True
)
def test_what_is_gone_already_keeps_nothing_else(place: ObjectPath) -> None:
    bucket, keys = bucket_at(place), [(place / name).key for name in "abc"]
    for key in keys[1:]:
        bucket.create(key, SMALL)
    bucket.delete(keys)
    assert bucket.objects(place.key) == []


def test_shards_hold_what_was_appended_and_synced(place: Place) -> None:
    written(place, [[SMALL], [LARGE, SMALL], [SMALL, SMALL]])
    whole = SMALL + LARGE + SMALL + SMALL + SMALL
    assert [path.name for path in require_shards(place)] == ["img-0.zst", "img-1.zst"]
    files = open_shards(shard_paths(place))
    try:
        for file in files:
            assert file.length() == len(whole)
            if not reads(place):
                with pytest.raises(StoreError, match="cannot read a part of an object"):
                    file.read_at(0, 4)
                continue
            for offset, length in (
                (0, 4),
                (8, 40),
                (len(SMALL), len(LARGE)),
                (len(whole) - 25, 25),
            ):
                assert file.read_at(offset, length) == whole[offset : offset + length]
            with pytest.raises(CorruptShard, match=f"{file.name} at offset"):
                file.read_at(len(whole) - 3, 4)
    finally:
        close(files)


def test_shards_are_appended_to_when_opened_again(place: Place) -> None:
    written(place, [[SMALL]])
    files = open_shards(shard_paths(place), writable=True)
    for file in reversed(files):
        file.write_at(file.length(), [b"more"])
        file.sync()
    close(files)
    files = open_shards(shard_paths(place))
    assert {file.length() for file in files} == {len(SMALL) + 4}
    if reads(place):
        assert [file.read_at(0, len(SMALL) + 4) for file in files] == [SMALL + b"more"] * 2
    close(files)


def test_shards_are_cut_where_a_sync_was(place: Place) -> None:
    written(place, [[SMALL], [LARGE], [SMALL]])
    files = open_shards(shard_paths(place), writable=True)
    for file in files:
        file.truncate(len(SMALL))
        file.sync()
        assert file.length() == len(SMALL)
    for file in reversed(files):
        file.write_at(len(SMALL), [b"instead"])
        file.sync()
    close(files)
    files = open_shards(shard_paths(place))
    assert {file.length() for file in files} == {len(SMALL) + 7}
    close(files)


def test_no_shards_are_made_where_there_are_some(place: Place) -> None:
    written(place, [[SMALL]])
    with pytest.raises(StoreError, match=r"img-0|just written a checkpoint"):
        create_shards(place, 2, ZSTD)
    assert len(shard_paths(place)) == 2


def test_removed_shards_leave_nothing(place: Place) -> None:
    written(place, [[LARGE], [SMALL]])
    remove_shards(place)
    assert shard_paths(place) == []
    assert directory_at(place).entries() == ([], [])
    remove_shards(place)


def test_one_writer_on_this_machine(place: Place) -> None:
    written(place, [[SMALL]])
    one = open_shards(shard_paths(place), writable=True)
    other = open_shards(shard_paths(place), writable=True)
    one[0].lock()
    with pytest.raises(StoreBusy, match=str(place)):
        other[0].lock()
    close(one)
    other[0].lock()
    close(other)


def test_a_store_is_locked_and_let_go(place: Place) -> None:
    with directory_at(place).locked("mounted"):
        assert directory_at(place).lock_path().exists()
        with (
            pytest.raises(StoreBusy, match="mounted"),
            directory_at(place).locked("mounted"),
        ):
            pass
    with directory_at(place).locked("mounted"):
        pass


def test_walk_finds_each_checkpoint_once(place: Place) -> None:
    for name in ("b", "a", "a/below"):
        if not isinstance(place, ObjectPath):
            (place / name).mkdir()
        written(place / name, [[SMALL], [SMALL]])
    found = {str(directory): names for directory, names in directory_at(place).walk() if names}
    shards = ["img-0.zst", "img-1.zst"]
    assert found == {str(place / name): shards for name in ("a", "a/below", "b")}
    assert list(found) == sorted(found)
    assert directory_at(place).entries() == (["a", "b"], [])
    assert directory_at(place / "a").exists()
    assert not directory_at(place / "c").exists()


def test_a_store_that_can_be_used_passes_its_check(place: Place) -> None:
    directory_at(place).check(writable=True)
    assert directory_at(place).space().f_bfree > 0
