"""A checkpoint written as criu-image-streamer or Cedana's fork of it write theirs. Blocking.

Source: docs/interoperation.md.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from enum import Enum
from typing import Final

from cedanafs.errors import UsageError
from cedanafs.shard.audit import Progress
from cedanafs.shard.codec import Bytes, Codec
from cedanafs.shard.contents import Image
from cedanafs.shard.copying import Images, images_in, require_equal
from cedanafs.shard.foreign import NAMES_FILE
from cedanafs.shard.packing import new_directory
from cedanafs.shard.place import Place
from cedanafs.shard.records import Marker, encode
from cedanafs.shard.store import ShardFile, create_shards
from cedanafs.shard.streams import encoder

CHUNK_BYTES: Final = 258_048
"""The most that their own writers put into one record."""

_LARGE: Final = re.compile(
    r"pages-\d+\.img|ghost-file-\d+\.img|tcp-stream-.*\.img|rw-layer-\d+\.img"
    r"|(?!.*size)gpu-(calls|mem|ctx|hostmem|ctxshm|virtmem|envvars)-.*"
)


class Layout(Enum):
    """Whose set it is to be, and which compressions that streamer's users have."""

    STREAMER = "streamer"
    CEDANA = "cedana"


_CODECS: Final = {
    Layout.STREAMER: ("none", "lz4", "zstd", "gzip"),
    Layout.CEDANA: ("none", "lz4", "gzip", "zlib"),
}


def export(
    source: Place,
    directory: Place,
    *,
    layout: Layout,
    shards: int,
    codec: Codec,
    upload_bytes: int = 0,
    progress: Progress = lambda _: None,
    expect: Progress = lambda _: None,
) -> int:
    """Write what *source* holds into *directory*, new, as *layout*; returns how many images.

    Holes become zeros; modes, owners and times have no place there. When this returns the set is
    durable, and was read back and compared; when it raises, nothing of it is left.
    Raises: UsageError for what the layout cannot hold, CheckpointError, StoreError.
    """
    if codec.name not in _CODECS[layout]:
        raise UsageError(
            f"--layout {layout.value}: --compression {codec.name} is not known there; "
            f"one of {', '.join(_CODECS[layout])}"
        )
    if layout is Layout.CEDANA and shards < 2:
        raise UsageError("--layout cedana: --stream 2 at least: the first is for small files")
    with images_in(source) as images:
        _check_names(source, images, layout)
        expect(images.image_bytes)
        with new_directory(directory):
            files = create_shards(directory, shards, codec, upload_bytes)
            try:
                outputs = [_Output(file, codec) for file in files]
                _write(images, layout, outputs, progress)
                for output in outputs:
                    output.finish()
            finally:
                for file in files:
                    file.close()
            require_equal(directory, images.digests)
        return len(images)


def _check_names(source: Place, images: Images, layout: Layout) -> None:
    for image in images:
        if image.symlink_to is not None:
            raise UsageError(
                f"{source}: {image.name} is a link: no other streamer's set can hold one; "
                "cedanafs convert copies it"
            )
        if layout is Layout.CEDANA and image.name == NAMES_FILE:
            raise UsageError(
                f"{source}: {NAMES_FILE} is a name that Cedana's sets use themselves: "
                "--layout streamer takes it"
            )
        if not image.name.isprintable():
            raise UsageError(
                f"{source}: {image.name!r}: no other streamer's set can hold such a name; "
                "cedanafs convert copies it"
            )


def _write(images: Images, layout: Layout, outputs: Sequence[_Output], progress: Progress) -> None:
    if layout is Layout.STREAMER:
        whole = _Sequence(outputs)
        for image in images:
            whole.put(image.name, _chunks(images, image), progress)
        whole.end()
        return
    small, large = _Sequence(outputs[:1]), _Sequence(outputs[1:])
    for image in images:
        sequence = large if _LARGE.fullmatch(image.name) else small
        sequence.put(image.name, _chunks(images, image), progress)
    names = json.dumps([image.name for image in images], separators=(",", ":")).encode()
    pieces = (names[at : at + CHUNK_BYTES] for at in range(0, len(names), CHUNK_BYTES))
    small.put(NAMES_FILE, pieces, lambda _: None)
    large.end()


def _chunks(images: Images, image: Image) -> Iterator[Bytes]:
    for _, data, length in images.data(image):
        view = memoryview(bytes(length) if data is None else data)
        for at in range(0, length, CHUNK_BYTES):
            yield view[at : at + CHUNK_BYTES]


class _Output:
    """One shard, one compressed stream."""

    def __init__(self, file: ShardFile, codec: Codec) -> None:
        self._file, self._encoder = file, encoder(codec)
        self._end = 0

    def put(self, marker: Marker, payload: Bytes = b"") -> None:
        self._store(self._encoder.compress(encode(marker)))
        if payload:
            self._store(self._encoder.compress(payload))

    def finish(self) -> None:
        self._store(self._encoder.flush())
        self._file.sync()

    def _store(self, data: bytes) -> None:
        if data:
            self._file.write_at(self._end, [data])
            self._end += len(data)


class _Sequence:
    """Records that are numbered without a gap, on *outputs* in turn."""

    def __init__(self, outputs: Sequence[_Output]) -> None:
        self._outputs = outputs
        self._seq = self._turn = 0

    def put(self, name: str, chunks: Iterator[Bytes], progress: Progress) -> None:
        """A whole file."""
        self._current.put(Marker(seq=self._next(), filename=name))
        for chunk in chunks:
            self._current.put(Marker(seq=self._next(), file_data=len(chunk)), chunk)
            self._turn += 1
            progress(len(chunk))
        self._current.put(Marker(seq=self._next(), file_eof=True))

    def end(self) -> None:
        self._current.put(Marker(seq=self._next(), image_eof=True))

    @property
    def _current(self) -> _Output:
        return self._outputs[self._turn % len(self._outputs)]

    def _next(self) -> int:
        self._seq += 1
        return self._seq - 1
