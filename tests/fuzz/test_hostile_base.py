"""What a hostile checkpoint may say of its base: refused in one line that names it, or harmless.

Every checksum is right: of the frames, the indexes, and the digest of what the base was then.
"""

from __future__ import annotations

import os
import struct
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from uuid import UUID

import pytest
from exercising import exercise
from forging import CHECKPOINT, Forgery
from hostile import seldom
from hypothesis import event, given, settings
from hypothesis import strategies as st
from limits import at_most
from writing import read_checkpoint

from cedanafs.errors import BaseUnusable, CedanaFsError, CheckpointError, UsageError
from cedanafs.look import inspect
from cedanafs.shard.audit import extract, verify
from cedanafs.shard.bases import take_base, users_of
from cedanafs.shard.commit import Base
from cedanafs.shard.flatten import flatten
from cedanafs.shard.opening import MAX_CHAIN
from cedanafs.shard.patches import MAX_PATCH_LEN, Kind, Run, encode_runs
from cedanafs.shard.records import put_varint

BASE = UUID(int=0xBA5E)
HELD = bytes(range(256)) * 32  # what the base holds: 8 KiB
ALL_OF_P = [Run(Kind.BASE, len(HELD), "p", 0)]
MEMORY_MIB = 300
"""What all of it together may have in memory, beside what was there."""


@pytest.fixture(autouse=True, scope="module")
def _memory() -> Iterator[None]:
    with at_most(MEMORY_MIB):
        yield


def base_in(root: Path, **how: Any) -> Forgery:
    forgery = Forgery(root / "base", checkpoint=BASE, **how)
    records = [forgery.record(filename="p"), forgery.data(HELD)]
    records.append(forgery.record(filename="link", symlink_to="p"))
    forgery.frame(0, records)
    forgery.commit(sealed=True)
    return forgery


def refused(
    directory: Path, naming: str, expected: type[CedanaFsError] = CheckpointError
) -> CedanaFsError:
    """Whatever is done with it ends at once in one line that names *naming*, and is *expected*."""
    began = time.process_time()
    steps: list[Callable[[], object]] = [
        lambda: read_checkpoint(directory),
        lambda: inspect(directory),
        lambda: verify(directory),
        lambda: extract(directory, directory.parent / "out"),
    ]
    if not users_of_it(directory):
        steps.append(lambda: flatten(directory))
    for step in steps:
        with pytest.raises(expected) as found:
            step()
        assert naming in str(found.value)
        assert f"{directory}/img-0.zst: the index's records" not in str(found.value)
        assert len(str(found.value)) < 2000
    assert not (directory.parent / "out").exists()
    assert time.process_time() - began < 2
    return found.value


def users_of_it(directory: Path) -> list[str]:
    """Who refers to it, where that can be told."""
    try:
        return users_of(directory)
    except BaseUnusable:
        return []


def saying(root: Path, said: Base, **how: Any) -> Path:
    """A checkpoint of one patch, all of its bytes those of *said*."""
    forgery = Forgery(root / "forged", **how)
    forgery.frame(0, [forgery.record(filename="a"), forgery.patch(ALL_OF_P)])
    forgery.commit(sealed=True, index={"base": said})
    return root / "forged"


@pytest.mark.parametrize("codec", ["lz4", "zstd"])
@pytest.mark.parametrize("shards", [1, 3])
def test_an_honest_one_is_read(tmp_path: Path, shards: int, codec: str) -> None:
    """So what the other tests forge is refused for what they say otherwise."""
    base = base_in(tmp_path, shards=shards, codec=codec)
    directory = saying(tmp_path, base.as_base(), shards=shards, codec=codec)
    assert read_checkpoint(directory) == {"a": HELD}
    assert verify(directory).damages == ()


# Which base.


@pytest.mark.parametrize(
    "name",
    [
        "", ".", "..", "/", "/etc", "../base", "base/", "./base", "base/../base", "a\0b", "base\0",
        "x" * 256, "ü" * 128, ".cedanafs", ".cedanafs-pages", "\ud800",
    ],
    ids=ascii,
)  # fmt: skip
def test_a_base_whose_name_leads_elsewhere(tmp_path: Path, name: str) -> None:
    said = replace(base_in(tmp_path).as_base(), name=name)
    refused(saying(tmp_path, said), "forged")
    if name != "\ud800":  # which JSON can say, and no command line
        with pytest.raises(UsageError):
            take_base(tmp_path / "new", name)


@pytest.mark.parametrize("name", ["none such", "\udcff", "new\nline", "\x1b[2J", "x" * 255])
def test_a_base_that_is_not_there(tmp_path: Path, name: str) -> None:
    said = replace(base_in(tmp_path).as_base(), name=name)
    refused(saying(tmp_path, said), name, BaseUnusable)


@pytest.mark.parametrize("to", ["base", "/etc", "forged", "link"])
def test_a_base_that_is_a_link(tmp_path: Path, to: str) -> None:
    said = replace(base_in(tmp_path).as_base(), name="link")
    (tmp_path / "link").symlink_to(to)
    refused(saying(tmp_path, said), "link", BaseUnusable)


@pytest.mark.parametrize("there", ["file", "empty", "fifo", "noise"])
def test_a_base_that_is_no_checkpoint(tmp_path: Path, there: str) -> None:
    directory = saying(tmp_path, base_in(tmp_path).as_base())
    (shard,) = (tmp_path / "base").iterdir()
    shard.unlink()
    if there == "fifo":
        os.mkfifo(shard)
    elif there == "noise":
        shard.write_bytes(b"no shard at all" * 100)
    elif there == "file":
        (tmp_path / "base").rmdir()
        (tmp_path / "base").write_text("no directory")
    refused(directory, str(tmp_path / "base"))


@pytest.mark.parametrize("own", [CHECKPOINT, UUID(int=1)], ids=["its own UUID", "another"])
def test_a_base_that_is_itself(tmp_path: Path, own: UUID) -> None:
    """The digest can be right: of no frames and no markers."""
    nothing = Forgery(tmp_path / "forged").as_base()
    directory = saying(tmp_path, replace(nothing, checkpoint=own))
    refused(directory, "forged", BaseUnusable)


def circle(root: Path, count: int) -> Path:
    """Checkpoints, each the base of the one before, the first that of the last."""
    for n in range(count):
        forgery = Forgery(root / f"ring-{n}", checkpoint=UUID(int=n + 1))
        said = replace(
            forgery.as_base(),
            name=f"ring-{(n + 1) % count}",
            checkpoint=UUID(int=(n + 1) % count + 1),
        )
        forgery.frame(0, [forgery.record(filename="a"), forgery.data(b"its own")])
        forgery.commit(index={"base": said})
    return root / "ring-0"


@pytest.mark.parametrize("count", [1, 2, 3, MAX_CHAIN + 3])
def test_a_circle_of_bases(tmp_path: Path, count: int) -> None:
    error = refused(circle(tmp_path, count), "ring-", BaseUnusable)
    assert "circle" in str(error)


def test_two_that_have_one_uuid(tmp_path: Path) -> None:
    """The base is a copy of the checkpoint: no UUID twice in a row."""
    said = replace(base_in(tmp_path).as_base(), checkpoint=CHECKPOINT)
    refused(saying(tmp_path, said), "base", BaseUnusable)


@pytest.mark.parametrize("bases", [MAX_CHAIN, MAX_CHAIN + 1, 60])
def test_a_chain(tmp_path: Path, bases: int) -> None:
    said = base_in(tmp_path).as_base()
    for n in range(bases - 1):
        forgery = Forgery(tmp_path / f"link-{n}", checkpoint=UUID(int=n + 1))
        forgery.frame(0, [forgery.record(filename="p"), forgery.patch(ALL_OF_P)])
        forgery.commit(index={"base": said})
        said = forgery.as_base()
    directory = saying(tmp_path, said)
    if bases <= MAX_CHAIN:
        assert read_checkpoint(directory) == {"a": HELD}
    else:
        assert "too long" in str(refused(directory, str(tmp_path)))


# What it was then.


@pytest.mark.parametrize(
    "otherwise",
    [
        {"frames": (2,)}, {"frames": (0,)}, {"frames": ((1 << 64) - 1,)}, {"frames": ()},
        {"frames": (1, 0), "markers": (1, 0)}, {"frames": (0,) * 257, "markers": (0,) * 257},
        {"frames": (1, 1)}, {"frames": (-1,)}, {"frames": (True,)}, {"frames": (1.0,)},
        {"frames": ("1",)}, {"frames": (1 << 64,)}, {"markers": (1 << 62,)}, {"markers": (-1,)},
        {"markers": (3,)}, {"markers": (0,)},
        {"digest": ""}, {"digest": "0" * 32}, {"digest": "x" * 101}, {"digest": "\n"},
        {"digest": 5}, {"commit": -1}, {"commit": 1 << 63}, {"commit": "1"}, {"name": 5},
        {"name": None}, {"name": ["base"]}, {"checkpoint": UUID(int=0)},
    ],
    ids=ascii,
)  # fmt: skip
def test_a_base_that_was_otherwise(tmp_path: Path, otherwise: dict[str, Any]) -> None:
    said = replace(base_in(tmp_path).as_base(), **otherwise)
    refused(saying(tmp_path, said), str(tmp_path))


@pytest.mark.parametrize(("frames", "markers"), [(0, 0), (0, 5), (1, 0), (1, 7), (0, 1 << 62)])
def test_a_part_of_the_base_whose_digest_is_right(
    tmp_path: Path, frames: int, markers: int
) -> None:
    """It ends in the middle of a marker, or has frames without records, or lacks the image."""
    base = base_in(tmp_path)
    del base.rows[0][frames:], base.markers[0][markers:]
    said = replace(base.as_base(), frames=(frames,), markers=(markers,))
    refused(saying(tmp_path, said), str(tmp_path))


@pytest.mark.parametrize(
    "blob",
    [b"[]", b"null", b'"base"', b"{}", b"[" * 50_000, b'{"name":"base"}', b"1e999"],
    ids=lambda blob: ascii(blob[:9]),
)
def test_a_head_whose_base_is_something_else(tmp_path: Path, blob: bytes) -> None:
    base = base_in(tmp_path).as_base()

    def alter(index: bytes) -> bytes:
        (length,) = struct.unpack_from("<I", index, 4)
        head, rest = index[8 : 8 + length], index[8 + length :]
        before, _, behind = head.partition(b'"base":{')
        head = before + b'"base":' + blob + behind[behind.index(b"}") + 1 :]
        return index[:4] + struct.pack("<I", len(head)) + head + rest

    forgery = Forgery(tmp_path / "forged")
    forgery.frame(0, [forgery.record(filename="a")])
    forgery.commit(index={"base": base}, alter=alter)
    refused(tmp_path / "forged", "forged")


def test_a_base_on_one_shard_only(tmp_path: Path) -> None:
    forgery = Forgery(tmp_path / "forged", shards=2)
    base = base_in(tmp_path).as_base()
    forgery.commit(index={"base": base}, only=[0])
    forgery.number, forgery.committed_ends[1] = 0, 0
    forgery.commit(only=[1])
    refused(tmp_path / "forged", "forged")


def test_a_patch_that_refers_to_no_base(tmp_path: Path) -> None:
    forgery = Forgery(tmp_path / "forged")
    forgery.frame(0, [forgery.record(filename="a"), forgery.patch(ALL_OF_P)])
    forgery.commit()
    refused(tmp_path / "forged", "forged")


# What a patch says.


def blob(*numbers: int | bytes) -> bytes:
    out = bytearray()
    for each in numbers:
        if isinstance(each, bytes):
            out += each
        else:
            put_varint(out, each)
    return bytes(out)


def words(*runs: tuple[int, int, tuple[int, ...]]) -> bytes:
    """Runs of `p` and `link`: length, kind, and what follows."""
    numbers = [n for length, kind, more in runs for n in (length << 2 | kind, *more)]
    return blob(2, 1, b"p", 4, b"link", *numbers)


@pytest.mark.parametrize(
    ("runs", "own"),
    {
        "nothing at all": (b"", b""),
        "names that are not there": (blob(1 << 40), b""),
        "more names than bytes": (blob((1 << 64) - 1, 1, b"p"), b""),
        "a name beyond the marker": (blob(1, 1 << 63, b"p"), b""),
        "a number without end": (b"\x80" * 9000, b""),
        "cut short in a run": (words((5, 1, ())), b""),
        "no length": (words((0, 0, ())), b""),
        "kind 3": (words((5, 3, ())), b""),
        "beyond the base's image": (words((len(HELD), 1, (0, 2))), b""),
        "longer than the base's image": (words((len(HELD) + 1, 1, (0, 0))), b""),
        "before the base's image": (words((5, 1, (0, 1))), b""),
        "as far as numbers go": (words((5, 1, (0, (1 << 64) - 2))), b""),
        "as far back as numbers go": (words((5, 1, (0, (1 << 64) - 1))), b""),
        "a name that is not listed": (words((5, 1, (2, 0))), b""),
        "a link of the base": (words((5, 1, (1, 0))), b""),
        "an image that the base lacks": (blob(1, 1, b"q", 5 << 2 | 1, 0, 0), b""),
        "a name that is none": (blob(1, 2, b"..", 5 << 2 | 1, 0, 0), b""),
        "longer than 16 MiB": (words((MAX_PATCH_LEN + 1, 2, ())), b""),
        "longer than 16 MiB in all": (words((MAX_PATCH_LEN, 2, ()), (1, 2, ())), b""),
        "longer than any file": (words((1 << 61, 2, ())), b""),
        "more than its payload": (words((5, 0, ())), b"four"),
        "less than its payload": (words((3, 0, ())), b"four"),
        "no runs and a payload": (b"", b"four"),
        "own bytes twice": (words((4096, 0, ()), (4096, 0, ())), bytes(4096)),
        "half a page, and more": (words((5, 2, ()), (5, 2, ())), b""),
    }.values(),
    ids=str,
)
def test_a_patch_that_makes_no_sense(tmp_path: Path, runs: bytes, own: bytes) -> None:
    said = base_in(tmp_path).as_base()
    forgery = Forgery(tmp_path / "forged")
    forgery.frame(0, [forgery.record(filename="a"), forgery.patch(runs, own)])
    forgery.commit(index={"base": said})
    refused(tmp_path / "forged", "forged")


# Anything at all.

_lengths = st.one_of(
    st.integers(1, 9000), st.sampled_from([0, 4096, len(HELD), MAX_PATCH_LEN, 1 << 61])
)
_distances = st.one_of(st.integers(0, 20_000), st.integers(0, (1 << 64) - 1))
_hostile = st.one_of(
    st.binary(),
    st.lists(st.tuples(_lengths, st.integers(0, 3), st.tuples(st.integers(0, 2), _distances))).map(
        lambda runs: words(
            *((n, kind, more if kind == Kind.BASE else ()) for n, kind, more in runs)
        )
    ),
)


def _runs(lengths: st.SearchStrategy[int]) -> st.SearchStrategy[Run]:
    return st.builds(Run, st.sampled_from(Kind), lengths, st.just("p"), st.integers(0, 4096))


_honest = st.tuples(
    st.lists(_runs(st.just(4096)), max_size=5), st.lists(_runs(st.integers(1, 4096)), max_size=1)
).map(lambda runs: runs[0] + runs[1])


def forge(draw: Callable[[Any], Any], root: Path) -> Path:
    """Two or three checkpoints, each the base of the next, most of what they say honest."""
    said = base_in(root, codec=draw(st.sampled_from(["none", "zstd"]))).as_base()
    for n in range(draw(st.integers(1, 2))):
        forgery = Forgery(root / f"forged-{n}", checkpoint=UUID(int=n + 1))
        records = [forgery.record(filename="p", truncate=len(HELD))]
        for _ in range(draw(st.integers(0, 4))):
            runs = draw(_honest)
            own = sum(run.length for run in runs if run.kind == Kind.OWN)
            offset = seldom(draw, st.sampled_from([1 << 61, 1 << 62]), draw(st.integers(0, 30_000)))
            said_runs = seldom(draw, _hostile, encode_runs(runs, offset))
            records.append(forgery.patch(said_runs, b"o" * own, offset))
            if draw(st.booleans()):
                records.append(
                    forgery.record(filename="p", truncate=draw(st.integers(4096, 30_000)))
                )
        forgery.frame(0, records)
        index: dict[str, Any] = {"base": said}
        if draw(st.integers(0, 9)) == 7:
            change: dict[str, Any] = draw(
                st.sampled_from(
                    [{"name": "forged-0"}, {"name": ".."}, {"frames": (0,), "markers": (0,)},
                     {"checkpoint": UUID(int=1)}, {"digest": "0"}]
                )
            )  # fmt: skip
            index["base"] = replace(said, **change)
        forgery.commit(sealed=draw(st.booleans()), index=index)
        said = forgery.as_base()
    return forgery.paths[0].parent


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_whatever_is_said_of_a_base_is_refused_or_harmless(data: st.DataObject) -> None:
    with TemporaryDirectory() as scratch:
        root = Path(scratch)
        directory = forge(data.draw, root)
        before = {path: path.read_bytes() for path in sorted((root / "base").iterdir())}
        began = time.process_time()
        outcome = exercise(directory, root)
        assert time.process_time() - began < 10
        assert {path: path.read_bytes() for path in sorted((root / "base").iterdir())} == before
    for step, error in outcome.steps.items():
        event(f"{step}: {type(error).__name__ if error else 'done'}")
