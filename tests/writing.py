"""Checkpoints made without a filesystem: what the filesystem does, as plain blocking calls."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from cedanafs.shard.checkpoint import Checkpoint
from cedanafs.shard.codec import Codec, codec_of
from cedanafs.shard.contents import Contents, Image
from cedanafs.shard.format import Carrier
from cedanafs.shard.lanes import Lanes
from cedanafs.shard.log import Log
from cedanafs.shard.opening import open_checkpoint
from cedanafs.shard.place import Place
from cedanafs.shard.reader import load_frame
from cedanafs.shard.scan import Commit, scan
from cedanafs.shard.spill import Spill
from cedanafs.shard.store import ShardFile, open_shards, shard_paths

STOCK_TOOLS = {
    "none": ["cat"],
    "lz4": ["lz4", "-dc"],
    "zstd": ["zstd", "-dcq"],
    "gzip": ["gzip", "-dc"],
}


class Writer:
    """A checkpoint open for writing."""

    def __init__(self, checkpoint: Checkpoint, log: Log, lanes: Lanes) -> None:
        self.checkpoint = checkpoint
        self.log = log
        self.lanes = lanes

    def create(self, name: str, data: bytes = b"") -> Image:
        image = self.log.create_image(name, mode=0o600, uid=0, gid=0)
        if data:
            self.write(image, 0, data)
        return image

    def write(self, image: Image, offset: int, data: bytes) -> None:
        while not self.lanes.try_reserve(len(data)):
            time.sleep(0.001)
        self.log.write(image, offset, data)

    def commit(self, *, seal: bool = False) -> None:
        self.log.prepare_commit()
        self.checkpoint.commit(seal=seal)

    @property
    def images(self) -> dict[str, Image]:
        return self.log.contents.images


@contextmanager
def writing(
    directory: Place,
    *,
    shards: int = 1,
    codec: str | Codec = "zstd",
    budget_bytes: int = 64 << 20,
    base: str | None = None,
    spill: Spill | None = None,
) -> Iterator[Writer]:
    """Open the checkpoint in *directory*, a new one where there is none. Commits nothing itself.

    A new one refers to *base* beside it.
    """
    if isinstance(directory, Path):
        directory.mkdir(exist_ok=True)
    chosen = codec_of(codec) if isinstance(codec, str) else codec
    with Lanes(shards, budget_bytes=budget_bytes, upload_bytes=64 << 20, spill=spill) as lanes:
        checkpoint = Checkpoint.load(directory)
        try:
            log = checkpoint.begin_writing(lanes, shards=shards, codec=chosen, base=base)
            yield Writer(checkpoint, log, lanes)
        finally:
            checkpoint.close()
        assert lanes.in_use_bytes == 0, "written bytes were never given back"


def make_checkpoint(
    directory: Place,
    files: dict[str, bytes],
    *,
    shards: int = 1,
    codec: str = "zstd",
    seal: bool = True,
) -> Place:
    """A checkpoint that holds *files*, committed."""
    with writing(directory, shards=shards, codec=codec) as writer:
        for name, data in files.items():
            writer.create(name, data)
        writer.commit(seal=seal)
    return directory


def image_bytes(files: Sequence[ShardFile], codec: Codec, image: Image) -> bytes:
    """All of *image*, of which nothing may be pending."""
    assert image.pending is None
    out = bytearray()
    for piece in image.extents.slices(0, image.size):
        if piece.frame is None:
            out += bytes(piece.length)
        else:
            theirs, by = piece.frame.home or (files, codec)
            raw = load_frame(theirs[piece.frame.shard], by, piece.frame)
            out += raw[piece.at : piece.at + piece.length]
    assert len(out) == image.size
    return bytes(out)


def read_contents(files: Sequence[ShardFile], codec: Codec, contents: Contents) -> dict[str, bytes]:
    return {
        name: image_bytes(files, codec, image)
        for name, image in contents.images.items()
        if image.symlink_to is None
    }


def read_checkpoint(directory: Place) -> dict[str, bytes]:
    """Every file of the checkpoint, read as a reader does that has just come."""
    opened = open_checkpoint(directory)
    try:
        return read_contents(opened.files, opened.codec, opened.contents)
    finally:
        opened.close()


def last_commit(path: Path) -> Commit:
    """The last commit of the shard, whose checkpoint is as yet undamaged."""
    opened = open_checkpoint(path.parent)
    opened.close()
    (file,) = open_shards([path])
    found = scan(file, Carrier(opened.codec), file.length()).last
    file.close()
    assert found is not None
    return found


def stock_decoded(directory: Path, codec: str) -> list[bytes]:
    """What the standard tool prints for each shard."""
    return [
        subprocess.run(
            STOCK_TOOLS[codec], input=path.read_bytes(), capture_output=True, check=True
        ).stdout
        for path in shard_paths(directory)
    ]
