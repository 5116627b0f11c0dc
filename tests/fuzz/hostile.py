"""Strategies for checkpoints as an attacker makes them, mostly honest so that they get far."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, TypeVar

from forging import Forgery, Record
from hypothesis import strategies as st

from cedanafs.shard.codec import Codec
from cedanafs.shard.contents import hidden_name
from cedanafs.shard.format import MAX_COMMIT_LEN, MAX_FRAME_LEN, MAX_INDEX_LEN
from cedanafs.shard.records import BOOKKEEPING, Marker, encode

T = TypeVar("T")

CODECS: Final = ("none", "lz4", "zstd", "gzip", "zlib")

_EDGES: Final = [
    edge + more
    for edge in (
        0, 1 << 16, MAX_FRAME_LEN, MAX_INDEX_LEN, MAX_COMMIT_LEN,
        1 << 31, 1 << 32, 1 << 62, 1 << 63, 1 << 64,
    )
    for more in (-1, 0, 1)
]  # fmt: skip


def numbers(bits: int) -> st.SearchStrategy[int]:
    """Numbers of *bits*: small ones, and those at which something ends."""
    edges = [edge for edge in _EDGES if 0 <= edge < 1 << bits]
    return st.one_of(st.integers(0, 300), st.sampled_from(edges), st.integers(0, (1 << bits) - 1))


u16, u32, u64 = numbers(16), numbers(32), numbers(64)

_NAMES: Final = (
    "a", "b", "inventory.img", "pages-1.img", "ü", "\udcff", "new\nline", "\x1b[2J", " ", "x" * 255,
)  # fmt: skip
_BAD_NAMES: Final = (
    "", ".", "..", "/etc/cron.d/x", "../canary", "a/b", "a/../../canary", "a\0b", "x" * 256,
    "ü" * 128, "./a", "a/", "//",
    BOOKKEEPING, f"{BOOKKEEPING}x", hidden_name(1), hidden_name(10**19),
)  # fmt: skip
_LINKS: Final = ("../0", "/", "/etc/passwd", ".", "a", "canary", "..", "\udcff", "x" * 4095)
_BAD_LINKS: Final = ("", "a\0b", "x" * 4096)

Draw = Callable[[st.SearchStrategy[Any]], Any]


def seldom(draw: Draw, odd: st.SearchStrategy[T], else_: T) -> T:
    """*else_*, but for one time in twenty."""
    return draw(odd) if draw(st.integers(0, 19)) == 7 else else_  # type: ignore[no-any-return]


def _name(draw: Draw) -> str:
    return seldom(draw, st.sampled_from(_BAD_NAMES), draw(st.sampled_from(_NAMES)))


def _record(draw: Draw, forgery: Forgery) -> Record:
    said: dict[str, Any] = {}
    payload = b""
    kind = draw(
        st.sampled_from(
            [
                "name",
                "name",
                "data",
                "data",
                "data",
                "data",
                "data",
                "change",
                "change",
                "eof",
                "raw",
            ]
        )
    )
    if kind == "raw":
        body = draw(st.binary(max_size=40))
        return len(body).to_bytes(4, "little") + body, b""
    if kind == "eof":
        said[draw(st.sampled_from(["file_eof", "image_eof"]))] = True
    elif kind == "data":
        payload = draw(st.sampled_from([b"", b"x", b"some bytes", bytes(5000), b"y" * 70_000]))
        said["file_data"] = seldom(draw, u32, len(payload))
        if draw(st.booleans()):
            said["offset"] = seldom(draw, u64, draw(st.integers(0, 9000)))
    else:
        said["filename"] = _name(draw)
    if kind == "change":
        for field, values in (
            ("mode", u32), ("uid", u32), ("gid", u32), ("mtime_ns", u64), ("truncate", u64),
            ("unlink", st.just(True)), ("rename_to", st.builds(_name, st.just(draw))),
            ("symlink_to", st.sampled_from(_LINKS + _BAD_LINKS)),
            ("hidden", st.binary(max_size=80)),
        ):  # fmt: skip
            if draw(st.integers(0, 3)) == 0:
                said[field] = draw(values)
    marker, payload = forgery.record(payload, **said)
    assert isinstance(marker, Marker)
    if draw(st.integers(0, 40)) == 7:
        marker = Marker(**{**{f: getattr(marker, f) for f in marker.__slots__}, "seq": draw(u64)})
    return encode(marker), payload


def _otherwise(draw: Draw, **fields: st.SearchStrategy[Any]) -> dict[str, Any]:
    """Now and then one or two of *fields*, and what they say."""
    if draw(st.integers(0, 11)) != 7:
        return {}
    names = draw(st.lists(st.sampled_from(sorted(fields)), min_size=1, max_size=2, unique=True))
    return {name: draw(fields[name]) for name in names}


def _row(draw: Draw) -> dict[str, Any]:
    return _otherwise(draw, offset=u64, stored_len=u32, raw_len=u32, checksum=u64, records=u32)


def _header(draw: Draw) -> dict[str, Any]:
    return _otherwise(draw, stored_len=u32, raw_len=u32, checksum=u64, shard=u16)


_ODD_CODECS: Final = ("zstd:19", "none", "gzip", "lz4:x", "zstd:" + "9" * 5000)


def _index(draw: Draw) -> dict[str, Any]:
    text = st.one_of(st.text(max_size=20), st.sampled_from(["x" * 100_000, "\x1b[2J\n"]))
    return _otherwise(
        draw,
        shards=u64,
        shard=u64,
        codec=st.one_of(st.sampled_from(_ODD_CODECS), text),
        commit=u64,
        created_ns=u64,
        committed_ns=u64,
        tool=text,
        content_seq=u64,
        content_end=u64,
        markers=st.binary(max_size=60),
        frames=st.just([]),
        features=st.lists(text, max_size=2).map(tuple),
        unfinished=st.lists(text, max_size=2).map(tuple),
    )


def _alter(draw: Draw) -> Callable[[bytes], bytes] | None:
    """Now and then, some bytes of the index otherwise, or left out, or put in."""
    if draw(st.integers(0, 11)) != 7:
        return None
    changes = draw(
        st.lists(
            st.tuples(st.integers(0, 2000), st.integers(0, 9), st.binary(max_size=9)), max_size=3
        )
    )

    def alter(blob: bytes) -> bytes:
        for at, gone, put in changes:
            at %= len(blob) + 1
            blob = blob[:at] + put + blob[at + gone :]
        return blob

    return alter


def _footer(draw: Draw) -> dict[str, Any]:
    return _otherwise(
        draw,
        commit=u64,
        commit_offset=u64,
        previous_end=u64,
        next_seq=u64,
        shard=u16,
        sealed=st.booleans(),
    )


def stored(codec: Codec, raw: bytes) -> bytes:
    return b"".join(codec.compress([raw]))


def _stored(draw: Draw, forgery: Forgery) -> bytes | None:
    """Stored bytes of a frame that are not its records compressed."""
    codec = forgery.codec
    return seldom(
        draw,
        st.one_of(
            st.binary(max_size=50),
            st.just(stored(codec, b"")),
            st.just(stored(codec, b"x") * 2),
            st.integers(0, 4 << 20).map(lambda length: stored(codec, bytes(length))),
        ),
        None,
    )


def forge(draw: Draw, directory: Path) -> Forgery:
    """A hostile checkpoint in *directory*."""
    forgery = Forgery(
        directory, shards=draw(st.integers(1, 3)), codec=draw(st.sampled_from(CODECS))
    )
    shards = len(forgery.paths)
    for number in range(draw(st.integers(1, 2))):
        for _ in range(draw(st.integers(0, 3))):
            records = [forgery.record(filename=_name(draw))]
            records += [_record(draw, forgery) for _ in range(draw(st.integers(0, 5)))]
            forgery.frame(
                draw(st.integers(0, shards - 1)),
                records,
                stored=_stored(draw, forgery),
                row=_row(draw),
                header=_header(draw),
            )
        only = None
        if number and draw(st.booleans()):
            only = draw(st.lists(st.integers(0, shards - 1), unique=True))
        forgery.commit(
            sealed=draw(st.booleans()),
            index=_index(draw),
            footer=_footer(draw),
            header=_header(draw),
            only=only,
            alter=_alter(draw),
        )
    for k in range(shards):
        if draw(st.integers(0, 9)) == 7:
            forgery.append(k, draw(st.binary(max_size=99)))
        if draw(st.integers(0, 19)) == 7:
            forgery.gap(k, draw(st.sampled_from([1, 5000, 1 << 33, 1 << 40])))
    return forgery
