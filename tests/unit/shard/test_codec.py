"""Codecs: what they store comes back, what they did not is refused, standard tools read it."""

from __future__ import annotations

import contextlib
import random
import struct
import subprocess
import sys
import zlib

import lz4.frame
import pytest
import xxhash
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from writing import STOCK_TOOLS

from cedanafs.errors import CorruptShard, UsageError
from cedanafs.shard.codec import CODEC_NAMES, EXTENSIONS, Codec, codec_of

NAMES = ("none", "lz4", "zstd", "gzip", "zlib")
EDGES = [
    f"{name}:{level}"
    for name in NAMES
    for level in sorted({codec_of(name).levels[0], codec_of(name).levels[-1]})
]
MIXED = random.Random(5).randbytes(40_000) + bytes(60_000)

codecs = st.sampled_from([codec_of(name) for name in NAMES])


def cat(codec: Codec, stored: bytes) -> bytes:
    """What the standard tool prints for *stored*."""
    done = subprocess.run(STOCK_TOOLS[codec.name], input=stored, capture_output=True, check=True)
    assert done.stderr == b""
    return done.stdout


def stored_by(codec: Codec, *pieces: bytes) -> bytes:
    return b"".join(codec.compress(pieces))


@given(codecs, st.lists(st.binary(max_size=1000), max_size=5))
def test_pieces_are_stored_as_one(codec: Codec, pieces: list[bytes]) -> None:
    raw = b"".join(pieces)
    assert codec.decompress(stored_by(codec, *pieces), len(raw)) == raw


@given(codecs, st.binary(max_size=3000))
def test_a_frame_comes_back(codec: Codec, raw: bytes) -> None:
    assert codec.decompress(stored_by(codec, raw), len(raw)) == raw


@pytest.mark.parametrize("text", EDGES)
@pytest.mark.parametrize("raw", [b"", b"x", MIXED], ids=["empty", "one", "mixed"])
def test_each_level_comes_back(text: str, raw: bytes) -> None:
    codec = codec_of(text)
    assert codec.decompress(stored_by(codec, raw), len(raw)) == raw


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("wrong", [0, 1, len(MIXED) - 1, len(MIXED) + 1, 1 << 26])
def test_a_frame_of_another_length_is_refused(name: str, wrong: int) -> None:
    codec = codec_of(name)
    with pytest.raises(CorruptShard):
        codec.decompress(stored_by(codec, MIXED), wrong)


@given(codecs, st.binary(max_size=300), st.integers(0, 3000))
def test_garbage_is_refused(codec: Codec, garbage: bytes, raw_len: int) -> None:
    try:
        raw = codec.decompress(garbage, raw_len)
    except CorruptShard:
        return
    assert len(raw) == raw_len


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=60)
@given(data=st.data())
def test_a_damaged_frame_raises_nothing_but_corrupt_shard(name: str, data: st.DataObject) -> None:
    """The frame's checksum is what finds damage; here only that no other error comes out."""
    codec = codec_of(name)
    stored = bytearray(stored_by(codec, MIXED[39_000:41_000]))
    at = data.draw(st.integers(0, len(stored) - 1))
    stored[at] ^= data.draw(st.integers(1, 255))
    with contextlib.suppress(CorruptShard):
        assert len(codec.decompress(bytes(stored), 2000)) == 2000


@pytest.mark.parametrize("name", [n for n in NAMES if n != "none"])
def test_a_truncated_frame_is_refused(name: str) -> None:
    codec = codec_of(name)
    stored = stored_by(codec, MIXED)
    for cut in (1, 4, len(stored) // 2, len(stored)):
        with pytest.raises(CorruptShard):
            codec.decompress(stored[:-cut], len(MIXED))


@pytest.mark.parametrize("name", NAMES)
def test_bytes_after_the_frame_are_refused(name: str) -> None:
    codec = codec_of(name)
    for more in (b"x", stored_by(codec, b"more")):
        with pytest.raises(CorruptShard):
            codec.decompress(stored_by(codec, MIXED) + more, len(MIXED))


def bomb(name: str, length: int, claimed: int) -> bytes:
    """A frame of *length* zeros that claims to be *claimed* bytes where the codec can say so."""
    zeros = bytes(length)
    if name == "lz4":
        stored = lz4.frame.compress(
            zeros, block_size=lz4.frame.BLOCKSIZE_MAX4MB, block_linked=False, store_size=False
        )
        descriptor = bytes([stored[4] | 8, stored[5]]) + struct.pack("<Q", claimed)
        check = bytes([xxhash.xxh32_intdigest(descriptor) >> 8 & 0xFF])
        return stored[:4] + descriptor + check + stored[7:]
    if name == "zstd":
        return zstandard.ZstdCompressor(write_content_size=False).compress(zeros)
    return stored_by(codec_of(name), zeros)


@pytest.mark.parametrize("name", ["lz4", "zstd", "gzip", "zlib"])
def test_a_bomb_is_refused_without_its_memory(name: str) -> None:
    length = 256 << 20
    stored = bomb(name, length, claimed=1000)
    script = (
        "import resource, sys\n"
        "from cedanafs.errors import CorruptShard\n"
        "from cedanafs.shard.codec import codec_of\n"
        "stored = sys.stdin.buffer.read()\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "try:\n"
        f"    codec_of({name!r}).decompress(stored, 1000)\n"
        "except CorruptShard:\n"
        "    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], input=stored, capture_output=True)
    assert done.stdout, "not refused: " + done.stderr.decode()
    assert int(done.stdout) < 32 << 10, "KiB of memory for a frame of 1,000 bytes"


@pytest.mark.parametrize("name", [n for n in STOCK_TOOLS if n != "none"])  # none: test_log.py
def test_the_standard_tool_reads_frames_and_skips_what_is_hidden(name: str) -> None:
    codec = codec_of(name)
    blob = random.Random(6).randbytes(min(codec.hide_max, 70_000))
    hidden = codec.hide(blob)
    assert hidden[codec.hide_head : len(hidden) - codec.hide_tail] == blob
    assert cat(codec, hidden) == b""
    shard = hidden + stored_by(codec, MIXED) + codec.hide(b"") + stored_by(codec, b"end") + hidden
    assert cat(codec, shard) == MIXED + b"end"


def test_zlib_frames_are_zlib_streams() -> None:
    codec = codec_of("zlib")
    assert zlib.decompress(stored_by(codec, MIXED)) == MIXED
    assert codec.hide(b"blob") == b"blob"


def test_names_levels_and_extensions() -> None:
    assert str(codec_of("zstd:7")) == "zstd:7"
    assert str(codec_of(" GZIP ")) == "gzip:1"
    assert str(codec_of("tar")) == str(codec_of("none")) == "none"
    assert EXTENSIONS == {"": "none", ".lz4": "lz4", ".zst": "zstd", ".gz": "gzip", ".zlib": "zlib"}
    for name in CODEC_NAMES:
        assert str(codec_of(str(codec_of(name)))) == str(codec_of(name))


@pytest.mark.parametrize(
    "text", ["", "bzip2", "zstd:0", "zstd:20", "zstd:x", "gzip:10", "lz4:17", "none:1", "zstd:-1"]
)
def test_what_is_no_compression_is_refused_by_name(text: str) -> None:
    with pytest.raises(UsageError, match="compression"):
        codec_of(text)
