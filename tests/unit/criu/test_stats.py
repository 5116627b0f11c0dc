"""stats-dump images, made here as CRIU makes them."""

import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cedanafs.criu import messages
from cedanafs.criu.stats import DumpStats, parse_stats
from cedanafs.errors import CheckpointError


def stats_image() -> bytes:
    """A stats-dump with a different number in each field."""
    messages.images()
    from pycriu.images import stats_pb2

    entry = stats_pb2.stats_entry()
    names = "freezing_time frozen_time memdump_time memwrite_time pages_scanned pages_written"
    names += " pages_skipped_parent shpages_scanned shpages_written"
    numbers = (1, 2, 3, 4, 5, 6, 7, 8, 9)
    for name, number in zip(names.split(), numbers, strict=True):
        setattr(entry.dump, name, number)
    entry.dump.pages_lazy = 0
    payload = entry.SerializeToString()
    return struct.pack("<III", 0x55105940, 0x57093306, len(payload)) + payload


def test_numbers_find_their_fields(tmp_path: Path) -> None:
    expected = DumpStats(1, 2, 3, 4, 5, 6, 7, 8, 9)
    assert parse_stats(stats_image()) == expected
    (tmp_path / "stats-dump").write_bytes(stats_image())
    assert parse_stats(tmp_path / "stats-dump") == expected


@given(st.integers(0, len(stats_image()) - 1))
def test_a_cut_image_is_refused(length: int) -> None:
    with pytest.raises(CheckpointError, match="not a stats-dump image"):
        parse_stats(stats_image()[:length])


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        parse_stats(tmp_path / "stats-dump")
