"""Sets that criu-image-streamer and Cedana's fork have written, read as if they were ours."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from sets import DATA, DIGESTS, SETS, digests, digests_in, make_set, record, streams
from stream_parser import cedana_files_of, files_of
from writing import make_checkpoint, read_checkpoint, writing

from cedanafs.errors import (
    CheckpointError,
    CheckpointIncomplete,
    CorruptShard,
    MixedShards,
    StoreError,
    UsageError,
)
from cedanafs.look import inspect
from cedanafs.shard.audit import extract, verify
from cedanafs.shard.bases import take_base
from cedanafs.shard.opening import open_checkpoint
from cedanafs.shard.repair import diagnose
from cedanafs.shard.transfer import copy

EXTENSIONS = ("", ".lz4", ".zst", ".gz", ".zlib")
HELLO = (
    record(0, filename="inventory.img")
    + record(1, data=b"hello")
    + record(2, file_eof=True)
    + record(3, image_eof=True)
)


@pytest.mark.parametrize("name", SETS)
def test_what_is_in_it_comes_out(name: str, tmp_path: Path) -> None:
    assert digests(read_checkpoint(DATA / name)) == DIGESTS
    assert extract(DATA / name, tmp_path / "out") == len(DIGESTS)
    assert digests_in(tmp_path / "out") == DIGESTS


@pytest.mark.parametrize("name", SETS)
def test_the_strict_parser_reads_it_too(name: str) -> None:
    parse = cedana_files_of if name.startswith("cedana") else files_of
    assert digests(parse(streams(DATA / name))) == DIGESTS


@pytest.mark.parametrize("extension", EXTENSIONS)
@pytest.mark.parametrize("name", ["cedana-4-lz4", "streamer-4-zstd", "streamer-1-gzip"])
def test_whatever_compresses_it(name: str, extension: str, tmp_path: Path) -> None:
    made = make_set(tmp_path / "set", streams(DATA / name), extension)
    assert digests(read_checkpoint(made)) == DIGESTS


@pytest.mark.parametrize("name", SETS)
def test_it_is_looked_at_like_ours(name: str) -> None:
    found = inspect(DATA / name)
    assert found.state == "complete"
    assert found.foreign
    assert found.tool == ("Cedana's streamer" if "cedana" in name else "criu-image-streamer")
    assert found.codec == name.rpartition("-")[2]
    assert {image.name for image in found.images} == set(DIGESTS)
    assert found.raw_bytes == sum(image.bytes for image in found.images) > found.stored_bytes
    assert verify(DATA / name).damages == ()
    assert diagnose(DATA / name).damages == ()


def test_an_empty_shard_more_does_no_harm(tmp_path: Path) -> None:
    made = make_set(tmp_path / "set", [*streams(DATA / "streamer-4-lz4"), b""], ".lz4")
    assert digests(read_checkpoint(made)) == DIGESTS
    (made / "img-5.lz4").touch()
    assert digests(read_checkpoint(made)) == DIGESTS


def test_the_order_of_shards_is_free(tmp_path: Path) -> None:
    made = make_set(tmp_path / "set", streams(DATA / "streamer-4-lz4")[::-1], ".zst")
    assert digests(read_checkpoint(made)) == DIGESTS


def test_frames_and_skippable_frames_within_a_shard(tmp_path: Path) -> None:
    """A shard may be several compressed files, one behind the other."""
    skippable = b"\x50\x2a\x4d\x18\x03\0\0\0abc"
    shards = [(DATA / f"streamer-4-{kind}/img-0{ext}").read_bytes() for kind, ext in (
        ("lz4", ".lz4"), ("zstd", ".zst")
    )]  # fmt: skip
    for stored, extension in zip(shards, (".lz4", ".zst"), strict=True):
        made = make_set(tmp_path / extension, streams(DATA / "streamer-4-lz4"), extension)
        if extension == ".zst":  # another capture: the same files on other shards
            made = Path(shutil.copytree(DATA / "streamer-4-zstd", tmp_path / "copy"))
        whole = skippable + stored + skippable
        (made / f"img-0{extension}").write_bytes(whole)
        assert digests(read_checkpoint(made)) == DIGESTS


def test_a_name_goes_on_on_another_shard(tmp_path: Path) -> None:
    """The selected file is one for all shards; an empty file is no trouble; nor are 8 MiB."""
    large = bytes(range(256)) * (8 << 12)
    shards = [
        record(0, filename="a.img") + record(3, data=b"1") + record(6, filename="empty.img"),
        record(1, data=large)
        + record(4, filename="a.img")
        + record(7, file_eof=True)
        + record(8, image_eof=True),
        record(2, filename="b.img") + record(5, data=b"2"),
    ]
    for number, extension in enumerate(("", ".lz4")):
        made = make_set(tmp_path / str(number), shards, extension)
        assert read_checkpoint(made) == {"a.img": large + b"2", "b.img": b"1", "empty.img": b""}


@pytest.mark.parametrize("name", SETS)
def test_a_missing_shard_is_named_or_missed(name: str, tmp_path: Path) -> None:
    count = len(list((DATA / name).iterdir()))
    for k in range(count):
        made = Path(shutil.copytree(DATA / name, tmp_path / str(k)))
        (gone,) = made.glob(f"img-{k}*")
        gone.unlink()
        if count > 1:
            with pytest.raises(CheckpointIncomplete):
                open_checkpoint(made)


@pytest.mark.parametrize("extension", EXTENSIONS)
def test_a_shard_that_was_cut_short_is_found(extension: str, tmp_path: Path) -> None:
    """Wherever it is cut, but in what some compressors put behind all data."""
    made = make_set(tmp_path / "set", [HELLO], extension)
    shard = made / f"img-0{extension}"
    whole = shard.read_bytes()
    for length in range(len(whole)):
        shard.write_bytes(whole[:length])
        try:
            opened = open_checkpoint(made)
        except CheckpointError:
            continue
        opened.close()
        assert opened.commit == 0 or read_checkpoint(made) == {"inventory.img": b"hello"}


@pytest.mark.parametrize(
    ("shards", "kind", "words"),
    [
        ([HELLO + b"\0"], CorruptShard, "cut short in a marker"),
        ([HELLO + record(4, filename="x")], CorruptShard, "behind the end"),
        ([HELLO, record(4, filename="x")], CorruptShard, "behind the end"),
        ([HELLO, record(2, filename="x")], MixedShards, "record 2 is there twice"),
        ([HELLO.replace(b"\x08\x02", b"\x08\x04")], CheckpointIncomplete, "record 2 is missing"),
        ([HELLO.replace(b"\x08\x02", b"\x08\x01")], CorruptShard, "out of order"),
        ([HELLO[: -len(record(3, image_eof=True))]], CheckpointIncomplete, "the end of the image"),
        ([record(1, filename="x") + record(2, image_eof=True)], CheckpointIncomplete, "record 0"),
        ([record(0, data=b"x")], CorruptShard, "no file is selected"),
        ([record(0, filename="../x")], CorruptShard, "no file name"),
        ([record(0, filename="/etc/passwd")], CorruptShard, "no file name"),
        ([record(0, filename="x") + b"\xff\xff\0\0"], CorruptShard, "a marker of 65535 bytes"),
        ([record(0, filename="x") + record(1, data=bytes(8 << 20 | 1))], CorruptShard, "a chunk"),
        ([record(0, filename="x") + record(1, data=b"abc")[:-1]], CorruptShard, "in a chunk"),
        ([record(0, filename="x") + b"\1\0\0\0\x0f"], CorruptShard, "offset 7: marker: "),
    ],
)
@pytest.mark.parametrize("extension", ["", ".zst"])
def test_what_no_streamer_writes_is_refused(
    shards: list[bytes], kind: type[CheckpointError], words: str, extension: str, tmp_path: Path
) -> None:
    with pytest.raises(kind, match=words) as caught:
        open_checkpoint(make_set(tmp_path / "set", shards, extension))
    assert str(tmp_path / "set") in str(caught.value)


@pytest.mark.parametrize(
    ("small", "words"),
    [
        (record(0, filename="a") + record(1, file_eof=True), "no metadata.json at the end"),
        (record(0, filename="metadata.json") + record(1, data=b"{}") + record(2, file_eof=True),
         "no list of names"),
        (record(0, filename="metadata.json") + record(1, data=b"[") + record(2, file_eof=True),
         "no list of names"),
        (record(0, filename="metadata.json") + record(1, data=b'["b"]') + record(2, file_eof=True),
         "'b' is missing, which metadata.json names"),
        (record(0, filename="metadata.json") + record(1, data=b"[]"), "no metadata.json at the"),
        (record(0, filename="metadata.json") + record(1, image_eof=True), "the end of the image"),
    ],
)  # fmt: skip
def test_cedanas_first_shard_must_be_whole(small: bytes, words: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=words):
        open_checkpoint(make_set(tmp_path / "set", [small, record(0, image_eof=True)], ".gz"))


def test_shards_of_different_streamers_do_not_mix(tmp_path: Path) -> None:
    ours = make_checkpoint(tmp_path / "ours", {"a.img": b"x" * 9999}, shards=4)
    for k in range(4):
        shutil.copy(DATA / f"streamer-4-zstd/img-{k}.zst", ours / f"img-{k}.zst")
        if k < 3:
            with pytest.raises(CheckpointError, match="img-"):
                open_checkpoint(ours)
    assert digests(read_checkpoint(ours)) == DIGESTS


def test_it_is_not_written_to(tmp_path: Path) -> None:
    made = Path(shutil.copytree(DATA / "streamer-4-lz4", tmp_path / "set"))
    before = digests_in(made)
    with pytest.raises(StoreError, match="cedanafs convert"), writing(made):
        pass
    with pytest.raises(UsageError, match="cedanafs convert"):
        take_base(tmp_path / "new", "set")
    with pytest.raises(UsageError, match="cedanafs convert"):
        copy(made, tmp_path / "copied")
    assert digests_in(made) == before


def test_what_it_unpacks_to_needs_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path / "gone"))
    with pytest.raises(StoreError, match="gone: No such file or directory: set TMPDIR"):
        open_checkpoint(DATA / "streamer-4-lz4")
    monkeypatch.setenv("TMPDIR", "/dev/shm")
    opened = open_checkpoint(DATA / "streamer-4-lz4")
    opened.close()
