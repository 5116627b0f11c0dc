"""A checkpoint written anew, as one of ours; and what other copies need. Blocking, no mount."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Final

import xxhash

from cedanafs.errors import CheckpointIncomplete, CorruptShard, StoreError
from cedanafs.shard.audit import INVENTORY, Progress
from cedanafs.shard.codec import Bytes, Codec
from cedanafs.shard.contents import Image
from cedanafs.shard.opening import Opened, open_checkpoint
from cedanafs.shard.packing import Sink, new_directory, new_log, require_as_written
from cedanafs.shard.place import Place
from cedanafs.shard.reader import Reader, Stream

_CACHE_BYTES: Final = 64 << 20
_PIECE_BYTES: Final = 1 << 20
_ZEROS: Final = memoryview(bytes(_PIECE_BYTES))


class Images:
    """The images of a checkpoint, to be read from beginning to end one after the other."""

    def __init__(self, opened: Opened, reader: Reader) -> None:
        self._opened, self._reader = opened, reader
        self.digests: dict[str, str] = {}
        """Of those that were read to their end; links: where they lead."""
        self.dated = (opened.created_ns, opened.committed_ns) if opened.created_ns else None
        """When the checkpoint was made and committed, where that is known."""

    def __iter__(self) -> Iterator[Image]:
        """All of them; inventory.img last, as CRIU writes it."""
        images = self._opened.contents.images.values()
        return iter(sorted(images, key=lambda image: image.name == INVENTORY))

    def __len__(self) -> int:
        return len(self._opened.contents.images)

    @property
    def image_bytes(self) -> int:
        """How long they are, taken together."""
        return sum(image.size for image in self)

    def data(self, image: Image) -> Iterator[tuple[int, Bytes | None, int]]:
        """Offset, bytes, and how many, 1 MiB at most; None for a hole.

        Raises: CorruptShard naming image, shard and offset; StoreError.
        """
        digest = xxhash.xxh3_128((image.symlink_to or "").encode("utf-8", "surrogateescape"))
        stream = Stream(0)
        for start in range(0, image.size, _PIECE_BYTES):
            offset, length = start, min(_PIECE_BYTES, image.size - start)
            stream.read(offset, length)
            opened = self._opened
            self._reader.read_ahead(opened.files, opened.codec, image.extents, stream)
            for piece in image.extents.slices(offset, length):
                data: Bytes | None = None
                if piece.frame is not None:
                    files, codec = piece.frame.home or (opened.files, opened.codec)
                    try:
                        raw = self._reader.fetch(files, codec, piece.frame).result()
                    except CorruptShard as exc:
                        raise CorruptShard(f"{image.name!r} at offset {offset}: {exc}") from exc
                    data = raw[piece.at : piece.at + piece.length]
                digest.update(_ZEROS[: piece.length] if data is None else data)
                yield offset, data, piece.length
                offset += piece.length
        self.digests[image.name] = digest.hexdigest()


@contextlib.contextmanager
def images_in(directory: Place) -> Iterator[Images]:
    """What the checkpoint in *directory* holds, by whichever streamer it was written.

    Raises: CheckpointError, CheckpointIncomplete where something may hold a part only, StoreError.
    """
    opened = open_checkpoint(directory)
    try:
        if opened.commit == 0:
            raise CheckpointIncomplete(f"{directory}: no commit of it ever completed")
        if unfinished := opened.contents.unfinished():
            raise CheckpointIncomplete(
                f"{directory}: cut short while {', '.join(unfinished[:3])} was being written"
            )
        with Reader(threads=2, cache_bytes=_CACHE_BYTES) as reader:
            reader.readers = 1
            yield Images(opened, reader)
    finally:
        opened.close()


def convert(
    source: Place,
    directory: Place,
    *,
    shards: int,
    codec: Codec,
    budget_bytes: int,
    upload_bytes: int = 0,
    base: str | None = None,
    progress: Progress = lambda _: None,
    expect: Progress = lambda _: None,
) -> int:
    """Write what *source* holds into *directory*, a new checkpoint; returns how many images.

    It refers to the checkpoint *base* beside it, or needs none; links, modes, owners, times, that
    of the checkpoint too, and holes are kept. When this returns it is durable, and was read back
    and compared; when it raises, nothing of it is left.
    *budget_bytes* bounds what is read and not yet written. *expect* gets what *progress* comes to.
    Raises: UsageError about *directory*, CheckpointError, StoreError.
    """
    with images_in(source) as images, new_directory(directory):
        expect(images.image_bytes)
        with new_log(
            directory, shards, codec, budget_bytes, upload_bytes, base, images.dated
        ) as sink:
            for image in images:
                _copy(images, image, sink, progress)
        require_as_written(directory)
        require_equal(directory, images.digests)
        return len(images)


def _copy(images: Images, image: Image, sink: Sink, progress: Progress) -> None:
    log, owner = sink.log, {"uid": image.uid, "gid": image.gid}
    if image.symlink_to is not None:
        made = log.symlink(image.name, image.symlink_to, **owner)
    else:
        made = log.create_image(image.name, mode=image.mode, **owner)
    for offset, data, length in images.data(image):
        if data is not None:
            sink.reserve(length)
            log.write(made, offset, bytes(data))
        progress(length)
    if made.length != image.size:
        log.truncate(made, image.size)
    made.mtime_ns = image.mtime_ns
    log.touch(made)


def require_equal(directory: Place, digests: Mapping[str, str]) -> None:
    """Raises: StoreError when the images in *directory* are others than those of *digests*."""
    with images_in(directory) as images:
        for image in images:
            for _ in images.data(image):
                pass
        if images.digests != digests:
            raise StoreError(f"{directory} is not what was written: its images differ")
