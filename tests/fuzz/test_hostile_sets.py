"""Sets of other streamers that were damaged, cut, or made to do harm."""

from __future__ import annotations

import gzip
import shutil
import zlib
from pathlib import Path
from random import Random

import lz4.frame
import pytest
import zstandard
from exercising import exercise
from limits import run_limited
from mutating import changed

from cedanafs.shard.opening import open_checkpoint

DATA = Path(__file__).parents[1] / "data/foreign"
SETS = sorted(path.name for path in DATA.iterdir() if path.is_dir())
DECODE = {
    ".lz4": lz4.frame.decompress,
    ".zst": lambda data: zstandard.ZstdDecompressor().decompressobj().decompress(data),
    ".gz": gzip.decompress,
    ".zlib": zlib.decompress,
}
ENCODE = {
    ".lz4": lz4.frame.compress,
    ".zst": zstandard.ZstdCompressor().compress,
    ".gz": gzip.compress,
    ".zlib": zlib.compress,
}


@pytest.mark.parametrize("seed", range(40))
def test_a_damaged_set_is_refused_or_harmless(seed: int, tmp_path: Path) -> None:
    """Bytes of the shards changed, as they are stored."""
    random = Random(seed)
    made = Path(shutil.copytree(DATA / random.choice(SETS), tmp_path / "set"))
    paths = sorted(made.iterdir())
    for _ in range(random.randint(1, 3)):
        path = random.choice(paths)
        path.write_bytes(changed(random, path.read_bytes()))
    exercise(made, tmp_path)


@pytest.mark.parametrize("seed", range(80))
def test_records_that_no_streamer_writes_are_refused_or_harmless(seed: int, tmp_path: Path) -> None:
    """Bytes of the records changed, and compressed again, so that no checksum tells."""
    random = Random(seed)
    made = Path(shutil.copytree(DATA / random.choice(SETS), tmp_path / "set"))
    for path in sorted(made.iterdir()):
        if random.randrange(2):
            stream = DECODE[path.suffix](path.read_bytes())
            at = random.choice((0, 0, random.randrange(len(stream))))
            some = changed(random, stream[at : at + 200])
            path.write_bytes(ENCODE[path.suffix](stream[:at] + some + stream[at + 200 :]))
    exercise(made, tmp_path)


@pytest.mark.parametrize("extension", [".zst", ".lz4", ".gz"])
def test_a_bomb_takes_no_memory(extension: str, tmp_path: Path) -> None:
    """512 MiB of zeros in little more than nothing: opened, and the last of them read."""
    chunk = bytes(258_048)
    made = tmp_path / "set"
    made.mkdir()
    compressor = {
        ".zst": lambda: zstandard.ZstdCompressor(level=9).compressobj(),
        ".gz": lambda: zlib.compressobj(1, wbits=31),
        ".lz4": _Lz4,
    }[extension]()
    count = (512 << 20) // len(chunk)
    with (made / f"img-0{extension}").open("wb") as shard:
        shard.write(compressor.compress(_record(0, b"\x12\x05x.img")))
        for seq in range(1, count + 1):
            shard.write(compressor.compress(_record(seq, b"\x18\x80\xe0\x0f") + chunk))
        shard.write(compressor.compress(_record(count + 1, b"\x28\x01")))
        shard.write(compressor.flush())
    program = f"""
from pathlib import Path
from cedanafs.shard.copying import images_in
with images_in(Path({str(made)!r})) as images:
    (image,) = images
    print(image.size)
"""
    ran = run_limited(program, seconds=120, memory_mib=700)
    assert int(ran.output) == count * len(chunk)
    assert ran.peak_mib < 160


def test_a_flood_of_tiny_records_ends_soon(tmp_path: Path) -> None:
    made = tmp_path / "set"
    made.mkdir()
    count = 300_000
    stream = _record(0, b"\x12\x05x.img")
    stream += b"".join(_record(seq, b"\x18\x01") + b"z" for seq in range(1, count))
    (made / "img-0.gz").write_bytes(gzip.compress(stream + _record(count, b"\x28\x01")))
    opened = open_checkpoint(made)
    opened.close()
    assert opened.contents.images["x.img"].size == count - 1


class _Lz4:
    def __init__(self) -> None:
        self._frame = lz4.frame.LZ4FrameCompressor()
        self._head = self._frame.begin()

    def compress(self, data: bytes) -> bytes:
        head, self._head = self._head, b""
        return head + self._frame.compress(data)

    def flush(self) -> bytes:
        return self._frame.flush()


def _record(seq: int, body: bytes) -> bytes:
    number = b""
    while seq >= 0x80:
        number += bytes([seq & 0x7F | 0x80])
        seq >>= 7
    marker = b"\x08" + number + bytes([seq]) + body
    return len(marker).to_bytes(4, "little") + marker
