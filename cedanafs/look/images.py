"""The images in a checkpoint, read where they lie: no mount, no file is written. Blocking."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from typing import Any, Final, Self

from cedanafs.criu.entries import entries
from cedanafs.errors import CheckpointError, CheckpointMissing
from cedanafs.shard.chain import PARENT, chain
from cedanafs.shard.contents import Image
from cedanafs.shard.extents import Frame
from cedanafs.shard.opening import Opened, open_checkpoint
from cedanafs.shard.place import Place
from cedanafs.shard.reader import load_frame

MAX_IMAGE_BYTES: Final = 64 << 20
"""Most of an image that is looked at whole; 10,000 processes' files.img has 30 MiB."""

_KEPT_BYTES: Final = 16 << 20
"""Decoded frames that are kept: CRIU's small images share a few."""


class Images:
    """The images of *opened*, which is closed with it, on the caller's thread."""

    def __init__(self, opened: Opened) -> None:
        self.opened = opened
        self._kept: OrderedDict[Frame, bytes] = OrderedDict()
        self._kept_bytes = 0
        self._parent: Images | None = None

    @classmethod
    def open(cls, directory: Place) -> Self:
        """Raises: what `open_checkpoint` raises."""
        return cls(open_checkpoint(directory))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        if self._parent is not None:
            self._parent.close()
        self.opened.close()

    def __contains__(self, name: str) -> bool:
        return name in self.opened.contents.images

    def names(self) -> list[str]:
        return sorted(self.opened.contents.images)

    def image(self, name: str) -> Image:
        """Raises: CheckpointMissing."""
        found = self.opened.contents.images.get(name)
        if found is None or found.symlink_to is not None:
            raise CheckpointMissing(f"{name} is missing")
        return found

    def entries(self, name: str, kind: str) -> Iterator[Any]:
        """The messages in the image *name*. Raises: CheckpointError that names it, MachineError."""
        image = self.image(name)
        if image.size > MAX_IMAGE_BYTES:
            raise CheckpointError(f"{name} has {image.size} bytes: too many to look at")
        try:
            yield from entries(self.read(image, 0, image.size), kind)
        except CheckpointError as exc:
            raise CheckpointError(f"{name}: {exc}") from exc

    def first(self, name: str, kind: str) -> Any:
        """The first message of the image *name*. Raises: as `entries` does."""
        for entry in self.entries(name, kind):
            return entry
        raise CheckpointError(f"{name} is empty")

    def read(self, image: Image, offset: int, length: int) -> bytes:
        """Bytes [offset, offset + length) of *image*, of which nothing may be beyond its end.

        Raises: CheckpointError, StoreError.
        """
        if offset + length > image.size:
            raise CheckpointError(f"{image.name} ends after {image.size} bytes: it was cut short")
        out = []
        for piece in image.extents.slices(offset, length):
            if piece.frame is None:
                out.append(bytes(piece.length))
            else:
                out.append(self._decoded(piece.frame)[piece.at : piece.at + piece.length])
        return out[0] if len(out) == 1 else b"".join(out)

    def parent(self) -> Images | None:
        """The checkpoint that CRIU's `parent` link names. Raises: what `chain` raises."""
        if self._parent is None and PARENT in self:
            _, *parents = chain(self.opened.directory.absolute())
            self._parent = Images.open(parents[0]) if parents else None
        return self._parent

    def _decoded(self, frame: Frame) -> bytes:
        raw = self._kept.get(frame)
        if raw is not None:
            self._kept.move_to_end(frame)
            return raw
        files, codec = frame.home or (self.opened.files, self.opened.codec)
        raw = load_frame(files[frame.shard], codec, frame)
        self._kept[frame] = raw
        self._kept_bytes += len(raw)
        while self._kept_bytes > _KEPT_BYTES and len(self._kept) > 1:
            _, old = self._kept.popitem(last=False)
            self._kept_bytes -= len(old)
        return raw
