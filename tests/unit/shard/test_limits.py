"""What no reader would take is not written: a writer keeps to the format's limits."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
from stream_parser import files_of
from writing import read_checkpoint, stock_decoded, writing

from cedanafs.errors import StoreError
from cedanafs.shard.audit import verify
from cedanafs.shard.format import MAX_SHARDS
from cedanafs.shard.opening import open_checkpoint


@pytest.mark.parametrize("codec", ["none", "zstd"])
def test_a_seal_of_many_files_takes_several_frames(
    tmp_path: Path, codec: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cedanafs.shard.log.FRAME_BYTES", 300)
    files = {f"image-{n}.img": b"%d" % n for n in range(100)}
    with writing(tmp_path, shards=2, codec=codec) as writer:
        for name, data in files.items():
            writer.create(name, data)
        writer.commit(seal=True)
    assert verify(tmp_path).damages == ()
    assert read_checkpoint(tmp_path) == files
    found = files_of(stock_decoded(tmp_path, codec))
    assert {name: found[name] for name in files} == files
    with writing(tmp_path) as writer:  # who goes on cuts all of them off
        writer.create("more", b"more")
        writer.commit()
    assert read_checkpoint(tmp_path) == {**files, "more": b"more"}


def test_an_index_that_is_too_long_is_not_committed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with writing(tmp_path, shards=2) as writer:
        writer.create("first", b"first")
        writer.commit()
        monkeypatch.setattr("cedanafs.shard.commit.MAX_INDEX_LEN", 4_000)
        for n in range(100):
            writer.create(f"image-{n}", b"some")
        for _ in range(2):
            with pytest.raises(StoreError, match="too many files") as failure:
                writer.commit()
            assert failure.value.os_errno == errno.EFBIG
    assert read_checkpoint(tmp_path) == {"first": b"first"}


def test_the_most_shards_there_may_be(tmp_path: Path) -> None:
    with writing(tmp_path, shards=MAX_SHARDS) as writer:
        writer.create("a", b"bytes")
        writer.commit(seal=True)
    opened = open_checkpoint(tmp_path)
    opened.close()
    assert len(opened.files) == MAX_SHARDS
    assert read_checkpoint(tmp_path) == {"a": b"bytes"}
