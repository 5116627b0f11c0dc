"""Real checkpoints, changed here and there: by accident, or with every checksum made right."""

from __future__ import annotations

import shutil
from pathlib import Path
from random import Random
from typing import Final

from forging import Forgery

from cedanafs.errors import CorruptShard
from cedanafs.shard.opening import open_checkpoint
from cedanafs.shard.reader import load_frame
from cedanafs.shard.records import parse

CORPUS: Final = Path(__file__).parent / "corpus"
"""The images of a real `sleep` that CRIU 4.1.1 dumped, without most of its pages, in each codec:
two commits on two shards, sealed."""

SAMPLES: Final = ("none", "lz4", "zstd", "gzip", "zlib")

_NUMBERS: Final = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 1 << 24, 0x7FFFFFFF, 0xFFFFFFFF)


def damaged(random: Random, sample: str, directory: Path) -> None:
    """The sample in *directory*, with one to four changes to its shards' bytes."""
    shutil.copytree(CORPUS / sample, directory)
    paths = sorted(directory.iterdir())
    for _ in range(random.randint(1, 4)):
        path = random.choice(paths)
        path.write_bytes(changed(random, path.read_bytes()))


def forged(random: Random, sample: str, directory: Path) -> None:
    """The sample in *directory*, with records or index changed and nothing that tells of it."""
    opened = open_checkpoint(CORPUS / sample)
    try:
        forgery = Forgery(directory, shards=len(opened.files), codec=str(opened.codec))
        for k, file in enumerate(opened.files):
            for frame in opened.frames[k]:
                raw = load_frame(file, opened.codec, frame)
                if random.randrange(4) == 0:
                    raw = changed(random, raw)
                stored = b"".join(forgery.codec.compress([raw]))
                if random.randrange(20) == 0:
                    stored = changed(random, stored)
                markers, count = _markers(raw)
                forgery.raw_frame(k, stored, len(raw), count, markers)
        forgery.seq = opened.next_seq
    finally:
        opened.close()
    times = random.choice((0, 0, 1, 3))

    def alter(blob: bytes) -> bytes:
        for _ in range(times):
            blob = changed(random, blob)
        return blob

    forgery.commit(sealed=random.random() < 0.5, alter=alter)


def changed(random: Random, data: bytes) -> bytes:
    """One change to *data*."""
    at = random.randrange(len(data) + 1)
    end = min(at + random.choice((1, 2, 4, 8, 40, 500)), len(data))
    piece = data[at:end]
    match random.randrange(7):
        case 0:
            piece = bytes(byte ^ 1 << random.randrange(8) for byte in piece[:1]) + piece[1:]
        case 1:
            piece = random.randbytes(len(piece))
        case 2:
            piece = random.choice(_NUMBERS).to_bytes(4, "little")
        case 3:
            piece = b""
        case 4:
            piece = piece + piece
        case 5:
            other = random.randrange(len(data) + 1)
            piece = data[other : other + len(piece)]
        case _:
            end = len(data)
            piece = b""
    return data[:at] + piece + data[end:]


def _markers(raw: bytes) -> tuple[bytes, int]:
    """What an index says of a frame with these records, as far as they can be read."""
    markers = bytearray()
    count = start = 0
    try:
        for marker, end in parse(raw, payloads=True):
            markers += raw[start:end]
            start = end + marker.payload_len
            count += 1
    except CorruptShard:
        pass
    return bytes(markers), count
