"""convert and export: the same images in other shards, ours or another streamer's."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from sets import DATA, DIGESTS, SETS, digests, streams
from stream_parser import CHUNK_LIMIT, StreamError, cedana_files_of, files_of
from writing import make_checkpoint, read_checkpoint, stock_decoded, writing

from cedanafs.errors import CheckpointError, CheckpointIncomplete, UsageError
from cedanafs.look.summary import inspect
from cedanafs.shard.codec import codec_of
from cedanafs.shard.copying import convert
from cedanafs.shard.exporting import Layout, export
from cedanafs.shard.opening import open_checkpoint

BUDGET = 32 << 20


@pytest.mark.parametrize("codec", ["none", "lz4", "zstd", "gzip", "zlib"])
@pytest.mark.parametrize("name", SETS)
def test_a_foreign_set_becomes_ours_and_a_stream_of_theirs(
    name: str, codec: str, tmp_path: Path
) -> None:
    """What is sealed is what criu-image-streamer accepts, whoever wrote it first."""
    made = tmp_path / "made"
    count = convert(DATA / name, made, shards=3, codec=codec_of(codec), budget_bytes=BUDGET)
    assert count == len(DIGESTS)
    found = inspect(made)
    assert (found.foreign, found.state, found.shards) == (False, "complete", 3)
    assert found.codec.startswith(codec)
    assert digests(read_checkpoint(made)) == DIGESTS
    if codec != "zlib":
        files = files_of(stock_decoded(made, codec))
        files.pop(".cedanafs", None)
        assert digests(files) == DIGESTS


@pytest.mark.parametrize("codec", ["none", "lz4", "zstd:3", "gzip"])
@pytest.mark.parametrize("shards", [1, 2, 5])
def test_export_as_criu_image_streamer_writes(codec: str, shards: int, tmp_path: Path) -> None:
    made = tmp_path / "made"
    export(
        DATA / "cedana-4-zlib", made, layout=Layout.STREAMER, shards=shards, codec=codec_of(codec)
    )
    assert len(list(made.iterdir())) == shards
    assert digests(files_of(streams(made), chunk_limit=CHUNK_LIMIT)) == DIGESTS
    assert inspect(made).tool == "criu-image-streamer"


@pytest.mark.parametrize("codec", ["tar", "lz4", "gzip", "zlib"])
@pytest.mark.parametrize("shards", [2, 4])
def test_export_as_cedana_writes(codec: str, shards: int, tmp_path: Path) -> None:
    made = tmp_path / "made"
    export(
        DATA / "streamer-4-zstd", made, layout=Layout.CEDANA, shards=shards, codec=codec_of(codec)
    )
    assert digests(cedana_files_of(streams(made))) == DIGESTS
    with pytest.raises(StreamError):
        files_of(streams(made))
    assert inspect(made).tool == "Cedana's streamer"


def test_cedanas_large_files(tmp_path: Path) -> None:
    """Each kind is where the strict parser wants it; a set may have no large file at all."""
    names = (
        "pages-1.img", "pages-x.img", "ghost-file-12.img", "ghost-file-.img", "rw-layer-3.img",
        "tcp-stream-1a.img", "gpu-mem-1", "gpu-mem-size-1", "gpu-other-1", "gpu-ctxshm-a",
    )  # fmt: skip
    ours = make_checkpoint(tmp_path / "ours", {name: name.encode() * 999 for name in names})
    export(ours, tmp_path / "made", layout=Layout.CEDANA, shards=3, codec=codec_of("none"))
    assert cedana_files_of(streams(tmp_path / "made")) == read_checkpoint(ours)
    small = make_checkpoint(tmp_path / "small", {"inventory.img": b"", "stats": b"s"})
    export(small, tmp_path / "none", layout=Layout.CEDANA, shards=3, codec=codec_of("lz4"))
    assert cedana_files_of(streams(tmp_path / "none")) == read_checkpoint(small)
    assert read_checkpoint(tmp_path / "none") == read_checkpoint(small)


def test_what_is_written_over_and_what_is_not_written_at_all(tmp_path: Path) -> None:
    """A log with overwritten bytes and holes is a plain stream afterwards, holes are zeros."""
    with writing(tmp_path / "ours", shards=2) as writer:
        image = writer.create("pages-1.img", os.urandom(5 << 20))
        writer.write(image, 1 << 20, b"over" * 1000)
        writer.log.truncate(image, 6 << 20)
        writer.write(image, (7 << 20) + 5, b"end")
        writer.create("inventory.img", b"i")
        writer.commit()
    expected = read_checkpoint(tmp_path / "ours")
    export(
        tmp_path / "ours", tmp_path / "made", layout=Layout.STREAMER, shards=2,
        codec=codec_of("zstd"),
    )  # fmt: skip
    assert files_of(streams(tmp_path / "made"), chunk_limit=CHUNK_LIMIT) == expected
    again = tmp_path / "again"
    convert(tmp_path / "ours", again, shards=1, codec=codec_of("lz4"), budget_bytes=BUDGET)
    assert read_checkpoint(again) == expected
    opened = open_checkpoint(again)
    try:
        extents = opened.contents.images["pages-1.img"].extents
        assert sum(piece.length for _, piece in extents) == (5 << 20) + 3, "the hole was filled"
    finally:
        opened.close()


def test_links_and_attributes_are_kept_by_convert_alone(tmp_path: Path) -> None:
    with writing(tmp_path / "ours") as writer:
        image = writer.create("inventory.img", b"i")
        image.mode, image.uid, image.gid, image.mtime_ns = 0o640, 12, 34, 56
        writer.log.touch(image)
        writer.log.symlink("parent", "../before", uid=1, gid=2)
        writer.commit()
    convert(
        tmp_path / "ours", tmp_path / "made", shards=2, codec=codec_of("gzip"), budget_bytes=BUDGET
    )
    opened = open_checkpoint(tmp_path / "made")
    opened.close()
    made, link = (opened.contents.images[name] for name in ("inventory.img", "parent"))
    assert (made.mode, made.uid, made.gid, made.mtime_ns) == (0o640, 12, 34, 56)
    assert (link.symlink_to, link.uid, link.gid) == ("../before", 1, 2)
    for layout in Layout:
        with pytest.raises(UsageError, match="parent is a link"):
            export(
                tmp_path / "ours", tmp_path / "no", layout=layout, shards=2, codec=codec_of("lz4")
            )
    assert not (tmp_path / "no").exists()


def test_with_a_base_it_needs_none_afterwards(tmp_path: Path) -> None:
    pages = os.urandom(64 << 12)
    make_checkpoint(tmp_path / "base", {"pages-1.img": pages, "inventory.img": b"i"})
    with writing(tmp_path / "ours", base="base") as writer:
        writer.create("pages-1.img", pages[: 32 << 12] + os.urandom(4096))
        writer.create("inventory.img", b"j")
        writer.commit(seal=True)
    expected = read_checkpoint(tmp_path / "ours")
    yard = tmp_path / "yard"
    yard.mkdir()
    convert(tmp_path / "ours", yard / "made", shards=1, codec=codec_of("lz4"), budget_bytes=BUDGET)
    export(tmp_path / "ours", yard / "set", layout=Layout.STREAMER, shards=1, codec=codec_of("lz4"))
    assert read_checkpoint(yard / "made") == read_checkpoint(yard / "set") == expected


@pytest.mark.parametrize(
    ("layout", "codec", "shards", "words"),
    [
        (Layout.CEDANA, "zstd", 4, "--compression zstd is not known there; one of none, lz4, gzip"),
        (Layout.CEDANA, "lz4", 1, "--stream 2 at least"),
        (Layout.STREAMER, "zlib", 4, "--compression zlib is not known there"),
    ],
)
def test_what_the_other_cannot_read_is_refused(
    layout: Layout, codec: str, shards: int, words: str, tmp_path: Path
) -> None:
    source = DATA / "streamer-4-lz4"
    with pytest.raises(UsageError, match=words):
        export(source, tmp_path / "made", layout=layout, shards=shards, codec=codec_of(codec))
    assert not (tmp_path / "made").exists()


def test_of_what_is_not_whole_nothing_is_made(tmp_path: Path) -> None:
    made = tmp_path / "made"
    damaged = make_checkpoint(tmp_path / "ours", {"a.img": os.urandom(99_999)}, codec="none")
    shard = damaged / "img-0"
    data = bytearray(shard.read_bytes())
    data[9_999] ^= 1
    shard.write_bytes(data)
    with pytest.raises(CheckpointError, match=r"'a.img' at offset 0: .*img-0 at offset"):
        convert(damaged, made, shards=2, codec=codec_of("lz4"), budget_bytes=BUDGET)
    with pytest.raises(CheckpointError, match=r"'a.img' at offset 0: .*img-0 at offset"):
        export(damaged, made, layout=Layout.STREAMER, shards=1, codec=codec_of("lz4"))
    with writing(tmp_path / "torn") as writer:
        writer.create("a.img", b"a")
    with pytest.raises(CheckpointIncomplete, match="no commit of it ever completed"):
        convert(tmp_path / "torn", made, shards=2, codec=codec_of("lz4"), budget_bytes=BUDGET)
    assert not made.exists()
    made.mkdir()
    (made / "there").touch()
    with pytest.raises(UsageError, match="there already"):
        export(
            DATA / "streamer-4-lz4", made, layout=Layout.STREAMER, shards=1, codec=codec_of("lz4")
        )
    assert os.listdir(made) == ["there"]
