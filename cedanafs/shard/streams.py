"""Shards as other streamers write them, one compressed stream each: decoded, and encoded.

What is decoded may also be in several frames one after the other, as the standard tools read them.
Memory is bounded, whatever the stream says. Blocking.
"""

from __future__ import annotations

import io
import zlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, Protocol

import lz4.frame
import zstandard

from cedanafs.errors import CorruptShard
from cedanafs.shard.codec import Bytes, Codec
from cedanafs.shard.format import HEADER_MAGIC
from cedanafs.shard.records import BOOKKEEPING, MAX_MARKER_LEN, decode
from cedanafs.shard.store import ShardFile

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

_READ_BYTES: Final = 256 << 10
_MAX_WINDOW: Final = 128 << 20
"""What the zstd tool itself takes without being asked to."""

_HEAD_BYTES: Final = 512
"""Our first header lies in the first 128 bytes; another's first record names a file."""

_GZIP_WBITS, _ZLIB_WBITS = 31, 15

_LZ4_MAGIC: Final = b"\x04\x22\x4d\x18"
_ZSTD_MAGIC: Final = b"\x28\xb5\x2f\xfd"
_GZIP_MAGIC: Final = b"\x1f\x8b\x08"
_GZIP_OURS: Final = b"\x04"  # FEXTRA alone, as no tool sets it
_OTHERS_SKIPPABLE: Final = tuple(bytes([low]) + b"\x2a\x4d\x18" for low in range(0x50, 0x5C))


def begins_a_stream(file: ShardFile, codec: Codec, length: int) -> bool:
    """Whether *file* may be another streamer's: it begins as a stream of *codec*, not as ours."""
    head = file.read_at(0, min(length, _HEAD_BYTES))
    if HEADER_MAGIC in head[:128]:
        return False
    match codec.name:
        case "lz4":
            return head.startswith((_LZ4_MAGIC, *_OTHERS_SKIPPABLE))
        case "zstd":
            return head.startswith((_ZSTD_MAGIC, *_OTHERS_SKIPPABLE))
        case "gzip":
            return head.startswith(_GZIP_MAGIC) and head[3:4] != _GZIP_OURS
        case "zlib":
            return head[:1] == b"\x78" and int.from_bytes(head[:2], "big") % 31 == 0
    marker_len = int.from_bytes(head[:4], "little")
    if not 0 < marker_len <= min(MAX_MARKER_LEN, len(head) - 4):
        return False
    try:
        marker = decode(head[4 : 4 + marker_len])
    except CorruptShard:
        return False
    return marker.filename != BOOKKEEPING and marker.hidden is None


class Decoded:
    """What the shard *file* of *length* bytes decodes to, from its beginning on."""

    def __init__(self, file: ShardFile, codec: Codec, length: int) -> None:
        self._what = codec.name
        stored = io.BufferedReader(_Stored(file, length), _READ_BYTES)
        decoded = _DECODERS[codec.name](stored)
        self._decoded = stored if decoded is None else io.BufferedReader(decoded, _READ_BYTES)

    def take(self, length: int) -> bytes:
        """The next *length* bytes, fewer at the end. Raises: CorruptShard, StoreError."""
        try:
            return self._decoded.read(length)
        except (zstandard.ZstdError, RuntimeError, EOFError, zlib.error, ValueError) as exc:
            raise CorruptShard(f"{self._what} cannot decode the shard: {exc}") from exc


class Encoder(Protocol):
    """Compresses one stream, bit by bit."""

    def compress(self, data: Bytes, /) -> bytes: ...

    def flush(self) -> bytes:
        """What ends it."""


def encoder(codec: Codec) -> Encoder:
    """One stream of *codec*, of any length, with the checksum that its standard tool adds."""
    match codec.name:
        case "lz4":
            return _Lz4Encoder(codec.level)
        case "zstd":
            return zstandard.ZstdCompressor(level=codec.level, write_checksum=True).compressobj()
        case "gzip":
            return zlib.compressobj(codec.level, wbits=_GZIP_WBITS)
        case "zlib":
            return zlib.compressobj(codec.level, wbits=_ZLIB_WBITS)
    return _Plain()


class _Plain:
    def compress(self, data: Bytes) -> bytes:
        return bytes(data)

    def flush(self) -> bytes:
        return b""


class _Lz4Encoder:
    def __init__(self, level: int) -> None:
        self._compressor = lz4.frame.LZ4FrameCompressor(
            compression_level=level,
            block_size=lz4.frame.BLOCKSIZE_MAX256KB,
            block_linked=False,
            content_checksum=True,
        )
        self._head = self._compressor.begin()

    def compress(self, data: Bytes) -> bytes:
        head, self._head = self._head, b""
        return bytes(head + self._compressor.compress(data))

    def flush(self) -> bytes:
        return bytes(self._head + self._compressor.flush())


class _Raw(io.RawIOBase):
    def readable(self) -> bool:
        return True


class _Stored(_Raw):
    """The bytes of a shard, in order."""

    def __init__(self, file: ShardFile, length: int) -> None:
        self._file, self._length, self._at = file, length, 0

    def readinto(self, buffer: WriteableBuffer) -> int:
        view = memoryview(buffer)
        data = self._file.read_at(self._at, min(len(view), self._length - self._at))
        view[: len(data)] = data
        self._at += len(data)
        return len(data)


class _Zstd(_Raw):
    def __init__(self, stored: io.BufferedReader) -> None:
        decompressor = zstandard.ZstdDecompressor(max_window_size=_MAX_WINDOW)
        self._reader = decompressor.stream_reader(
            stored, read_size=_READ_BYTES, read_across_frames=True
        )

    def readinto(self, buffer: WriteableBuffer) -> int:
        return self._reader.readinto(buffer)


class _Decompressor(Protocol):
    """Of one frame; the standard library's are like that, but for zlib's."""

    @property
    def eof(self) -> bool: ...

    @property
    def unused_data(self) -> bytes | None: ...

    def decompress(self, data: bytes, max_length: int) -> bytes: ...


class _Inflater:
    def __init__(self, wbits: int) -> None:
        self._inflater = zlib.decompressobj(wbits)

    @property
    def eof(self) -> bool:
        return self._inflater.eof

    @property
    def unused_data(self) -> bytes:
        return self._inflater.unused_data

    def decompress(self, data: bytes, max_length: int) -> bytes:
        return self._inflater.decompress(self._inflater.unconsumed_tail + data, max_length)


class _Frames(_Raw):
    """Frames one after the other, each by a new decompressor."""

    def __init__(self, stored: io.BufferedReader, begin: Callable[[], _Decompressor]) -> None:
        self._stored, self._begin = stored, begin
        self._frame: _Decompressor | None = None
        self._input = b""

    def readinto(self, buffer: WriteableBuffer) -> int:
        view = memoryview(buffer)
        while True:
            if self._frame is None:
                self._input = self._input or self._stored.read1()
                if not self._input:
                    return 0
                self._frame = self._begin()
            data, self._input = self._input, b""
            out = self._frame.decompress(data, len(view))
            if self._frame.eof:
                self._input = self._frame.unused_data or b""
                self._frame = None
            elif not out:
                self._input = self._stored.read1()
                if not self._input:
                    raise EOFError("it is cut short")
            if out:
                view[: len(out)] = out
                return len(out)


def _lz4(stored: io.BufferedReader) -> _Raw:
    return _Frames(stored, lz4.frame.LZ4FrameDecompressor)


_DECODERS: Final[dict[str, Callable[[Any], _Raw | None]]] = {
    "none": lambda _: None,
    "lz4": _lz4,
    "zstd": _Zstd,
    "gzip": lambda stored: _Frames(stored, lambda: _Inflater(_GZIP_WBITS)),
    "zlib": lambda stored: _Frames(stored, lambda: _Inflater(_ZLIB_WBITS)),
}
