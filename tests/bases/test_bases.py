"""Checkpoints that refer to a base: what is read is what was written, whatever is shared."""

from __future__ import annotations

import random
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from writing import Writer, make_checkpoint, read_checkpoint, writing

from cedanafs import cli
from cedanafs.errors import BaseUnusable, CheckpointMissing, CorruptShard, UsageError
from cedanafs.shard import bases
from cedanafs.shard.audit import extract, verify
from cedanafs.shard.checkpoint import Checkpoint
from cedanafs.shard.codec import codec_of
from cedanafs.shard.flatten import flatten
from cedanafs.shard.lanes import Lanes
from cedanafs.shard.opening import open_checkpoint
from cedanafs.shard.pages import PAGE, Pages, PageTable, hashes_of
from cedanafs.shard.patches import Kind, Run, decode_runs, encode_runs
from cedanafs.shard.store import PAGES_NAME, shard_paths

CODECS = ["none", "lz4", "zstd", "gzip", "zlib"]
NOISE = random.Random(7).randbytes(3 << 20)


@contextmanager
def onto(
    directory: Path, base: str | None, *, shards: int = 2, codec: str = "zstd", kept: bool = True
) -> Iterator[Writer]:
    """A new checkpoint in *directory* that refers to *base* beside it."""
    directory.mkdir()
    with Lanes(shards, budget_bytes=64 << 20) as lanes:
        checkpoint = Checkpoint.load(directory)
        try:
            log = checkpoint.begin_writing(
                lanes, shards=shards, codec=codec_of(codec), base=base, page_hashes=kept
            )
            yield Writer(checkpoint, log, lanes)
        finally:
            checkpoint.close()
        assert lanes.in_use_bytes == 0


def made(directory: Path, base: str | None, files: dict[str, bytes], **how: object) -> Path:
    with onto(directory, base, **how) as writer:  # type: ignore[arg-type]
        for name, data in files.items():
            writer.create(name, data)
        writer.commit(seal=True)
    return directory


def changed(data: bytes, every: int = 20) -> bytes:
    """*data* with each so many-th page another."""
    out = bytearray(data)
    for at in range(0, len(out), every * PAGE):
        out[at : at + 8] = b"another!"
    return bytes(out)


def images(pages: bytes) -> dict[str, bytes]:
    return {"pages-1.img": pages, "core.img": b"small", "inventory.img": b"whole"}


def stored(directory: Path) -> int:
    return sum(path.stat().st_size for path in shard_paths(directory))


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("kept", [True, False])
def test_what_the_base_holds_is_not_stored_again(tmp_path: Path, codec: str, kept: bool) -> None:
    first = made(tmp_path / "a", None, images(NOISE), codec=codec, kept=kept)
    assert (first / PAGES_NAME).exists() == kept
    second = images(changed(NOISE))
    made(tmp_path / "b", "a", second, codec=codec)
    assert read_checkpoint(tmp_path / "b") == second
    assert stored(tmp_path / "b") < stored(first) / 10
    assert verify(tmp_path / "b").damages == ()
    extract(tmp_path / "b", tmp_path / "out")
    assert {p.name: p.read_bytes() for p in (tmp_path / "out").iterdir()} == second


def test_pages_that_have_moved_are_found(tmp_path: Path) -> None:
    made(tmp_path / "a", None, images(NOISE))
    moved = random.Random(1).randbytes(3 * PAGE) + NOISE[: 1 << 20] + bytes(PAGE) + NOISE[1 << 20 :]
    made(tmp_path / "b", "a", {"pages-9.img": moved, "inventory.img": b"whole"})
    assert read_checkpoint(tmp_path / "b")["pages-9.img"] == moved
    assert stored(tmp_path / "b") < 40_000


def test_the_memory_that_looking_pages_up_takes_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many there are: of more pages only each 2nd, 4th, … 1024th can be found anywhere."""
    monkeypatch.setattr("cedanafs.shard.pages._LOOKED_UP", 64)
    held = random.Random(5).randbytes((1 << 16) * PAGE // 64)  # 64 bytes make a page here
    pages = [held[at : at + 64].ljust(PAGE, b".") for at in range(0, len(held), 64)]
    digests = [hashes_of([page], 3)[0] for page in pages]
    asked = Pages(PageTable(3, {"p": len(pages)}, b"".join(digests)))
    found = 0
    for at, page in enumerate(pages):
        (run,), _ = asked.cut(f"new-{at}", 0, [page])
        if run.kind == Kind.BASE:
            assert run == Run(Kind.BASE, PAGE, "p", at * PAGE)
            found += 1
    assert 20 < found < 200


def test_a_chain_is_read_through_and_flattened(tmp_path: Path) -> None:
    contents = NOISE
    for n in range(4):
        made(tmp_path / str(n), str(n - 1) if n else None, images(contents))
        contents = changed(contents, 9 + n)
        wanted = images(contents)
    made(tmp_path / "last", "3", wanted)
    assert read_checkpoint(tmp_path / "last") == wanted
    with pytest.raises(UsageError, match="base of last"):
        flatten(tmp_path / "3")
    flatten(tmp_path / "last")
    for n in range(4):
        shutil.rmtree(tmp_path / str(n))
    assert read_checkpoint(tmp_path / "last") == wanted
    assert verify(tmp_path / "last").damages == ()
    with writing(tmp_path / "last") as writer:  # and goes on as any other
        writer.create("more", b"of it")
        writer.commit(seal=True)
    assert read_checkpoint(tmp_path / "last") == wanted | {"more": b"of it"}


def test_a_base_may_grow(tmp_path: Path) -> None:
    made(tmp_path / "a", None, images(NOISE))
    second = images(changed(NOISE))
    made(tmp_path / "b", "a", second)
    with writing(tmp_path / "a") as writer:
        for image in list(writer.images.values()):
            writer.log.unlink(image, still_open=False)
        writer.create("pages-1.img", b"all new")
        writer.commit(seal=True)
    assert read_checkpoint(tmp_path / "a") == {"pages-1.img": b"all new"}
    assert read_checkpoint(tmp_path / "b") == second


def test_a_missing_or_changed_base_is_named(tmp_path: Path) -> None:
    made(tmp_path / "a", None, images(NOISE))
    made(tmp_path / "b", "a", images(changed(NOISE)))
    (tmp_path / "a").rename(tmp_path / "elsewhere")
    with pytest.raises(BaseUnusable, match=r"base .*/a is missing"):
        open_checkpoint(tmp_path / "b")
    made(tmp_path / "a", None, images(NOISE))
    with pytest.raises(BaseUnusable, match="/a is not the checkpoint that was taken"):
        open_checkpoint(tmp_path / "b")
    shutil.rmtree(tmp_path / "a")
    (tmp_path / "a").symlink_to("elsewhere")
    with pytest.raises(BaseUnusable, match="/a cannot be its base"):
        open_checkpoint(tmp_path / "b")


def test_a_base_in_use_is_not_removed(tmp_path: Path) -> None:
    made(tmp_path / "a", None, images(NOISE))
    made(tmp_path / "b", "a", images(changed(NOISE)))
    with pytest.raises(UsageError, match="base of b"):
        bases.remove(tmp_path / "a", even_if_used=False)
    bases.remove(tmp_path / "b", even_if_used=False)
    bases.remove(tmp_path / "a", even_if_used=False)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("when", ["before", "after"])
def test_what_others_need_of_a_base_is_not_repaired_away(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    when: str,
) -> None:
    """It has two commits, the later one damaged; the other took it as a base before or after."""
    noise = images(NOISE[: 1 << 20])
    made(tmp_path / "a", None, noise)
    if when == "before":
        made(tmp_path / "b", "a", noise)
    with writing(tmp_path / "a") as writer:
        writer.create("late", NOISE[1 << 20 :])
        writer.commit(seal=True)
    if when == "after":
        made(tmp_path / "b", "a", {**noise, "late": NOISE[1 << 20 :]})
    damage(tmp_path / "a", "late")
    before = shard_bytes(tmp_path / "a")
    for flags in ([], ["--yes"]):
        monkeypatch.setattr(sys, "argv", ["cedanafs", "repair", str(tmp_path / "a"), *flags])
        with pytest.raises(SystemExit) as end:
            cli.main()
        said = capsys.readouterr()
        if when == "after":
            assert end.value.code == 2
            assert "base of b, also with what would be cut off" in said.err
            assert shard_bytes(tmp_path / "a") == before
        else:
            assert end.value.code == 3  # what was written late is lost
            assert (shard_bytes(tmp_path / "a") == before) == (flags == [])
    if when == "before":
        assert read_checkpoint(tmp_path / "b") == noise


def damage(directory: Path, image: str) -> None:
    """Flip a bit in the first frame that holds some of *image*."""
    opened = open_checkpoint(directory)
    opened.close()
    (_, piece), *_ = opened.contents.images[image].extents
    assert piece.frame is not None
    path = shard_paths(directory)[piece.frame.shard]
    data = bytearray(path.read_bytes())
    data[piece.frame.offset + piece.frame.stored_len // 2] ^= 1
    path.write_bytes(data)


def shard_bytes(directory: Path) -> list[bytes]:
    return [path.read_bytes() for path in shard_paths(directory)]


@pytest.mark.parametrize("name", ["..", "b", "a/x", ".", "", "none"])
def test_what_cannot_be_a_base(tmp_path: Path, name: str) -> None:
    with pytest.raises((UsageError, CheckpointMissing), match=r"base|no such directory"):
        made(tmp_path / "b", name, images(NOISE))


def test_damage_in_the_base_is_found(tmp_path: Path) -> None:
    made(tmp_path / "a", None, images(NOISE))
    made(tmp_path / "b", "a", images(changed(NOISE)))
    path = max(shard_paths(tmp_path / "a"), key=lambda path: path.stat().st_size)
    data = bytearray(path.read_bytes())
    data[5000] ^= 1
    path.write_bytes(data)
    (damage,) = verify(tmp_path / "b").damages
    assert "of the base" in damage
    assert str(path) in damage


@pytest.mark.parametrize("spoil", [b"", b"x" * 100, b"CdPg" + b"\xff" * 4000])
def test_hashes_that_make_no_sense_are_computed_anew(tmp_path: Path, spoil: bytes) -> None:
    made(tmp_path / "a", None, images(NOISE))
    (tmp_path / "a" / PAGES_NAME).write_bytes(spoil)
    second = images(changed(NOISE))
    made(tmp_path / "b", "a", second)
    assert read_checkpoint(tmp_path / "b") == second
    assert stored(tmp_path / "b") < stored(tmp_path / "a") / 10


def test_a_killed_writer_leaves_what_was_committed(tmp_path: Path) -> None:
    """Every state in which the shards can be cut while one with references grows."""
    made(tmp_path / "a", None, images(NOISE[: 64 * PAGE]))
    wanted = images(changed(NOISE[: 64 * PAGE]))
    made(tmp_path / "b", "a", wanted, shards=1)
    flattened = tmp_path / "c"
    shutil.copytree(tmp_path / "b", flattened)
    before = shard_paths(flattened)[0].stat().st_size
    flatten(flattened)
    (path,) = shard_paths(flattened)
    whole = path.read_bytes()
    old = (tmp_path / "b" / path.name).read_bytes()
    content_end = next(i for i in range(before) if i == before or old[i] != whole[i])
    for end in range(content_end + 1, len(whole), 997):
        path.write_bytes(whole[:end])
        try:
            assert read_checkpoint(flattened) == wanted
        finally:
            path.write_bytes(whole)
    assert read_checkpoint(flattened) == wanted


PAGES = st.integers(0, 12).map(lambda n: bytes(PAGE) if n == 0 else bytes([n]) * PAGE)
DATA = st.lists(PAGES, max_size=60).map(b"".join)


@settings(max_examples=200, deadline=None)
@given(DATA, DATA, st.binary(max_size=50), st.integers(0, 5), st.integers(0, 60 * PAGE))
def test_runs_say_what_the_data_are(
    base: bytes, data: bytes, tail: bytes, at: int, cut: int
) -> None:
    data += tail
    start = at * PAGE
    table = PageTable(3, {"p": len(base) // PAGE}, b"".join(hashes_of([base], 3)))
    runs, hashes = Pages(table).cut("p", start, [data])
    for where in (cut, cut // PAGE * PAGE):  # in whatever pieces they arrive
        pieces = [data[:where], data[where:]]
        assert Pages(table).cut("p", start, pieces) == (runs, hashes)
    out, position, own = b"", 0, 0
    for run in runs:
        if run.kind == Kind.OWN:
            out += data[position : position + run.length]
            own += run.length
        elif run.kind == Kind.ZEROS:
            out += bytes(run.length)
        else:
            out += base[run.offset : run.offset + run.length]
        position += run.length
    assert out == data
    assert not hashes or hashes == b"".join(hashes_of([data], 3))
    if data:
        assert decode_runs(encode_runs(runs, start), start, own) == runs


@given(st.binary(max_size=200), st.integers(0, 1 << 62), st.integers(0, 1 << 32))
def test_any_bytes_are_runs_or_refused(blob: bytes, start: int, own: int) -> None:
    try:
        runs = decode_runs(blob, start, own)
    except CorruptShard:
        return
    assert sum(run.length for run in runs if run.kind == Kind.OWN) == own
    assert all(run.offset >= 0 and run.length > 0 for run in runs)


def test_runs_are_what_the_format_says() -> None:
    runs = [Run(Kind.BASE, 8192, "p", 4096), Run(Kind.OWN, 4096), Run(Kind.BASE, 4096, "p", 16384)]
    assert encode_runs(runs, 4096).hex() == "01017081800200008080018180010000"


def test_a_checkpoint_without_a_base_is_as_ever(tmp_path: Path) -> None:
    make_checkpoint(tmp_path / "a", images(NOISE))
    assert not (tmp_path / "a" / PAGES_NAME).exists()
    opened = open_checkpoint(tmp_path / "a")
    opened.close()
    assert opened.base_said is None
