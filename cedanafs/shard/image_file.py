"""An image of a checkpoint, as a file object."""

from __future__ import annotations

import io
import os
from typing import TYPE_CHECKING

from cedanafs.errors import UsageError
from cedanafs.shard.contents import Image
from cedanafs.shard.extents import Frame
from cedanafs.shard.opening import Opened
from cedanafs.shard.reader import load_frame

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer


class ImageFile(io.RawIOBase):
    """Reads *image* of *opened*, every byte checked; keeps the last frame, decoded.

    `read` raises CorruptShard or StoreError.
    """

    def __init__(self, opened: Opened, image: Image) -> None:
        if image.symlink_to is not None:
            raise UsageError(f"{opened.directory}: {image.name!r} is a link")
        self._opened = opened
        self._image = image
        self._at = 0
        self._frame: Frame | None = None
        self._decoded = memoryview(b"")

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._image.size}[whence]
        if start + offset < 0:
            raise ValueError(f"seek to {start + offset}")
        self._at = start + offset
        return self._at

    def readinto(self, buffer: WriteableBuffer) -> int:
        target = memoryview(buffer).cast("B")
        length = max(min(len(target), self._image.size - self._at), 0)
        done = 0
        for piece in self._image.extents.slices(self._at, length):
            end = done + piece.length
            if piece.frame is None:
                target[done:end] = bytes(piece.length)
            else:
                target[done:end] = self._raw(piece.frame)[piece.at : piece.at + piece.length]
            done = end
        target[done:length] = bytes(length - done)  # what is behind the last extent is a hole
        self._at += length
        return length

    def _raw(self, frame: Frame) -> memoryview:
        if frame is not self._frame:
            files, codec = frame.home or (self._opened.files, self._opened.codec)
            self._decoded = memoryview(load_frame(files[frame.shard], codec, frame))
            self._frame = frame
        return self._decoded
