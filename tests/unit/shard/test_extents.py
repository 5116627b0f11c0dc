"""Extents against a bytearray."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cedanafs.shard.extents import ExtentMap, Frame

SIZE = 40
FRAMES = [(Frame(0), bytes(range(1, 101))), (Frame(1), bytes(range(101, 201)))]
CONTENT = dict(FRAMES)

changes = st.one_of(
    st.tuples(
        st.just("put"),
        st.integers(0, SIZE),
        st.sampled_from([frame for frame, _ in FRAMES]),
        st.integers(0, 60),
        st.integers(0, SIZE),
    ),
    st.tuples(st.just("truncate"), st.integers(0, SIZE)),
)


def read(extents: ExtentMap, offset: int, length: int) -> bytes:
    out = b""
    for piece in extents.slices(offset, length):
        assert piece.length > 0
        if piece.frame is None:
            out += bytes(piece.length)
        else:
            out += CONTENT[piece.frame][piece.at : piece.at + piece.length]
    return out


@pytest.fixture(autouse=True, scope="module", params=[2, 3, 1024])
def _run_len(request: pytest.FixtureRequest) -> Iterator[None]:
    """Few changes must meet the borders of runs, too."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("cedanafs.shard.extents.RUN_LEN", request.param)
        yield


@settings(max_examples=400)
@given(st.lists(changes, max_size=20), st.integers(0, 2 * SIZE), st.integers(0, 3 * SIZE))
def test_slices_are_what_was_put_last(some: list[tuple], offset: int, length: int) -> None:
    extents, model = ExtentMap(), bytearray()
    for change in some:
        if change[0] == "put":
            _, start, frame, at, count = change
            extents.put(start, frame, at, count)
            if count:
                model.extend(bytes(max(start - len(model), 0)))
                model[start : start + count] = CONTENT[frame][at : at + count]
        else:
            extents.truncate(change[1])
            del model[change[1] :]
        # What was cut off need not be kept as a hole: the file's size is not the map's.
        assert extents.end <= len(model)
        assert read(extents, 0, len(model)) == model
        starts = [(start, start + piece.length) for start, piece in extents]
        assert all(a < b for a, b in starts)
        assert all(b <= c for (_, b), (c, _) in itertools.pairwise(starts))
    padded = model + bytes(5 * SIZE)
    assert read(extents, offset, length) == padded[offset : offset + length]


def test_nothing_is_asked_of_an_empty_map() -> None:
    extents = ExtentMap()
    extents.truncate(0)
    extents.put(5, Frame(0), 0, 0)
    assert list(extents) == []
    assert extents.end == 0
    assert read(extents, 3, 4) == bytes(4)
    assert list(extents.slices(3, 0)) == []
