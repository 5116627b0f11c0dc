"""A checkpoint made independent of its base. Blocking; no mount."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Final

from cedanafs.shard.audit import Progress
from cedanafs.shard.bases import refuse_if_used
from cedanafs.shard.checkpoint import Checkpoint
from cedanafs.shard.contents import Image
from cedanafs.shard.extents import Frame
from cedanafs.shard.lanes import Lanes
from cedanafs.shard.place import Place
from cedanafs.shard.reader import load_frame
from cedanafs.shard.store import require_shards

_PIECE_BYTES: Final = 1 << 20
_BUDGET_BYTES: Final = 32 << 20


def flatten(directory: Place, progress: Progress = lambda _: None) -> int:
    """Write what the checkpoint in *directory* has of its base into it; returns how many bytes.

    One commit says both that it is there and that no base is needed; before it, nothing has
    changed. Raises: UsageError when others refer to it, CheckpointError, StoreError, StoreBusy.
    """
    require_shards(directory)
    refuse_if_used(directory, "flatten it")
    checkpoint = Checkpoint.load(directory)
    written = 0
    try:
        if checkpoint.contents.base is None or checkpoint.codec is None:
            return 0
        count = len(checkpoint.files)
        with Lanes(count, budget_bytes=_BUDGET_BYTES) as lanes:
            landed = threading.Event()
            lanes.on_progress = landed.set
            log = checkpoint.begin_writing(lanes, shards=count, codec=checkpoint.codec)
            for image in list(log.contents.images.values()):
                mtime_ns = image.mtime_ns
                ranges = list(_pieces(image))
                for offset, length in ranges:
                    data = _read(checkpoint, image, offset, length)
                    landed.clear()
                    while not lanes.try_reserve(length):
                        log.flush()
                        landed.wait()
                        landed.clear()
                    log.write(image, offset, data)
                    progress(length)
                    written += length
                image.mtime_ns = mtime_ns
            log.prepare_commit()
            log.drop_base()
            checkpoint.commit(seal=True)
            checkpoint.end_writing()
    finally:
        checkpoint.close()
    return written


def _pieces(image: Image) -> Iterator[tuple[int, int]]:
    """The ranges of *image* that are a base's, neighbours together, at most 1 MiB each."""
    begin = end = 0
    for offset, length, _ in list(image.extents.of_a_base()):
        if offset != end:
            yield from _cut(begin, end)
            begin = offset
        end = offset + length
    yield from _cut(begin, end)


def _cut(begin: int, end: int) -> Iterator[tuple[int, int]]:
    for offset in range(begin, end, _PIECE_BYTES):
        yield offset, min(_PIECE_BYTES, end - offset)


def _read(checkpoint: Checkpoint, image: Image, offset: int, length: int) -> bytes:
    assert checkpoint.codec is not None
    out = bytearray()
    raw: tuple[Frame | None, bytes] = None, b""
    for piece in image.extents.slices(offset, length):
        if piece.frame is None:
            out += bytes(piece.length)
            continue
        if raw[0] is not piece.frame:
            files, codec = piece.frame.home or (checkpoint.files, checkpoint.codec)
            raw = piece.frame, load_frame(files[piece.frame.shard], codec, piece.frame)
        out += raw[1][piece.at : piece.at + piece.length]
    return bytes(out)
