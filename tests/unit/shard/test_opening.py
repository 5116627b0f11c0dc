"""Opening: what is there, what is missing, mixed up, damaged or torn; each named."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import pytest
from writing import make_checkpoint, read_checkpoint, writing

from cedanafs.errors import (
    CheckpointIncomplete,
    CheckpointMissing,
    CorruptShard,
    MixedShards,
    StoreBusy,
    StoreError,
    UnknownFeature,
)
from cedanafs.shard.checkpoint import Checkpoint
from cedanafs.shard.codec import codec_of
from cedanafs.shard.commit import Index
from cedanafs.shard.format import Carrier
from cedanafs.shard.lanes import Lanes
from cedanafs.shard.local import LocalShard
from cedanafs.shard.opening import Opened, open_checkpoint
from cedanafs.shard.scan import scan
from cedanafs.shard.store import shard_paths

CODECS = ["none", "lz4", "zstd", "gzip", "zlib"]
FIRST = {"inventory.img": b"inventory", "pages-1.img": random.Random(1).randbytes(3000)}
SECOND = {**FIRST, "stats-dump": b"statistics" * 30}


def look(directory: Path) -> Opened:
    """What opening says, with the files closed again."""
    opened = open_checkpoint(directory)
    opened.close()
    return opened


def sizes(directory: Path) -> list[int]:
    return [path.stat().st_size for path in shard_paths(directory)]


def truncate(path: Path, length: int) -> None:
    with path.open("r+b") as file:
        file.truncate(length)


def flip(path: Path, at: int) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ 1 << at % 8]))


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., Path]:
    """make(name, files, shards=…, codec=…, seal=…): the directory of a new checkpoint."""
    return lambda name, files=FIRST, **how: make_checkpoint(tmp_path / name, files, **how)


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("shards", [1, 4])
def test_what_opening_says(make: Callable[..., Path], codec: str, shards: int) -> None:
    directory = make("c", codec=codec, shards=shards)
    opened = look(directory)
    assert (opened.commit, opened.sealed, opened.torn_bytes) == (2, True, 0)
    assert str(opened.codec) == str(codec_of(codec))
    assert opened.tool.startswith("cedanafs ")
    assert opened.created_ns <= opened.committed_ns
    assert opened.lengths == opened.commit_ends == sizes(directory)
    assert read_checkpoint(directory) == FIRST


def test_no_directory_and_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(CheckpointMissing, match="no such directory"):
        look(tmp_path / "absent")
    (tmp_path / "notes.txt").touch()
    (tmp_path / "img-01").touch()
    (tmp_path / "img-0.xz").touch()
    (tmp_path / "img-0").mkdir()
    with pytest.raises(CheckpointMissing, match="no checkpoint here"):
        look(tmp_path)


@pytest.mark.parametrize("lost", [0, 1, 2])
def test_a_missing_shard_is_named(make: Callable[..., Path], lost: int) -> None:
    directory = make("c", shards=3)
    (directory / f"img-{lost}.zst").unlink()
    with pytest.raises(CheckpointIncomplete, match=rf"img-{lost}\.zst missing"):
        look(directory)


def test_a_shard_too_many_is_named(make: Callable[..., Path]) -> None:
    directory = make("c", shards=2)
    shutil.copy(directory / "img-1.zst", directory / "img-2.zst")
    with pytest.raises(MixedShards, match=r"img-2\.zst is shard 1"):
        look(directory)
    (directory / "img-2.zst").write_bytes(b"")
    with pytest.raises(MixedShards, match=r"img-2\.zst is empty"):
        look(directory)


def test_swapped_shards_are_named(make: Callable[..., Path]) -> None:
    directory = make("c", shards=2)
    (directory / "img-0.zst").rename(directory / "x")
    (directory / "img-1.zst").rename(directory / "img-0.zst")
    (directory / "x").rename(directory / "img-1.zst")
    with pytest.raises(MixedShards, match=r"img-0\.zst is shard 1 of this checkpoint, not 0"):
        look(directory)


def test_shards_of_two_extensions_are_refused(make: Callable[..., Path]) -> None:
    directory = make("c", shards=2)
    (directory / "img-1.zst").rename(directory / "img-1.lz4")
    with pytest.raises(MixedShards, match=r"img-0\.zst, img-1\.lz4"):
        look(directory)
    shutil.copy(directory / "img-1.lz4", directory / "img-1.zst")
    with pytest.raises(MixedShards):
        look(directory)


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("extension", ["", ".lz4", ".zst", ".gz", ".zlib"])
def test_another_extension_is_refused(
    make: Callable[..., Path], codec: str, extension: str
) -> None:
    directory = make("c", codec=codec)
    (shard,) = shard_paths(directory)
    renamed = shard.with_name(f"img-0{extension}")
    shard.rename(renamed)
    if extension == codec_of(codec).extension:
        assert read_checkpoint(directory) == FIRST
    else:
        with pytest.raises(CorruptShard, match=str(renamed)):
            look(directory)


def test_a_shard_of_another_checkpoint_is_named(make: Callable[..., Path]) -> None:
    ours, other = make("ours", shards=3), make("other", shards=3)
    shutil.copy(other / "img-2.zst", ours / "img-2.zst")
    with pytest.raises(MixedShards, match=r"img-2\.zst belongs to another checkpoint"):
        look(ours)


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize(
    "content", [b"x", b"text\n" * 500, bytes(5000)], ids=["x", "text", "zeros"]
)
def test_a_foreign_file_is_refused(make: Callable[..., Path], codec: str, content: bytes) -> None:
    directory = make("c", codec=codec, shards=2)
    shard_paths(directory)[1].write_bytes(content)
    with pytest.raises(CorruptShard, match=r"img-1.* is not a shard of cedanafs"):
        look(directory)


@pytest.mark.parametrize("codec", CODECS)
def test_an_empty_shard_among_full_ones_is_named(make: Callable[..., Path], codec: str) -> None:
    directory = make("c", codec=codec, shards=2)
    shard_paths(directory)[1].write_bytes(b"")
    with pytest.raises(MixedShards, match=r"img-1\S* is empty"):
        look(directory)


def test_shards_without_a_commit_are_an_empty_checkpoint(tmp_path: Path) -> None:
    with writing(tmp_path, shards=2) as writer:
        writer.create("a", b"never committed" * 10)
        writer.log.flush()
    opened = look(tmp_path)
    assert (opened.commit, opened.checkpoint, opened.contents.images) == (0, None, {})
    assert opened.torn_bytes == sum(sizes(tmp_path)) > 0
    with writing(tmp_path, shards=4) as writer:  # the shards that are there stay
        writer.create("b", b"kept")
        writer.commit()
    assert len(shard_paths(tmp_path)) == 2
    assert read_checkpoint(tmp_path) == {"b": b"kept"}


def committed_twice(directory: Path, codec: str, shards: int = 2) -> tuple[list[int], list[int]]:
    """FIRST, then SECOND, not sealed; returns the shards' lengths after each commit."""
    with writing(directory, shards=shards, codec=codec) as writer:
        for name, data in FIRST.items():
            writer.create(name, data)
        writer.commit()
        first = sizes(directory)
        for name in SECOND.keys() - FIRST.keys():
            writer.create(name, SECOND[name])
        writer.commit()
    return first, sizes(directory)


def cut_footers(directory: Path) -> list[int]:
    """Take the last footer off every shard, as a crash before them does; returns the lengths."""
    carrier = Carrier(look(directory).codec)
    for path in shard_paths(directory):
        file = LocalShard.open(path)
        last = scan(file, carrier, file.length()).last
        file.close()
        assert last is not None
        truncate(path, last.footer_at)
    return sizes(directory)


@pytest.mark.parametrize("codec", CODECS)
def test_a_torn_tail_is_ignored_and_cut_off(tmp_path: Path, codec: str) -> None:
    """Wherever a crash stopped the second commit, on whichever shard, the first one holds."""
    work = tmp_path / "work"
    first, second = committed_twice(work, codec)
    complete = [path.read_bytes() for path in shard_paths(work)]
    footers = cut_footers(work)
    whole = [path.read_bytes() for path in shard_paths(work)]
    noise = random.Random(3)
    for k, path in enumerate(shard_paths(work)):
        torn = [
            whole[k][:length] + tail
            for length in range(first[k], footers[k], 7)
            for tail in (b"", bytes(50), noise.randbytes(50))
        ]
        torn += [complete[k][:length] for length in range(footers[k], second[k])]
        for content in torn:
            path.write_bytes(content)
            opened = look(work)
            assert opened.commit == 1
            assert opened.contents.images.keys() == FIRST.keys()
            assert opened.commit_ends == first
        assert read_checkpoint(work) == FIRST
        with writing(work) as writer:
            assert sizes(work) == first
            writer.create("after", b"the crash")
            writer.commit()
        assert read_checkpoint(work) == {**FIRST, "after": b"the crash"}
        for other, content in zip(shard_paths(work), whole, strict=True):
            other.write_bytes(content)


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("commits", [1, 2])
def test_a_shard_cut_short_behind_its_neighbours_is_damaged(
    tmp_path: Path, codec: str, commits: int
) -> None:
    """A footer stands only while all shards have the index: no crash leaves less."""
    first, second = committed_twice(tmp_path, codec)
    start = first if commits == 2 else [0, 0]
    if commits == 1:
        for path, length in zip(shard_paths(tmp_path), first, strict=True):
            truncate(path, length)
        second = first
    path = shard_paths(tmp_path)[1]
    content = path.read_bytes()
    other = shard_paths(tmp_path)[0].read_bytes()
    footer_at = cut_footers(tmp_path)[1]
    shard_paths(tmp_path)[0].write_bytes(other)
    for length in range(start[1], second[1]):
        path.write_bytes(content[:length])
        if length < footer_at:
            with pytest.raises((CorruptShard, MixedShards), match=path.name):
                look(tmp_path)
        else:
            assert look(tmp_path).commit == commits - 1


@pytest.mark.parametrize("codec", CODECS)
def test_commits_behind_a_damaged_place_are_not_cut_off(tmp_path: Path, codec: str) -> None:
    """One shard, so nobody else knows; behind the commit a crash has left a torn frame."""
    _, (length,) = committed_twice(tmp_path, codec, shards=1)
    (path,) = shard_paths(tmp_path)
    right = path.read_bytes() + b"torn" * 50
    path.write_bytes(right)
    refused = 0
    for at in range(0, length, 13):  # a writer costs some fsyncs
        flip(path, at)
        try:
            found: dict[str, bytes] | str = read_checkpoint(tmp_path)
        except CorruptShard as exc:
            found = str(exc)
        assert found == SECOND or path.name in found
        try:
            with writing(tmp_path):
                pass
        except CorruptShard:
            refused += 1
            assert path.stat().st_size == len(right)
        else:
            assert path.stat().st_size == length
        path.write_bytes(right)
    assert refused > length // 100


@pytest.mark.parametrize("codec", CODECS)
def test_bytes_behind_the_last_commit_are_ignored(tmp_path: Path, codec: str) -> None:
    _, second = committed_twice(tmp_path, codec)
    for path in shard_paths(tmp_path):
        path.write_bytes(path.read_bytes() + b"torn off" * 20)
    opened = look(tmp_path)
    assert (opened.commit, opened.torn_bytes) == (2, 320)
    assert read_checkpoint(tmp_path) == SECOND
    assert opened.commit_ends == second


@pytest.mark.parametrize("codec", CODECS)
def test_a_shard_from_an_older_copy_is_named(tmp_path: Path, codec: str) -> None:
    first, _ = committed_twice(tmp_path, codec)
    with writing(tmp_path) as writer:
        writer.create("more", b"more")
        writer.commit(seal=True)
    path = shard_paths(tmp_path)[1]
    truncate(path, first[1])
    with pytest.raises(MixedShards, match=r"img-1\S* is at commit 1, other shards are at commit 4"):
        look(tmp_path)


def test_a_shard_of_another_history_is_named(tmp_path: Path) -> None:
    """Two copies of one checkpoint went on on their own; their commits have the same number."""
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    make_checkpoint(ours, FIRST, shards=2)
    shutil.copytree(ours, theirs)
    for directory in (ours, theirs):
        with writing(directory) as writer:
            writer.create("more", directory.name.encode())
            writer.commit(seal=True)
    shutil.copy(theirs / "img-1.zst", ours / "img-1.zst")
    with pytest.raises(MixedShards, match=r"img-1\.zst does not agree"):
        look(ours)


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("shards", [1, 2])
def test_the_next_writer_cuts_the_seal_off(tmp_path: Path, codec: str, shards: int) -> None:
    with writing(tmp_path, shards=shards, codec=codec) as writer:
        for name, data in FIRST.items():
            writer.create(name, data)
        writer.commit()
        unsealed = sizes(tmp_path)
        writer.commit(seal=True)
    sealed = sizes(tmp_path)
    assert all(a < b for a, b in zip(unsealed, sealed, strict=True))
    with writing(tmp_path) as writer:
        assert sizes(tmp_path) == unsealed
        assert look(tmp_path).commit == 1
        assert read_checkpoint(tmp_path) == FIRST  # and nothing lost, should the writer die now
        writer.commit(seal=True)  # nothing was written: the seal only comes back
    assert sizes(tmp_path) == sealed
    opened = look(tmp_path)
    assert (opened.commit, opened.sealed) == (2, True)
    assert read_checkpoint(tmp_path) == FIRST


@pytest.mark.parametrize("codec", CODECS)
def test_a_writer_that_died_between_the_cuts_loses_nothing(tmp_path: Path, codec: str) -> None:
    with writing(tmp_path, shards=2, codec=codec) as writer:
        for name, data in FIRST.items():
            writer.create(name, data)
        writer.commit()
        unsealed = sizes(tmp_path)
        writer.commit(seal=True)
    zero, one = shard_paths(tmp_path)
    sealed = zero.read_bytes()
    without_footers = cut_footers(tmp_path)
    truncate(one, unsealed[1])
    assert read_checkpoint(tmp_path) == FIRST
    zero.write_bytes(sealed)
    one.write_bytes(one.read_bytes().ljust(without_footers[1], b"?"))
    with pytest.raises(CorruptShard, match=one.name):  # one footer stands, so the other index must
        read_checkpoint(tmp_path)
    truncate(zero, without_footers[0])
    truncate(one, unsealed[1])
    with writing(tmp_path) as writer:
        writer.create("more", b"more")
        writer.commit(seal=True)
    assert read_checkpoint(tmp_path) == {**FIRST, "more": b"more"}


@pytest.mark.parametrize("codec", CODECS)
def test_no_flipped_bit_gives_wrong_bytes(make: Callable[..., Path], codec: str) -> None:
    """What was sealed is read as it was, or the damage is found: nothing between."""
    directory = make("c", {"a": b"some bytes", "b": b"more of them"}, codec=codec, shards=2)
    named: list[bool] = []
    for path in shard_paths(directory):
        content = path.read_bytes()
        for at in range(len(content)):
            flip(path, at)
            try:
                assert read_checkpoint(directory) == {"a": b"some bytes", "b": b"more of them"}
            except CorruptShard as exc:
                named.append(path.name in str(exc))
            flip(path, at)
        assert path.read_bytes() == content
    assert len(named) > 100
    assert all(named)


def test_an_unknown_feature_is_refused_by_name(
    make: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("cedanafs.shard.log.Index", partial(Index, features=("age",)))
        directory = make("c")
    with pytest.raises(UnknownFeature, match="needs age"):
        look(directory)


def test_an_unknown_version_is_refused_by_number(
    make: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("cedanafs.shard.format.VERSION", 9)
        patch.setattr("cedanafs.shard.commit.VERSION", 9)
        directory = make("c")
    with pytest.raises(UnknownFeature, match="version 9"):
        look(directory)


def test_an_unknown_codec_is_refused_by_name(
    make: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(
            "cedanafs.shard.log.Index", lambda **said: Index(**{**said, "codec": "brotli"})
        )
        directory = make("c")
    with pytest.raises(UnknownFeature, match="brotli"):
        look(directory)


def test_one_writer_at_a_time(tmp_path: Path) -> None:
    with writing(tmp_path) as first, Lanes(1, budget_bytes=1) as lanes:
        first.commit()
        second = Checkpoint.load(tmp_path)
        with pytest.raises(StoreBusy):
            second.begin_writing(lanes, shards=1, codec=codec_of("zstd"))
        second.close()


def test_a_checkpoint_that_changed_meanwhile_is_not_written_over(tmp_path: Path) -> None:
    make_checkpoint(tmp_path, FIRST)
    late = Checkpoint.load(tmp_path)
    with writing(tmp_path) as writer:
        writer.create("more", b"committed by another")
        writer.commit(seal=True)
    with Lanes(1, budget_bytes=1) as lanes, pytest.raises(StoreBusy, match="changed"):
        late.begin_writing(lanes, shards=1, codec=codec_of("zstd"))
    late.close()
    assert read_checkpoint(tmp_path) == {**FIRST, "more": b"committed by another"}


def test_a_symbolic_link_is_no_shard(make: Callable[..., Path], tmp_path: Path) -> None:
    directory = make("c")
    (directory / "img-0.zst").rename(tmp_path / "elsewhere")
    (directory / "img-0.zst").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StoreError, match="img-0"):
        look(directory)


@pytest.mark.parametrize("codec", CODECS)
def test_no_footer_before_all_else_is_durable_on_every_shard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, codec: str
) -> None:
    """A disk may write in any order between two fsyncs; a footer vouches for what precedes it."""
    events: list[tuple[str, str]] = []
    write_at, sync = LocalShard.write_at, LocalShard.sync

    def noted_write(file: LocalShard, offset: int, buffers: Sequence[bytes]) -> None:
        footer = any(b"CdEn" in piece for piece in buffers)
        events.append(("footer" if footer else "write", file.name))
        write_at(file, offset, buffers)

    def noted_sync(file: LocalShard) -> None:
        sync(file)
        events.append(("sync", file.name))

    with writing(tmp_path, shards=3, codec=codec) as writer:
        monkeypatch.setattr(LocalShard, "write_at", noted_write)
        monkeypatch.setattr(LocalShard, "sync", noted_sync)
        for name, data in FIRST.items():
            writer.create(name, data)
        writer.commit(seal=True)
    names = {path.name for path in shard_paths(tmp_path)}
    assert [event for event, _ in events].count("footer") == 2 * len(names)
    unsynced: set[str] = set()
    for event, name in events:
        if event == "sync":
            unsynced.discard(name)
        elif event == "write":
            unsynced.add(name)
        else:
            assert not unsynced, events
    assert events[-1][0] == "sync"


@pytest.mark.parametrize("codec", CODECS)
def test_who_opens_while_another_commits_sees_one_of_the_commits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, codec: str
) -> None:
    """Nothing is called damaged because it changed between a look at one shard and the next."""
    length = LocalShard.length
    commits = 0

    def length_and_commit(file: LocalShard) -> int:
        nonlocal commits
        found = length(file)
        if file.name.startswith("img-0") and commits < 2:
            commits += 1
            writer.create(f"late-{commits}", b"more")
            writer.commit()
        return found

    with writing(tmp_path, shards=3, codec=codec) as writer:
        writer.create("a", b"content")
        writer.commit()
        monkeypatch.setattr(LocalShard, "length", length_and_commit)
        assert look(tmp_path).contents.images.keys() == {"a", "late-1", "late-2"}
