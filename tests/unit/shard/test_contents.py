"""Records applied in order; hostile ones are refused, and by CorruptShard."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cedanafs.errors import CorruptShard
from cedanafs.shard.contents import (
    MAX_FILE_LEN,
    Contents,
    hidden_name,
    is_image_name,
    is_link_target,
)
from cedanafs.shard.extents import Frame
from cedanafs.shard.records import BOOKKEEPING, Marker

FRAME = Frame(0)


def applied(*records: dict, contents: Contents | None = None) -> Contents:
    contents = contents or Contents()
    for seq, record in enumerate(records):
        contents.apply(Marker(seq=seq, **record), FRAME, 0)
    return contents


u64 = st.one_of(st.integers(0, (1 << 64) - 1), st.integers(0, 50))
names = st.sampled_from(["a", "b", "c", hidden_name(1), "", "..", "a/b", "\0", BOOKKEEPING])
records = st.one_of(
    st.builds(lambda n: {"file_data": n}, st.integers(0, (1 << 32) - 1)),
    st.builds(lambda n, at: {"file_data": n, "offset": at}, st.integers(0, 99), u64),
    st.just({"file_eof": True}),
    st.just({"image_eof": True}),
    st.fixed_dictionaries(
        {"filename": names},
        optional={
            "mode": u64,
            "uid": u64,
            "gid": u64,
            "mtime_ns": u64,
            "truncate": u64,
            "unlink": st.booleans(),
            "rename_to": names,
            "symlink_to": st.one_of(names, st.sampled_from(["../1", "x" * 4096])),
        },
    ),
)


@given(st.lists(records, max_size=12))
def test_any_records_make_sense_or_are_corrupt(some: list[dict]) -> None:
    contents = Contents()
    try:
        applied(*some, contents=contents)
    except CorruptShard:
        return
    contents.drop_hidden()
    for name, image in contents.images.items():
        assert name == image.name
        assert is_image_name(name)
        assert 0 <= image.size <= MAX_FILE_LEN
        assert image.extents.end <= image.size
        assert 0 <= image.mode <= 0o7777
        assert 0 <= image.uid < 1 << 32
        assert 0 <= image.mtime_ns <= MAX_FILE_LEN
        if image.symlink_to is not None:
            assert is_link_target(image.symlink_to)
            assert image.size == 0


@pytest.mark.parametrize(
    "some",
    [
        [{"file_data": 1}],
        [{"file_eof": True}],
        [{"filename": "a"}, {"file_eof": True}, {"file_data": 1}],
        [{"filename": "a"}, {"filename": BOOKKEEPING}, {"file_data": 1}],
        [{"filename": "a"}, {"file_data": 1, "offset": MAX_FILE_LEN}],
        [{"filename": "a", "truncate": MAX_FILE_LEN + 1}],
        [{"filename": "a", "unlink": True}],
        [{"filename": "a"}, {"filename": "a", "rename_to": "b/c"}],
        [{"filename": "a"}, {"filename": "a", "rename_to": BOOKKEEPING}],
        *([{"filename": name}] for name in ("", ".", "..", "a/b", "/a", "a\0", "x" * 256)),
        [{"filename": f"{BOOKKEEPING}-unlinked-"}],
        [{"filename": f"{BOOKKEEPING}-unlinked-١"}],  # noqa: RUF001 - a digit that is not ASCII
        [{"filename": f"{BOOKKEEPING}x"}],
        *([{"filename": "a", "symlink_to": to}] for to in ("", "a\0b", "x" * 4096)),
        [{"filename": "a", "symlink_to": "b"}, {"file_data": 1}],
        [{"filename": "a", "symlink_to": "b"}, {"filename": "a", "truncate": 1}],
        [{"filename": "a"}, {"file_data": 1}, {"filename": "a", "symlink_to": "b"}],
    ],
)
def test_what_makes_no_sense_is_refused(some: list[dict]) -> None:
    with pytest.raises(CorruptShard):
        applied(*some)


def test_there_are_only_so_many_images(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cedanafs.shard.contents.MAX_IMAGES", 2)
    contents = applied({"filename": "a"}, {"filename": "b"}, {"filename": "a"})
    with pytest.raises(CorruptShard, match="more than 2"):
        applied({"filename": "c"}, contents=contents)
    applied({"filename": "a", "unlink": True}, {"filename": "c"}, contents=contents)


def test_what_is_refused_is_told_in_a_short_line() -> None:
    for record in ({"filename": "\n/" * 4000}, {"filename": "a", "symlink_to": "\n" * 9000}):
        with pytest.raises(CorruptShard) as refused:
            applied(record)
        assert len(str(refused.value)) < 300
        assert str(refused.value).isprintable()


def test_a_name_is_one_component_of_at_most_255_bytes() -> None:
    assert is_image_name("x" * 255)
    assert is_image_name("\udcff" * 255)  # bytes that are not UTF-8, one each
    assert not is_image_name("ü" * 128)


def test_a_renamed_file_takes_its_bytes_along_and_replaces() -> None:
    contents = applied(
        {"filename": "a"},
        {"file_data": 5},
        {"filename": "b"},
        {"file_data": 9},
        {"filename": "b", "rename_to": "a"},
        {"file_data": 2},
    )
    assert {name: image.size for name, image in contents.images.items()} == {"a": 11}


def test_hidden_files_are_dropped() -> None:
    contents = applied({"filename": "a"}, {"filename": "a", "rename_to": hidden_name(3)})
    assert list(contents.images) == [hidden_name(3)]
    contents.drop_hidden()
    assert contents.images == {}
