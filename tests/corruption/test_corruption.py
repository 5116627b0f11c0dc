"""Each byte flipped, each shard cut at each length, shards dropped, swapped, doubled and mixed.

What is read is right or refused, and `verify` finds it. Only two things nobody can tell from a
crash: a shard that ends inside its last footer, and a single shard cut short anywhere. Then the
commit before is what is there, or none, and what is left over is told.

One bit of each byte is flipped; with $EVERY_BIT set, each of them by itself.
"""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from writing import last_commit, read_checkpoint, read_contents, writing

from cedanafs.errors import CheckpointError
from cedanafs.shard.audit import audit, verify, what_is_missing
from cedanafs.shard.opening import open_checkpoint
from cedanafs.shard.store import shard_paths

CODECS = ["none", "lz4", "zstd", "gzip", "zlib"]
FIRST = {"inventory.img": b"inventory", "pages-1.img": bytes(range(60))}
SECOND = {**FIRST, "stats-dump": b"statistics"}

whole = pytest.mark.parametrize(
    ("codec", "shards", "sealed"), list(itertools.product(CODECS, [1, 3], [False, True]))
)


def make(directory: Path, codec: str, shards: int, *, sealed: bool) -> Path:
    """Committed once and sealed, or committed twice."""
    with writing(directory, shards=shards, codec=codec) as writer:
        for name, data in FIRST.items():
            writer.create(name, data)
            writer.log.flush()
        writer.commit(seal=sealed)
        if not sealed:
            writer.create("stats-dump", SECOND["stats-dump"])
            writer.commit()
    return directory


def found_in(directory: Path) -> tuple[dict[str, bytes] | str, bool]:
    """The files, or the error that opening or reading raises; and whether verify finds damage."""
    try:
        opened = open_checkpoint(directory)
    except CheckpointError as exc:
        return str(exc), True  # it is the first thing that verify does, too
    try:
        files: dict[str, bytes] | str = read_contents(opened.files, opened.codec, opened.contents)
    except CheckpointError as exc:
        files = str(exc)
    try:
        return files, bool(audit(opened).damages)  # the second
    finally:
        opened.close()


@whole
def test_no_flipped_bit_gives_wrong_bytes_and_verify_finds_each(
    tmp_path: Path, codec: str, shards: int, sealed: bool
) -> None:
    content = FIRST if sealed else SECOND
    directory = make(tmp_path, codec, shards, sealed=sealed)
    bits = range(8) if "EVERY_BIT" in os.environ else None
    count = 0
    for path in shard_paths(directory):
        right = path.read_bytes()
        with path.open("r+b", buffering=0) as file:
            for at in range(len(right)):
                for bit in bits or (at * 5 % 8,):
                    os.pwrite(file.fileno(), bytes([right[at] ^ 1 << bit]), at)
                    files, damaged = found_in(directory)
                    assert files == content or path.name in files, (path.name, at, bit, files)
                    assert damaged, (path.name, at, bit)
                    count += 1
                os.pwrite(file.fileno(), right[at : at + 1], at)
    assert found_in(directory) == (content, False)
    print(count, "flips")


@whole
def test_a_shard_that_was_cut_short_is_found(
    tmp_path: Path, codec: str, shards: int, sealed: bool
) -> None:
    content = FIRST if sealed else SECOND
    directory = make(tmp_path, codec, shards, sealed=sealed)
    count = as_by_a_crash = 0
    for path in shard_paths(directory):
        right = path.read_bytes()
        commit = last_commit(path)
        for length in reversed(range(len(right))):
            os.truncate(path, length)
            files, damaged = found_in(directory)
            count += 1
            if shards > 1 and length < commit.footer_at:
                assert path.name in files, (path.name, length, files)
                assert damaged, (path.name, length)
                continue
            # As a crash would have left it: an earlier commit, and what is behind it is told.
            as_by_a_crash += 1
            opened = open_checkpoint(directory)
            opened.close()
            expected = {2: content, 1: FIRST, 0: {}}[opened.commit]
            assert files == expected, (path.name, length)
            assert not damaged
            assert opened.torn_bytes or length in (0, commit.footer.previous_end)
            assert opened.commit or what_is_missing(opened) is not None
        path.write_bytes(right)
    print(count, "cuts")
    print(as_by_a_crash, "crashlike")


def mixtures(
    directory: Path, other: Path, older: Path
) -> Iterator[tuple[str, Callable[[], object]]]:
    """What can be done to the three shards of *directory*, each with the name that must be told."""
    one, two, three = shard_paths(directory)
    suffix = one.suffix
    yield one.name, one.unlink
    yield two.name, two.unlink
    yield three.name, three.unlink
    yield (
        one.name,
        lambda: (one.rename(directory / "x"), two.rename(one), (directory / "x").rename(two)),
    )
    yield (
        two.name,
        lambda: (two.rename(directory / "x"), three.rename(two), (directory / "x").rename(three)),
    )
    yield two.name, lambda: shutil.copy(one, two)
    yield one.name, lambda: shutil.copy(three, one)
    yield f"img-3{suffix}", lambda: shutil.copy(one, directory / f"img-3{suffix}")
    yield f"img-3{suffix}", lambda: shutil.copy(one, directory / f"img-4{suffix}")
    yield f"img-3{suffix}", lambda: (directory / f"img-3{suffix}").write_bytes(b"something else")
    yield f"img-3{suffix}", lambda: (directory / f"img-3{suffix}").touch()
    yield two.name, lambda: two.write_bytes(b"something else")
    yield three.name, lambda: three.write_bytes(b"")
    for path in (one, two, three):
        yield path.name, lambda path=path: shutil.copy(other / path.name, path)
        yield path.name, lambda path=path: shutil.copy(older / path.name, path)


@pytest.mark.parametrize("codec", CODECS)
def test_shards_that_do_not_belong_together_are_named(tmp_path: Path, codec: str) -> None:
    right = make(tmp_path / "right", codec, 3, sealed=False)
    older = shutil.copytree(right, tmp_path / "older")
    with writing(right) as writer:
        writer.create("later", b"later")
        writer.commit(seal=True)
    other = make(tmp_path / "other", codec, 3, sealed=False)
    with writing(other) as writer:
        writer.create("later", b"later")
        writer.commit(seal=True)
    count = 0
    while True:
        mixed = shutil.copytree(right, tmp_path / f"mixed-{count}")
        try:
            name, mix = next(itertools.islice(mixtures(mixed, other, older), count, None))
        except StopIteration:
            break
        mix()
        for look in (read_checkpoint, verify):
            with pytest.raises(CheckpointError, match=name):
                look(mixed)
        count += 1
    print(count, "mixtures")
    assert count == 19


@pytest.mark.parametrize("codec", CODECS)
def test_verify_exits_with_3(tmp_path: Path, codec: str) -> None:
    directory = make(tmp_path, codec, 3, sealed=True)
    path = shard_paths(directory)[0]
    right = bytearray(path.read_bytes())
    commit = last_commit(path)
    for at in (40, 100, len(right) // 2, commit.footer_at + 30):
        path.write_bytes(right[:at] + bytes([right[at] ^ 1]) + right[at + 1 :])
        ran = subprocess.run(
            [sys.executable, "-m", "cedanafs", "verify", directory],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert ran.returncode == 3
        assert path.name in ran.stderr
        assert "offset" in ran.stderr
