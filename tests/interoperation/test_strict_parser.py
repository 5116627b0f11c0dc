"""The tests' own parser of other streamers' sets refuses what their rules forbid."""

from __future__ import annotations

import pytest
from sets import record
from stream_parser import CHUNK_LIMIT, MARKER_LIMIT, StreamError, cedana_files_of, files_of

END = record(3, image_eof=True)
WHOLE = record(0, filename="a") + record(1, data=b"hello") + record(2, file_eof=True) + END
NAMES = b'["a","pages-1.img"]'
SMALL = (
    record(0, filename="a") + record(1, file_eof=True) + record(2, filename="metadata.json")
    + record(3, data=NAMES) + record(4, file_eof=True)
)  # fmt: skip
LARGE = record(0, filename="pages-1.img") + record(1, file_eof=True) + record(2, image_eof=True)


def test_files_may_be_interleaved_over_shards() -> None:
    shards = [
        record(0, filename="a") + record(3, data=b"2") + record(5, file_eof=True),
        record(1, data=b"1") + record(4, filename="a") + record(7, file_eof=True),
        record(2, filename="b") + record(6, filename="b") + record(8, image_eof=True),
    ]
    assert files_of(shards) == {"a": b"1", "b": b"2"}
    assert cedana_files_of([SMALL, LARGE]) == {"a": b"", "pages-1.img": b""}


@pytest.mark.parametrize(
    ("shards", "words"),
    [
        ([WHOLE.replace(b"\x08\x02", b"\x08\x04")], "seq 3 after 4"),
        ([WHOLE.removesuffix(END) + record(4, image_eof=True)], "a gap"),
        ([WHOLE.replace(b"\x08\x01\x18", b"\x08\x00\x18")], "seq 0 after 0"),
        ([WHOLE, record(2, filename="b")], "seq 2 twice"),
        ([WHOLE.removesuffix(END)], "no image_eof"),
        ([WHOLE + record(4, image_eof=True)], "behind image_eof"),
        ([WHOLE, record(4, image_eof=True)], "where the image does not end"),
        ([WHOLE + record(4, filename="b")], "behind image_eof"),
        ([WHOLE, record(4, filename="b")], "where the image does not end"),
        ([WHOLE + b"\0"], "cut short"),
        ([record(0, filename="a") + record(1, image_eof=True)], "no file_eof of"),
        ([WHOLE[: -len(END)] + record(3, filename="a")], "has ended"),
        ([record(0, data=b"x")], "no file is selected"),
        ([record(0, filename="a") + record(1, data=b"abc")[:-1]], "cut short"),
        ([record(0, filename="a/b")], "file name"),
        ([record(0, filename="x" * MARKER_LIMIT)], "marker of"),
        ([record(0, filename="a", file_eof=True)], "a marker with both"),
        ([record(0)], "says nothing"),
        ([record(0, filename="a") + record(1, data=bytes(CHUNK_LIMIT + 1))], "a chunk of"),
    ],
)
def test_refused(shards: list[bytes], words: str) -> None:
    with pytest.raises(StreamError, match=words):
        files_of(shards, chunk_limit=CHUNK_LIMIT)


@pytest.mark.parametrize(
    ("shards", "words"),
    [
        ([SMALL + LARGE], "two shards at least"),
        ([SMALL[: -len(record(4, file_eof=True))], LARGE], "no file_eof of"),
        ([record(0, filename="a") + record(1, file_eof=True), LARGE], "last small file"),
        ([SMALL.replace(b"pages-1", b"pages-2"), LARGE], "names"),
        ([SMALL + record(5, image_eof=True), LARGE], "where the image does not end"),
        ([SMALL, LARGE.replace(b"pages-1", b"pagex-1")], "names"),
        ([SMALL.replace(b"pages-1", b"pagex-1"), LARGE.replace(b"pages-1", b"pagex-1")],
         "among the large"),
    ],
)  # fmt: skip
def test_refused_as_cedanas(shards: list[bytes], words: str) -> None:
    with pytest.raises(StreamError, match=words):
        cedana_files_of(shards)
