"""What a few KiB or MiB of hostile shard can make a reader take, of time and of memory.

Each runs in a process of its own that has 1 GiB of address space and makes no file beyond 64 MiB.
"""

from __future__ import annotations

import itertools
import os
import struct
from collections.abc import Callable
from pathlib import Path
from uuid import UUID

import pytest
from forging import Forgery, Record
from limits import Ran, run_limited

from cedanafs.shard.format import MAX_FRAME_LEN
from cedanafs.shard.patches import Kind, Run
from cedanafs.shard.records import MAX_MARKER_LEN, Marker, encode

OPEN = "from cedanafs.look import inspect; inspect(Path(sys.argv[1]))"
VERIFY = "from cedanafs.shard.audit import verify; print(verify(Path(sys.argv[1])).damages)"
EXTRACT = "from cedanafs.shard.audit import extract; extract(Path(sys.argv[1]), Path(sys.argv[2]))"


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "store"


def run(store: Path, step: str, *, seconds: float = 20, memory_mib: int = 1024) -> Ran:
    """Do *step* with the checkpoint in *store*; its output is the error's name if one came."""
    program = (
        "from pathlib import Path\n"
        "from cedanafs.errors import CedanaFsError\n"
        f"sys.argv[1:] = [{str(store)!r}, {str(store.parent / 'out')!r}]\n"
        "try:\n"
        f"    {step}\n"
        "except CedanaFsError as exc:\n"
        "    assert len(str(exc)) < 1000\n"
        "    print(type(exc).__name__)"
    )
    return run_limited(program, seconds=seconds, memory_mib=memory_mib)


def extents(forgery: Forgery, many: int, offset: Callable[[int], int]) -> list[Record]:
    """An image of *many* bytes, each an extent of its own."""
    first = forgery.record(filename="a")
    return [first, *(forgery.data(b"x", offset=offset(n)) for n in range(many))]


# Time: nothing is quadratic.


@pytest.mark.parametrize(
    "offset",
    [lambda n: 2 * n, lambda n: 400_000 - 2 * n, lambda n: 2 * (n * 7919 % 200_003)],
    ids=["rising", "falling", "scattered"],
)
def test_extents_in_any_order(store: Path, offset: Callable[[int], int]) -> None:
    forgery = Forgery(store)
    forgery.frame(0, extents(forgery, 200_000, offset))
    forgery.commit()
    ran = run(store, OPEN)
    assert ran.output == ""
    assert ran.seconds < 10, "2 s; in one list falling ones took 16 s"
    assert ran.peak_mib < 150


def test_one_extent_over_many_and_many_over_one(store: Path) -> None:
    forgery = Forgery(store)
    records = extents(forgery, 50_000, lambda n: 2 * n)
    for _ in range(4):  # the first takes 50,000 out; each byte then cuts one that covers the rest
        records.append(forgery.data(bytes(100_000), offset=0))
        records += [forgery.data(b"y", offset=2 * n + 1) for n in range(20_000)]
    forgery.frame(0, records)
    forgery.commit()
    assert run(store, OPEN).seconds < 10


def test_a_long_chain_of_renames(store: Path) -> None:
    forgery = Forgery(store)
    names = [f"image-{n % 5000}" for n in range(100_001)]
    records = [forgery.record(filename=names[0])]
    records += [
        forgery.record(filename=old, rename_to=new) for old, new in itertools.pairwise(names)
    ]
    forgery.frame(0, records)
    forgery.commit()
    ran = run(store, OPEN)
    assert ran.output == ""
    assert ran.seconds < 10


def test_two_large_frames_that_take_turns(store: Path) -> None:
    """Decoded for each extent it was 32 GiB, of a shard of some 100 KB."""
    forgery = Forgery(store)
    turns = 1000
    for odd in (0, 1):
        records = extents(forgery, turns, lambda n, odd=odd: 2 * n + odd)  # type: ignore[misc]
        records += [
            forgery.record(filename="zeros"),
            forgery.data(bytes(MAX_FRAME_LEN - (64 << 10)), offset=0),
        ]
        forgery.frame(0, records)
    forgery.commit()
    assert sum(path.stat().st_size for path in forgery.paths) < 200_000
    ran = run(store, EXTRACT)
    assert ran.output == ""
    assert (store.parent / "out/a").read_bytes() == b"x" * 2 * turns
    assert ran.seconds < 5
    assert ran.peak_mib < 150


def test_a_patch_of_a_base_in_small_pieces(store: Path) -> None:
    """2 KB that stand for 600,000 places; all planned at once they took 134 MiB."""
    many, times = 20_000, 30
    base = Forgery(store.parent / "base", checkpoint=UUID(int=5))
    base.frame(0, extents(base, many, lambda n: 2 * n))
    base.commit()
    forgery = Forgery(store)
    pages = Run(Kind.BASE, 9 * 4096, "a", 0)
    forgery.frame(0, [forgery.record(filename="a"), forgery.patch([pages] * times)])
    forgery.commit(index={"base": base.as_base()})
    ran = run(store, EXTRACT)
    assert ran.output == ""
    assert (store.parent / "out/a").read_bytes() == b"x\0" * (9 * 2048) * times
    assert ran.peak_mib < 100


def test_patches_of_many_runs(store: Path) -> None:
    """An index of 4 MB; as an object each, the runs took 48 times as much."""
    forgery = Forgery(store)
    records = [forgery.record(filename="a")]
    runs = [Run(Kind.ZEROS, 4096)] * 3000
    records += [forgery.patch(runs, offset=n * len(runs) * 4096) for n in range(450)]
    forgery.frame(0, records)
    forgery.commit()
    ran = run(store, OPEN)
    assert ran.output == ""
    assert ran.peak_mib < 100


def test_markers_full_of_fields(store: Path) -> None:
    """A marker of 10,239 bytes can say its seq five thousand times."""
    forgery = Forgery(store)
    body = encode(Marker(seq=0, filename="a"))[4:] + b"\x08\x01" * ((MAX_MARKER_LEN - 9) // 2)
    record = struct.pack("<I", len(body)) + body
    forgery.seq = 600
    forgery.frame(
        0, [(record.replace(b"\x08\x01", b"\x08" + bytes([n % 128])), b"") for n in range(500)]
    )
    forgery.commit()
    assert run(store, OPEN).seconds < 10


# Memory and time: what is said is not believed.


@pytest.mark.parametrize("shards", [2, 257, 1 << 28, (1 << 64) - 1])
def test_an_index_that_speaks_of_many_shards(store: Path, shards: int) -> None:
    forgery = Forgery(store)
    forgery.commit(index={"shards": shards})
    ran = run(store, OPEN)
    assert ran.output in ("CheckpointIncomplete", "CorruptShard")
    assert ran.peak_mib < 100


@pytest.mark.parametrize(
    "row",
    [
        {"raw_len": (1 << 32) - 1},
        {"raw_len": MAX_FRAME_LEN + 1},
        {"stored_len": (1 << 32) - 1},
        {"records": (1 << 32) - 1},
        {"offset": (1 << 64) - 1},
        {"offset": 1 << 63, "stored_len": 1},
    ],
    ids=str,
)
def test_an_index_that_speaks_of_a_huge_frame(store: Path, row: dict[str, int]) -> None:
    forgery = Forgery(store)
    forgery.frame(0, [forgery.record(filename="a"), forgery.data(b"x")], row=row)
    forgery.commit()
    ran = run(store, OPEN)
    assert ran.output == "CorruptShard"
    assert ran.peak_mib < 100


@pytest.mark.parametrize("codec", ["none", "lz4", "zstd", "gzip", "zlib"])
def test_a_commit_over_a_hole(store: Path, codec: str) -> None:
    """The file is that long, so its length is no bound."""
    forgery = Forgery(store, codec=codec)
    forgery.commit()
    forgery.gap(0, 1 << 34)
    forgery.commit(footer={"commit_offset": 0})
    ran = run(store, OPEN)
    assert ran.output == "CorruptShard"
    assert ran.peak_mib < 100


@pytest.mark.parametrize("step", [OPEN, VERIFY])
def test_a_commit_that_says_it_is_4_gib(store: Path, step: str) -> None:
    forgery = Forgery(store)
    forgery.commit()
    forgery.commit(header={"stored_len": (1 << 32) - 1, "raw_len": (1 << 32) - 1})
    forgery.gap(0, 1 << 33)
    ran = run(store, step)
    assert ran.peak_mib < 100
    assert ran.seconds < 5


@pytest.mark.parametrize("length", [1 << 33, 1 << 40])
def test_a_torn_shard_with_a_hole_behind_it(store: Path, length: int) -> None:
    forgery = Forgery(store)
    forgery.frame(0, [forgery.record(filename="a")])
    forgery.append(0, b"torn off")
    forgery.gap(0, length)
    ran = run(store, OPEN)
    assert ran.seconds < 5, "reading a TiB of zeros takes minutes"
    assert ran.peak_mib < 100


REPAIR = (
    "from cedanafs.shard.repair import diagnose, salvage; diagnose(Path(sys.argv[1])); "
    "salvage(Path(sys.argv[1]), Path(sys.argv[2]))"
)


@pytest.mark.parametrize("codec", ["none", "zstd"])
@pytest.mark.parametrize(
    "filling",
    [b"", b"CdFr" * (1 << 15), b"CdEn" * (1 << 15), (b"CdFr" + bytes(60)) * (1 << 13)],
    ids=["hole", "headers", "footers", "headers and zeros"],
)
def test_a_damaged_shard_that_is_searched_for_what_is_left(
    store: Path, codec: str, filling: bytes
) -> None:
    forgery = Forgery(store, codec=codec)
    forgery.frame(0, [forgery.record(filename="a"), forgery.data(b"x")])
    forgery.append(0, b"damage" + filling)
    forgery.gap(0, 1 << 36)
    forgery.frame(0, [forgery.record(filename="b"), forgery.data(b"y")])
    forgery.commit()
    forgery.append(0, b"more damage")
    for step in (OPEN, REPAIR):
        ran = run(store, step, seconds=60)
        assert ran.seconds < 20
        assert ran.peak_mib < 100


def test_a_head_that_is_the_whole_index(store: Path) -> None:
    """Small lists make twenty times as much memory of it."""
    forgery = Forgery(store, codec="none")
    text = b"[" + b"[]," * (20 << 20) + b"0]"
    forgery.commit(alter=lambda blob: blob[:4] + struct.pack("<I", len(text)) + text)
    ran = run(store, OPEN)
    assert ran.output == "CorruptShard"
    assert ran.peak_mib < 500, "the index itself, some times over"


def test_many_images(store: Path) -> None:
    forgery = Forgery(store)
    forgery.frame(0, [forgery.record(filename=f"{n:x}") for n in range(100_000)])
    forgery.commit()
    ran = run(store, OPEN)
    assert ran.output == ""
    assert ran.peak_mib < 200
    assert ran.seconds < 10


def test_what_is_no_file_is_not_waited_for(store: Path) -> None:
    store.mkdir()
    os.mkfifo(store / "img-0.zst")
    assert run(store, OPEN).output in ("CorruptShard", "StoreError")


# Holes and bombs: what is extracted.


def hole(store: Path, size: int) -> None:
    forgery = Forgery(store)
    forgery.frame(
        0,
        [
            forgery.record(filename="hole", truncate=size),
            forgery.data(b"in the middle", offset=size // 2),
        ],
    )
    forgery.commit(sealed=True)


@pytest.mark.parametrize("size", [1 << 20, 1 << 40, 1 << 62])
def test_a_hole_is_inspected_and_verified_at_once(store: Path, size: int) -> None:
    hole(store, size)
    for step in (OPEN, VERIFY):
        ran = run(store, step)
        assert ran.output in ("", "()")
        assert ran.seconds < 5
        assert ran.peak_mib < 100


def test_a_hole_is_extracted_as_a_hole(store: Path) -> None:
    hole(store, 60 << 20)
    ran = run(store, EXTRACT)
    assert ran.output == ""
    made = (store.parent / "out/hole").stat()
    assert made.st_size == 60 << 20
    assert made.st_blocks * 512 < 1 << 20
    with (store.parent / "out/hole").open("rb") as file:
        file.seek(30 << 20)
        assert file.read(14) == b"in the middle\0"


@pytest.mark.parametrize("size", [1 << 40, 1 << 62])
def test_a_hole_too_large_for_the_target_is_refused_at_once(store: Path, size: int) -> None:
    """Here the limit is this process's own; without it, that of the file system."""
    hole(store, size)
    ran = run(store, EXTRACT)
    assert ran.output == "StoreError"
    assert ran.seconds < 5
    assert (store.parent / "out/hole").stat().st_blocks == 0


@pytest.mark.parametrize("codec", ["lz4", "zstd", "gzip", "zlib"])
def test_frames_that_decode_to_much_more(store: Path, codec: str) -> None:
    """16 MiB of zeros a frame: as much as is allowed. Verified in the memory of a few."""
    forgery = Forgery(store, codec=codec)
    zeros = bytes(MAX_FRAME_LEN - 100)
    for _ in range(8):
        forgery.frame(0, [forgery.record(filename="zeros"), forgery.data(zeros)])
    forgery.commit()
    assert forgery.paths[0].stat().st_size < 1 << 20
    ran = run(store, VERIFY)
    assert ran.output == "()"
    assert ran.peak_mib < 60 + 4 * (MAX_FRAME_LEN >> 20)
    assert ran.seconds < 10


@pytest.mark.parametrize("codec", ["none", "lz4", "zstd", "gzip", "zlib"])
def test_a_frame_that_decodes_to_more_than_it_says(store: Path, codec: str) -> None:
    forgery = Forgery(store, codec=codec)
    records = [forgery.record(filename="a"), forgery.data(b"x" * 1000)]
    bomb = (
        b"".join(forgery.codec.compress([bytes(200 << 20)])) if codec != "none" else bytes(10_000)
    )
    forgery.frame(0, records, stored=bomb)
    forgery.commit()
    for step in (VERIFY, EXTRACT):
        ran = run(store, step)
        assert "CorruptShard" in ran.output or "decode" in ran.output
        assert ran.peak_mib < 150
