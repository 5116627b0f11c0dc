"""The sets of other streamers that lie in tests/data, and what is in them."""

from __future__ import annotations

import gzip
import hashlib
import subprocess
import zlib
from pathlib import Path
from typing import Final

DATA: Final = Path(__file__).parents[1] / "data/foreign"
SETS: Final = sorted(path.name for path in DATA.iterdir() if path.is_dir())
DIGESTS: Final = {
    name: digest
    for digest, name in (
        line.split() for line in (DATA / "SHA256SUMS").read_text().splitlines() if line
    )
}


def digests(files: dict[str, bytes]) -> dict[str, str]:
    return {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}


def digests_in(directory: Path) -> dict[str, str]:
    return digests({path.name: path.read_bytes() for path in directory.iterdir()})


def streams(directory: Path) -> list[bytes]:
    """What the standard tools, and for zlib the library, make of each shard."""
    return [_decoded(path) for path in sorted(directory.iterdir())]


def _decoded(path: Path) -> bytes:
    data = path.read_bytes()
    match path.suffix:
        case ".lz4":
            return _through("lz4", "-dc", data=data)
        case ".zst":
            return _through("zstd", "-dcq", data=data)
        case ".gz":
            return gzip.decompress(data)
        case ".zlib":
            return zlib.decompress(data)
    return data


def encoded(stream: bytes, extension: str) -> bytes:
    """*stream* as the standard tools write it."""
    match extension:
        case ".lz4":
            return _through("lz4", "-c", data=stream)
        case ".zst":
            return _through("zstd", "-cq", data=stream)
        case ".gz":
            return _through("gzip", "-c", data=stream)
        case ".zlib":
            return zlib.compress(stream)
    return stream


def make_set(directory: Path, shards: list[bytes], extension: str) -> Path:
    directory.mkdir()
    for k, stream in enumerate(shards):
        (directory / f"img-{k}{extension}").write_bytes(encoded(stream, extension))
    return directory


def record(
    seq: int,
    *,
    filename: str | None = None,
    data: bytes | None = None,
    file_eof: bool = False,
    image_eof: bool = False,
) -> bytes:
    """One record, written by hand."""
    marker = b"\x08" + _varint(seq) if seq else b""
    if filename is not None:
        marker += b"\x12" + _varint(len(filename.encode())) + filename.encode()
    if data is not None:
        marker += b"\x18" + _varint(len(data))
    marker += b"\x20\x01" if file_eof else b""
    marker += b"\x28\x01" if image_eof else b""
    return len(marker).to_bytes(4, "little") + marker + (data or b"")


def _varint(value: int) -> bytes:
    out = b""
    while value >= 0x80:
        out += bytes([value & 0x7F | 0x80])
        value >>= 7
    return out + bytes([value])


def _through(*command: str, data: bytes) -> bytes:
    return subprocess.run(command, input=data, capture_output=True, check=True).stdout
