"""Headers, footers, indexes and whole commits ⇄ bytes; each flipped bit is refused."""

from __future__ import annotations

import json
import struct
from dataclasses import replace
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cedanafs.errors import CorruptShard, UnknownFeature
from cedanafs.shard.codec import codec_of
from cedanafs.shard.commit import (
    FOOTER_LEN,
    Footer,
    FrameRow,
    Index,
    commit_in,
    footer_in,
    units_of_commit,
)
from cedanafs.shard.format import (
    HEADER_LEN,
    MAX_COMMIT_LEN,
    MAX_FRAME_LEN,
    MAX_INDEX_LEN,
    MAX_SEQ,
    MAX_SHARDS,
    Carrier,
    Header,
    Kind,
    checked,
)
from cedanafs.shard.records import Marker, encode, parse

CODECS = ["none", "lz4", "zstd", "gzip", "zlib"]
u16, u32, u64 = (st.integers(0, (1 << bits) - 1) for bits in (16, 32, 64))
seqs = st.integers(0, MAX_SEQ)
shard_numbers = st.integers(0, MAX_SHARDS)
words = st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=20)
lengths = st.integers(1, MAX_FRAME_LEN)
headers = st.one_of(
    st.builds(Header, st.just(Kind.DATA), u16, lengths, lengths, u64, st.uuids()),
    st.builds(
        Header,
        st.just(Kind.COMMIT),
        u16,
        st.integers(0, MAX_COMMIT_LEN),
        st.integers(0, MAX_INDEX_LEN),
        u64,
        st.uuids(),
    ),
)
footers = st.builds(Footer, u16, st.booleans(), seqs, u64, u64, seqs, st.uuids())
indexes = st.builds(
    Index,
    checkpoint=st.uuids(),
    shards=shard_numbers,
    shard=shard_numbers,
    codec=st.sampled_from(["none", "zstd:3"]),
    commit=seqs,
    created_ns=u64,
    committed_ns=u64,
    tool=words,
    content_seq=seqs,
    content_end=u64,
    frames=st.lists(st.builds(FrameRow, u64, u32, u32, u64, u32), max_size=4),
    markers=st.binary(max_size=40),
)
INDEX = Index(
    checkpoint=UUID(int=7),
    shards=2,
    shard=1,
    codec="zstd:1",
    commit=3,
    created_ns=10,
    committed_ns=11,
    tool="cedanafs test",
    content_seq=2,
    content_end=100,
    frames=[FrameRow(50, 50, 20, 99, 2)],
    markers=b"\x05\0\0\0\x12\x03abc",
)


@given(headers)
def test_a_header_comes_back(header: Header) -> None:
    encoded = header.encode()
    assert len(encoded) == HEADER_LEN
    assert Header.decode(encoded) == header


@given(footers)
def test_a_footer_comes_back(footer: Footer) -> None:
    encoded = footer.encode()
    assert len(encoded) == FOOTER_LEN
    assert Footer.decode(encoded) == footer


@given(indexes)
def test_an_index_comes_back(index: Index) -> None:
    assert Index.decode(index.encode()) == index


@settings(max_examples=30)
@given(st.one_of(headers, footers))
def test_each_flipped_bit_of_a_header_or_footer_is_refused(blob: Header | Footer) -> None:
    encoded = blob.encode()
    for bit in range(8 * len(encoded)):
        damaged = bytearray(encoded)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(CorruptShard):
            type(blob).decode(bytes(damaged))
    for cut in range(len(encoded)):
        with pytest.raises(CorruptShard):
            type(blob).decode(encoded[:cut])
    with pytest.raises(CorruptShard):
        type(blob).decode(encoded + b"\0")


@given(st.binary(max_size=200))
def test_garbage_is_no_index(garbage: bytes) -> None:
    with pytest.raises(CorruptShard):
        Index.decode(garbage)
    with pytest.raises(CorruptShard):
        Index.decode(b"CdIx" + garbage)


def with_version(blob: bytes, version: int) -> bytes:
    """*blob* as another version would have written it."""
    return checked(blob[:4] + bytes([version]) + blob[5:-8])


def test_another_version_is_refused_by_name() -> None:
    header = Header(Kind.DATA, 0, 1, 1, 0, UUID(int=1)).encode()
    footer = Footer(0, False, 1, 0, 0, 0, UUID(int=1)).encode()
    assert with_version(header, 1) == header
    for decode, blob in ((Header.decode, header), (Footer.decode, footer)):
        with pytest.raises(UnknownFeature, match="version 2"):
            decode(with_version(blob, 2))


@pytest.mark.parametrize("field", [(5, 3), (5, 0)])  # kinds that are none
def test_a_header_of_unknown_kind_is_refused(field: tuple[int, int]) -> None:
    blob = bytearray(Header(Kind.DATA, 0, 1, 1, 0, UUID(int=1)).encode()[:-8])
    blob[field[0]] = field[1]
    with pytest.raises(CorruptShard, match="unknown kind"):
        Header.decode(checked(bytes(blob)))


@pytest.mark.parametrize("lens", [(0, 0), (MAX_FRAME_LEN + 1, 5), (5, MAX_FRAME_LEN + 1)])
def test_a_frame_of_impossible_length_is_refused(lens: tuple[int, int]) -> None:
    header = Header(Kind.DATA, 0, *lens, 0, UUID(int=1))
    with pytest.raises(CorruptShard, match="lengths"):
        Header.decode(header.encode())


@pytest.mark.parametrize("lens", [(MAX_COMMIT_LEN + 1, 5), (5, MAX_INDEX_LEN + 1)])
def test_a_commit_of_impossible_length_is_refused(lens: tuple[int, int]) -> None:
    header = Header(Kind.COMMIT, 0, *lens, 0, UUID(int=1))
    with pytest.raises(CorruptShard, match="lengths"):
        Header.decode(header.encode())


def test_a_record_with_too_much_hidden_in_it_is_no_unit() -> None:
    """Its marker fits, but not with the name that our units have."""
    record = encode(Marker(seq=1, image_eof=True, hidden=bytes(10_225)))
    with pytest.raises(CorruptShard):
        Carrier(codec_of("none")).unhide(record, HEADER_LEN)


def with_head(**changes: object) -> bytes:
    """INDEX with another JSON head."""
    encoded = INDEX.encode()
    (length,) = struct.unpack_from("<I", encoded, 4)
    head = json.loads(encoded[8 : 8 + length]) | changes
    text = json.dumps({k: v for k, v in head.items() if v is not ...}).encode()
    return encoded[:4] + struct.pack("<I", len(text)) + text + encoded[8 + length :]


@pytest.mark.parametrize(
    "changes",
    [
        {"checkpoint": "x"},
        {"checkpoint": 5},
        {"shards": -1},
        {"shards": True},
        {"commit": 1.0},
        {"commit": 1 << 64},
        {"content_end": "5"},
        {"frames": 1 << 40},
        {"frames": ...},
        {"features": 3},
        {"features": ...},
    ],
)
def test_a_head_that_makes_no_sense_is_refused(changes: dict[str, object]) -> None:
    with pytest.raises(CorruptShard):
        Index.decode(with_head(**changes))


def test_a_head_that_is_too_deep_is_refused() -> None:
    text = b"[" * 200_000
    with pytest.raises(CorruptShard):
        Index.decode(b"CdIx" + struct.pack("<I", len(text)) + text)


def test_more_in_the_head_is_no_matter() -> None:
    assert Index.decode(with_head(more={"a": 1})) == INDEX


def test_a_feature_that_is_not_known_is_refused_by_name() -> None:
    index = replace(INDEX, features=("base-checkpoint", "age"))
    with pytest.raises(UnknownFeature, match="age, base-checkpoint"):
        Index.decode(index.encode())


def commits(codec: str, sealed: bool, length: int = 0) -> tuple[Carrier, list[Index], list[bytes]]:
    """The commit of a checkpoint of two shards, as bytes for each."""
    carrier = Carrier(codec_of(codec))
    some = [replace(INDEX, shard=k, markers=INDEX.markers + bytes(length)) for k in (0, 1)]
    units, next_seq = units_of_commit(carrier, some, [100, 200], [10, 20], 5, sealed=sealed)
    if codec == "none":
        seqs = sorted(
            marker.seq for shard in units for marker, _ in parse(b"".join(shard), payloads=True)
        )
        assert seqs == list(range(5, next_seq))
    else:
        assert next_seq == 5
    return carrier, some, [b"".join(shard) for shard in units]


@pytest.mark.parametrize("length", [0, 9_000, 130_000])
@pytest.mark.parametrize("sealed", [False, True])
@pytest.mark.parametrize("codec", CODECS)
def test_a_commit_comes_back(codec: str, sealed: bool, length: int) -> None:
    carrier, some, shards = commits(codec, sealed, length)
    for k, units in enumerate(shards):
        index, footer = commit_in(units, carrier)
        assert index == some[k]
        assert footer_in(units[-FOOTER_LEN - carrier.codec.hide_tail :], carrier) == footer
        assert (footer.shard, footer.sealed, footer.commit) == (k, sealed, 3)
        assert (footer.commit_offset, footer.previous_end) == ([100, 200][k], [10, 20][k])


@pytest.mark.parametrize("sealed", [False, True])
@pytest.mark.parametrize("codec", CODECS)
def test_each_flipped_bit_of_a_commit_is_refused(codec: str, sealed: bool) -> None:
    carrier, _, shards = commits(codec, sealed)
    for units in shards:
        for at in range(len(units)):
            damaged = bytearray(units)
            damaged[at] ^= 1 << at % 8
            with pytest.raises(CorruptShard):
                commit_in(bytes(damaged), carrier)


@pytest.mark.parametrize("codec", CODECS)
def test_a_commit_cut_short_is_refused(codec: str) -> None:
    carrier, _, shards = commits(codec, sealed=True)
    for units in shards:
        for cut in range(1, len(units)):
            with pytest.raises(CorruptShard):
                commit_in(units[:-cut], carrier)
        with pytest.raises(CorruptShard):
            commit_in(units + b"\0", carrier)


@pytest.mark.parametrize("codec", CODECS)
def test_a_frame_is_no_commit(codec: str) -> None:
    carrier = Carrier(codec_of(codec))
    header = Header(Kind.DATA, 0, 5, 5, 0, UUID(int=1)).encode()
    with pytest.raises(CorruptShard):
        commit_in(carrier.hide(header, 3) + bytes(5), carrier)


@pytest.mark.parametrize("codec", CODECS)
@given(blob=st.binary(max_size=300), seq=st.integers(0, 1 << 40))
def test_what_is_hidden_is_found(codec: str, blob: bytes, seq: int) -> None:
    carrier = Carrier(codec_of(codec))
    unit = carrier.hide(blob, seq)
    assert len(unit) <= carrier.unit_len(len(blob))
    assert carrier.unhide(unit + b"more", len(blob)) == (blob, len(unit))
    if unit:  # zlib has no envelope
        with pytest.raises(CorruptShard):
            carrier.unhide(unit[:-1], len(blob))
