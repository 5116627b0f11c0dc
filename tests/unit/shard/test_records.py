"""Records ⇄ bytes."""

from __future__ import annotations

import contextlib
from dataclasses import fields, replace

import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from hypothesis import given
from hypothesis import strategies as st

from cedanafs.errors import CorruptShard
from cedanafs.shard.records import MAX_MARKER_LEN, Marker, decode, encode, parse

u64 = st.integers(0, (1 << 64) - 1)
names = st.text(st.characters(codec="utf-8"), max_size=300)
bodies = st.one_of(
    st.builds(dict, filename=names),
    st.builds(dict, file_data=st.integers(0, (1 << 32) - 1)),
    st.just({"file_eof": True}),
    st.just({"image_eof": True}),
)
extensions = st.fixed_dictionaries(
    {},
    optional={
        "offset": u64,
        "mode": u64,
        "uid": u64,
        "gid": u64,
        "mtime_ns": u64,
        "truncate": u64,
        "unlink": st.booleans(),
        "rename_to": names,
        "symlink_to": names,
        "hidden": st.binary(max_size=100),
    },
)
markers = st.builds(
    lambda seq, body, more: Marker(seq=seq, **body, **more), u64, bodies, extensions
)


def message_class() -> type:
    """The marker as its .proto would say it, built without one."""
    file = descriptor_pb2.FileDescriptorProto(name="marker.proto", syntax="proto3", package="t")
    message = file.message_type.add(name="marker")
    message.oneof_decl.add(name="body")
    kind = descriptor_pb2.FieldDescriptorProto
    for number, name, field_type in [
        (1, "seq", kind.TYPE_UINT64),
        (2, "filename", kind.TYPE_STRING),
        (3, "file_data", kind.TYPE_UINT32),
        (4, "file_eof", kind.TYPE_BOOL),
        (5, "image_eof", kind.TYPE_BOOL),
        (101, "offset", kind.TYPE_UINT64),
        (102, "mode", kind.TYPE_UINT64),
        (103, "uid", kind.TYPE_UINT64),
        (104, "gid", kind.TYPE_UINT64),
        (105, "mtime_ns", kind.TYPE_UINT64),
        (106, "truncate", kind.TYPE_UINT64),
        (107, "unlink", kind.TYPE_BOOL),
        (108, "rename_to", kind.TYPE_STRING),
        (109, "symlink_to", kind.TYPE_STRING),
        (110, "hidden", kind.TYPE_BYTES),
        (111, "patch_data", kind.TYPE_UINT32),
        (112, "runs", kind.TYPE_BYTES),
    ]:
        field = message.field.add(
            name=name, number=number, type=field_type, label=kind.LABEL_OPTIONAL
        )
        if 2 <= number <= 5:
            field.oneof_index = 0
        elif number > 100:
            message.oneof_decl.add(name=f"_{name}")
            field.oneof_index = len(message.oneof_decl) - 1
            field.proto3_optional = True
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("t.marker"))


MESSAGE = message_class()


@given(markers)
def test_a_marker_comes_back(marker: Marker) -> None:
    encoded = encode(marker)
    assert int.from_bytes(encoded[:4], "little") == len(encoded) - 4
    assert decode(encoded[4:]) == marker


@given(markers)
def test_protobuf_reads_what_we_write(marker: Marker) -> None:
    message = MESSAGE.FromString(encode(marker)[4:])
    for field in fields(Marker):
        value = getattr(marker, field.name)
        if value is None or value is False:
            assert field.name == "seq" or not message.HasField(field.name)
        else:
            assert getattr(message, field.name) == value


@given(markers)
def test_we_read_what_protobuf_writes(marker: Marker) -> None:
    message = MESSAGE()
    for field in fields(Marker):
        value = getattr(marker, field.name)
        if value is not None and value is not False:
            setattr(message, field.name, value)
    assert decode(message.SerializeToString()) == marker


@given(markers, st.data())
def test_unknown_fields_are_skipped(marker: Marker, data: st.DataObject) -> None:
    number = data.draw(st.integers(113, (1 << 29) - 1))
    wire, value = data.draw(
        st.sampled_from([(0, b"\xff\x01"), (1, bytes(8)), (2, b"\x03abc"), (5, bytes(4))])
    )
    key, out = number << 3 | wire, bytearray()
    while key >= 0x80:
        out.append(key & 0x7F | 0x80)
        key >>= 7
    unknown = bytes([*out, key]) + value
    body = encode(marker)[4:]
    assert decode(unknown + body) == decode(body + unknown) == marker


@given(st.lists(st.tuples(markers, st.binary(max_size=50)), max_size=8))
def test_a_stream_comes_back(records: list[tuple[Marker, bytes]]) -> None:
    stream, index, expected = b"", b"", []
    for marker, payload in records:
        if marker.file_data is not None:
            marker = replace(marker, file_data=len(payload))
        else:
            payload = b""
        encoded = encode(marker)
        stream += encoded + payload
        index += encoded
        expected.append((marker, payload))
    found = [
        (marker, stream[at : at + marker.payload_len])
        for marker, at in parse(stream, payloads=True)
    ]
    assert found == expected
    assert [m for m, _ in parse(index, payloads=False)] == [m for m, _ in expected]


@given(st.lists(markers, min_size=1, max_size=3), st.data())
def test_a_truncated_stream_is_refused(some: list[Marker], data: st.DataObject) -> None:
    pieces = [encode(replace(m, file_data=10) if m.file_data is not None else m) for m in some]
    stream = b"".join(
        piece + bytes(10 if m.file_data is not None else 0)
        for piece, m in zip(pieces, some, strict=True)
    )
    last = len(pieces[-1]) + (10 if some[-1].file_data is not None else 0)
    cut = data.draw(st.integers(1, last - 1))
    with pytest.raises(CorruptShard):
        list(parse(stream[:-cut], payloads=True))


@given(st.lists(markers, min_size=1, max_size=3), st.data())
def test_a_flipped_bit_raises_corrupt_shard_or_nothing(
    some: list[Marker], data: st.DataObject
) -> None:
    """Records have no checksum of their own, their frame has: another marker may come out."""
    stream = bytearray(b"".join(map(encode, some)))
    bit = data.draw(st.integers(0, 8 * len(stream) - 1))
    stream[bit // 8] ^= 1 << bit % 8
    for payloads in (True, False):
        with contextlib.suppress(CorruptShard):
            list(parse(bytes(stream), payloads=payloads))


@given(st.binary(max_size=200))
def test_garbage_raises_corrupt_shard_or_nothing(garbage: bytes) -> None:
    for read in (decode, lambda body: list(parse(body, payloads=True))):
        with contextlib.suppress(CorruptShard):
            read(garbage)


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (b"", "not exactly one"),
        (b"\x08\x01", "not exactly one"),
        (b"\x20\x01\x28\x01", "not exactly one"),
        (b"\x12\x01a\x18\x01", "not exactly one"),
        (b"\x12\x05a", "longer than the marker"),
        (b"\x20\x01\x0b", "wire type 3"),
        (b"\x20\x01\x0e", "wire type 6"),
        (b"\x20\x01\x09\0\0", "longer than the marker"),
        (b"\x08" + b"\xff" * 9 + b"\x02\x20\x01", "cut short or too long"),
        (b"\x08" + b"\x80" * 10 + b"\x01\x20\x01", "cut short or too long"),
        (b"\x18\x80\x80\x80\x80\x10", "does not fit 32 bits"),
    ],
)
def test_what_is_no_marker_is_refused(body: bytes, why: str) -> None:
    with pytest.raises(CorruptShard, match=why):
        decode(body)


def test_a_marker_is_shorter_than_what_makes_other_readers_panic() -> None:
    room = MAX_MARKER_LEN - len(encode(Marker(seq=1, filename=""))[4:]) - 1
    assert len(encode(Marker(seq=1, filename="x" * room))) == 4 + MAX_MARKER_LEN
    with pytest.raises(ValueError, match="at most 10239"):
        encode(Marker(seq=1, filename="x" * (room + 1)))
    with pytest.raises(CorruptShard, match="at most 10239"):
        list(parse((10_240).to_bytes(4, "little") + bytes(10_240), payloads=True))


def test_names_that_are_not_utf8_come_back() -> None:
    marker = Marker(seq=0, filename=b"\xff\xfe".decode("utf-8", "surrogateescape"))
    assert decode(encode(marker)[4:]) == marker


def test_seq_0_is_left_out_as_proto3_does() -> None:
    assert encode(Marker(seq=0, file_eof=True)) == b"\x02\0\0\0\x20\x01"


def test_numbers_out_of_range_are_the_callers_bug() -> None:
    for value in (-1, 1 << 64):
        with pytest.raises(ValueError, match="64-bit"):
            encode(Marker(seq=0, filename="a", mtime_ns=value))
