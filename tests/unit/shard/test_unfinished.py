"""Images that were still being written when a commit covered them, and nobody finished."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from writing import Writer, writing

from cedanafs.errors import CheckpointIncomplete
from cedanafs.shard.audit import require_complete
from cedanafs.shard.opening import Opened, open_checkpoint


def look(directory: Path) -> Opened:
    opened = open_checkpoint(directory)
    opened.close()
    return opened


def unfinished(directory: Path) -> list[str]:
    return look(directory).contents.unfinished()


def commit(writer: Writer, *being_written: str) -> None:
    writer.log.prepare_commit(being_written)
    writer.checkpoint.commit()


@pytest.fixture
def cut_short(tmp_path: Path) -> Path:
    """A checkpoint that was committed when nobody had closed files.img yet."""
    with writing(tmp_path / "c", shards=2) as writer:
        writer.create("inventory.img", b"inventory")
        writer.create("files.img", b"some of it")
        commit(writer, "files.img")
    return tmp_path / "c"


def test_it_is_no_whole_dump_and_says_why(cut_short: Path) -> None:
    assert unfinished(cut_short) == ["files.img"]
    with pytest.raises(CheckpointIncomplete, match=r"while files\.img was being written"):
        require_complete(look(cut_short))


def test_a_commit_after_the_file_was_closed_says_so(tmp_path: Path) -> None:
    with writing(tmp_path / "c", shards=2) as writer:
        writer.create("files.img", b"all of it")
        commit(writer, "files.img")
        commit(writer)  # nothing else has changed
    assert unfinished(tmp_path / "c") == []


@pytest.mark.parametrize(
    ("what", "left"),
    [
        (lambda writer, image: writer.write(image, 10, b"more"), ["files.img"]),
        (lambda writer, image: writer.log.rename(image, "other"), ["other"]),
        (lambda writer, image: writer.log.truncate(image, 3), ["files.img"]),
        (lambda writer, image: writer.log.truncate(image, 0), []),
        (lambda writer, image: writer.log.unlink(image, still_open=False), []),
    ],
    ids=["written", "renamed", "cut", "begun anew", "removed"],
)
def test_who_writes_next_must_begin_the_file_anew(
    cut_short: Path, what: Callable[..., None], left: list[str]
) -> None:
    with writing(cut_short) as writer:
        what(writer, writer.images["files.img"])
        commit(writer)
    assert unfinished(cut_short) == left
