"""Everything that is done to a checkpoint that came from elsewhere, and what may come of it.

Whatever the shards hold, each step ends soon, in a result or in a CedanaFsError of one line, and
nothing outside the directory that it was given changes.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from cedanafs.errors import CedanaFsError, CheckpointError
from cedanafs.look import inspect
from cedanafs.shard.audit import extract, verify
from cedanafs.shard.checkpoint import Checkpoint
from cedanafs.shard.codec import codec_of
from cedanafs.shard.contents import is_image_name
from cedanafs.shard.lanes import Lanes
from cedanafs.shard.opening import open_checkpoint
from cedanafs.shard.reader import Reader, Stream
from cedanafs.shard.repair import diagnose, salvage

READ_MOST: Final = 4 << 20
"""Bytes read of each image; as many from its end."""

MESSAGE_MOST: Final = 4096
NEW: Final = "written-by-us.img"


@dataclass
class Outcome:
    """What each step came to: None, or the error that it raised."""

    steps: dict[str, CedanaFsError | None] = field(default_factory=dict)

    def run(self, name: str, step: Callable[[], None]) -> None:
        error: CedanaFsError | None = None
        try:
            step()
        except CedanaFsError as exc:
            error = exc
        assert len(str(error)) <= MESSAGE_MOST, f"{name}: a message of {len(str(error))} characters"
        self.steps[name] = error

    @property
    def refused(self) -> bool:
        return any(self.steps.values())


def exercise(directory: Path, scratch: Path) -> Outcome:
    """Open, inspect, verify, read, extract, repair, write on. Raises: only what is a bug."""
    outcome = Outcome()
    outcome.run("inspect", lambda: _inspect(directory))
    outcome.run("verify", lambda: _verify(directory))
    outcome.run("read", lambda: _read(directory))
    outcome.run("extract", lambda: _extract(directory, scratch))
    outcome.run("diagnose", lambda: _diagnose(directory))
    outcome.run("salvage", lambda: _salvage(directory, scratch))
    outcome.run("write", lambda: _write(directory))
    if outcome.steps["verify"] is None:  # every byte is right, so every byte can be had
        for step in ("inspect", "read", "extract"):
            assert not isinstance(outcome.steps[step], CheckpointError), outcome
    return outcome


def _inspect(directory: Path) -> None:
    summary = inspect(directory)
    for image in summary.images:
        assert is_image_name(image.name)
        assert 0 <= image.bytes <= 1 << 62


def _verify(directory: Path) -> None:
    found = verify(directory)
    if found.damages:
        raise CheckpointError(found.damages[0])


def _read(directory: Path) -> None:
    opened = open_checkpoint(directory)
    try:
        with Reader(threads=2, cache_bytes=32 << 20) as reader:
            for image in opened.contents.images.values():
                for offset in {0, max(image.size - READ_MOST, 0)}:
                    length = min(READ_MOST, image.size - offset)
                    count = 0
                    for piece in image.extents.slices(offset, length):
                        if piece.frame is not None:
                            files, codec = piece.frame.home or (opened.files, opened.codec)
                            raw = reader.fetch(files, codec, piece.frame).result()
                            assert piece.at + piece.length <= len(raw)
                        count += piece.length
                    assert count == length
                reader.read_ahead(opened.files, opened.codec, image.extents, Stream(0))
    finally:
        opened.close()


def _diagnose(directory: Path) -> None:
    diagnose(directory)


def _extract(directory: Path, scratch: Path) -> None:
    _into(scratch / "extracted", lambda target: extract(directory, target))


def _salvage(directory: Path, scratch: Path) -> None:
    _into(scratch / "salvaged", lambda target: salvage(directory, target))


def _into(yard: Path, step: Callable[[Path], object]) -> None:
    """Into a directory beside things that hostile names would reach."""
    yard.mkdir()
    (yard / "canary").write_text("untouched")
    target = yard / "target"
    try:
        step(target)
    finally:
        assert sorted(os.listdir(yard)) in (["canary"], ["canary", "target"])
        assert (yard / "canary").read_text() == "untouched"
        if target.exists():
            for entry in os.scandir(os.fsencode(target)):
                seen = entry.stat(follow_symlinks=False)
                assert stat.S_ISREG(seen.st_mode) or stat.S_ISLNK(seen.st_mode)
                if stat.S_ISREG(seen.st_mode):
                    assert not seen.st_mode & 0o7000, "setuid, setgid or sticky"


def _write(directory: Path) -> None:
    """Go on writing; what was said to be durable must be there."""
    with Lanes(1, budget_bytes=1 << 20) as lanes:
        checkpoint = Checkpoint.load(directory)
        try:
            before = set(checkpoint.contents.images)
            log = checkpoint.begin_writing(lanes, shards=1, codec=codec_of("zstd"))
            image = log.contents.images.get(NEW) or log.create_image(NEW, mode=0o600, uid=0, gid=0)
            assert lanes.try_reserve(5)
            log.write(image, 0, b"ours!")
            log.prepare_commit()
            checkpoint.commit(seal=True)
        finally:
            checkpoint.close()
    opened = open_checkpoint(directory)
    try:
        assert set(opened.contents.images) == before | {NEW}
        (piece,) = opened.contents.images[NEW].extents.slices(0, 5)
        assert piece.frame is not None
    finally:
        opened.close()
