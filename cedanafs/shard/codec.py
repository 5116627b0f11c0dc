"""Codecs: one frame's records to its stored bytes and back; where bookkeeping hides.  PURE.

Every codec stores a frame as a unit that its standard tool decompresses by itself, and hides
bookkeeping in a place that the tool skips. Source: docs/format.md#codecs.
"""

from __future__ import annotations

import struct
import threading
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final, TypeAlias

import lz4.frame
import zstandard

from cedanafs.errors import CorruptShard, UsageError, did_you_mean

Bytes: TypeAlias = bytes | memoryview

_SKIPPABLE: Final = struct.Struct("<II")
_SKIPPABLE_MAGIC: Final = 0x184D2A5C  # both zstd and LZ4 skip 0x184D2A50 to …5F

# An empty gzip member: no time, unknown system; FEXTRA with one subfield named "CF".
_GZIP_HEAD: Final = b"\x1f\x8b\x08\x04\0\0\0\0\0\xff"
_GZIP_EXTRA: Final = struct.Struct("<H2sH")
_GZIP_EMPTY: Final = b"\x03\0" + bytes(8)
_GZIP_WBITS, _ZLIB_WBITS = 31, 15


@dataclass(frozen=True, slots=True)
class Codec:
    """How the frames of a checkpoint are stored.

    `hide(blob)` is a unit that the standard tool decodes to nothing; *blob* begins
    `hide_head` bytes into it and `hide_tail` bytes follow it; at most `hide_max` bytes.
    Codec `none` has no such place: `hides` is False, and the record stream itself carries it.
    """

    name: str
    extension: str
    level: int
    levels: range
    _compress: Callable[[Sequence[Bytes], int], Sequence[Bytes]]
    _decompress: Callable[[bytes, int], bytes]
    hide: Callable[[bytes], bytes]
    hide_head: int
    hide_tail: int
    hide_max: int
    hides: bool = True

    def compress(self, pieces: Sequence[Bytes]) -> Sequence[Bytes]:
        """*pieces*, one after the other, as one unit; itself in pieces, too.

        Nothing is joined: copying 1 MiB holds the interpreter lock for as long as LZ4 needs for it.
        """
        return self._compress(pieces, self.level)

    def decompress(self, stored: bytes, raw_len: int) -> bytes:
        """The records of a frame whose decoded length must be *raw_len*.

        Never allocates much more than *raw_len*. Raises: CorruptShard.
        """
        try:
            raw = self._decompress(stored, raw_len)
        except (zstandard.ZstdError, RuntimeError, EOFError, zlib.error, ValueError) as exc:
            raise CorruptShard(f"{self.name} cannot decode the frame: {exc}") from exc
        if len(raw) != raw_len:
            raise CorruptShard(f"the frame decodes to {len(raw)} bytes, not {raw_len}")
        return raw

    def __str__(self) -> str:
        return f"{self.name}:{self.level}" if len(self.levels) > 1 else self.name


def _stored_compress(pieces: Sequence[Bytes], level: int) -> Sequence[Bytes]:
    return pieces


def _stored_decompress(stored: bytes, raw_len: int) -> bytes:
    return stored


class _Zstd(threading.local):
    """Contexts, whose tables are dear to make; a thread has its own of each."""

    def __init__(self) -> None:
        self.decompressor = zstandard.ZstdDecompressor()
        self._compressors: dict[int, zstandard.ZstdCompressor] = {}

    def compressor(self, level: int) -> zstandard.ZstdCompressor:
        if level not in self._compressors:
            self._compressors[level] = zstandard.ZstdCompressor(level=level)
        return self._compressors[level]


_zstd: Final = _Zstd()


def _zstd_compress(pieces: Sequence[Bytes], level: int) -> Sequence[Bytes]:
    compressor = _zstd.compressor(level).compressobj(size=sum(map(len, pieces)))
    return [*map(compressor.compress, pieces), compressor.flush()]


def _zstd_decompress(stored: bytes, raw_len: int) -> bytes:
    # The frame's own content size is hostile: it decides the allocation inside decompress().
    size = zstandard.frame_content_size(stored)
    if size != raw_len:
        raise ValueError(f"content size {size}, not {raw_len}")
    return _zstd.decompressor.decompress(stored, max_output_size=raw_len, allow_extra_data=False)


def _lz4_compress(pieces: Sequence[Bytes], level: int) -> Sequence[Bytes]:
    # Each piece is flushed, as a block of its own, so that LZ4 need not gather them first.
    compressor = lz4.frame.LZ4FrameCompressor(
        compression_level=level,
        block_size=lz4.frame.BLOCKSIZE_MAX1MB,  # larger, it is decoded elsewhere and copied
        block_linked=False,
        auto_flush=True,
    )
    begin = compressor.begin(source_size=sum(map(len, pieces)))
    return [begin, *map(compressor.compress, pieces), compressor.flush()]


def _lz4_decompress(stored: bytes, raw_len: int) -> bytes:
    size = lz4.frame.get_frame_info(stored)["content_size"]
    if size != raw_len:
        raise ValueError(f"content size {size}, not {raw_len}")
    # The content size may lie: lz4.frame.decompress() grows its buffer for as long as data comes.
    decompressor = lz4.frame.LZ4FrameDecompressor()
    raw = decompressor.decompress(stored, max_length=raw_len + 1)
    if not decompressor.eof or decompressor.unused_data:
        raise ValueError("the frame does not end where its bytes do")
    return bytes(raw)


def _deflate(wbits: int) -> Callable[[Sequence[Bytes], int], Sequence[Bytes]]:
    def compress(pieces: Sequence[Bytes], level: int) -> Sequence[Bytes]:
        deflater = zlib.compressobj(level, zlib.DEFLATED, wbits)
        return [*map(deflater.compress, pieces), deflater.flush()]

    return compress


def _inflate(wbits: int) -> Callable[[bytes, int], bytes]:
    def decompress(stored: bytes, raw_len: int) -> bytes:
        inflater = zlib.decompressobj(wbits)
        raw = inflater.decompress(stored, raw_len + 1)
        if not inflater.eof or inflater.unused_data:
            raise ValueError("the stream does not end where the frame does")
        return raw

    return decompress


def _hide_skippable(blob: bytes) -> bytes:
    return _SKIPPABLE.pack(_SKIPPABLE_MAGIC, len(blob)) + blob


def _hide_gzip(blob: bytes) -> bytes:
    extra = _GZIP_EXTRA.pack(len(blob) + 4, b"CF", len(blob))
    return _GZIP_HEAD + extra + blob + _GZIP_EMPTY


def _hide_bare(blob: bytes) -> bytes:
    return blob


_ANY_LENGTH: Final = (1 << 32) - 1
_GZIP_PIECE: Final = 60_000

_CODECS: Final[Mapping[str, Codec]] = {
    codec.name: codec
    for codec in (
        Codec(
            "none", "", 0, range(1), _stored_compress, _stored_decompress,
            _hide_bare, 0, 0, 8_192, hides=False,
        ),
        Codec(
            "lz4", ".lz4", 0, range(17), _lz4_compress, _lz4_decompress,
            _hide_skippable, _SKIPPABLE.size, 0, _ANY_LENGTH,
        ),
        Codec(
            "zstd", ".zst", 1, range(1, 20), _zstd_compress, _zstd_decompress,
            _hide_skippable, _SKIPPABLE.size, 0, _ANY_LENGTH,
        ),
        Codec(
            "gzip", ".gz", 1, range(10), _deflate(_GZIP_WBITS), _inflate(_GZIP_WBITS),
            _hide_gzip, len(_GZIP_HEAD) + _GZIP_EXTRA.size, len(_GZIP_EMPTY), _GZIP_PIECE,
        ),
        # zlib has no place to hide anything: its shards are framed by our headers alone.
        Codec(
            "zlib", ".zlib", 1, range(10), _deflate(_ZLIB_WBITS), _inflate(_ZLIB_WBITS),
            _hide_bare, 0, 0, _ANY_LENGTH,
        ),
    )
}  # fmt: skip

CODEC_NAMES: Final = ("none", "tar", "lz4", "zstd", "gzip", "zlib")
EXTENSIONS: Final[Mapping[str, str]] = {c.extension: c.name for c in _CODECS.values()}


def codec_of(text: str) -> Codec:
    """The codec that `NAME[:LEVEL]` means; `tar` means `none`, as in Cedana.

    Raises: UsageError.
    """
    name, _, level = text.strip().lower().partition(":")
    codec = _CODECS.get("none" if name == "tar" else name)
    if codec is None:
        near = did_you_mean(name, CODEC_NAMES)
        raise UsageError(
            f"compression {text!r} is not known; one of {', '.join(CODEC_NAMES)}{near}"
        )
    if not level:
        return codec
    try:
        chosen = int(level)
    except ValueError:
        chosen = -1
    if chosen not in codec.levels:
        low, high = codec.levels[0], codec.levels[-1]
        raise UsageError(f"compression {text!r}: {name} has levels {low} to {high}")
    return replace(codec, level=chosen)
