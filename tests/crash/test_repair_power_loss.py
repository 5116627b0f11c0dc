"""Power lost while a checkpoint is repaired: it can be repaired again, to the same."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest
from power_loss import Disk, Recording, lay_out, record
from test_power_loss import sampled
from writing import read_checkpoint, writing

from cedanafs.shard.audit import verify
from cedanafs.shard.repair import bring_back, diagnose

FIRST = {"a": b"some bytes" * 30, "b": b"more" * 50}
SECOND = {**FIRST, "c": b"later" * 40}


def a_flipped_bit(disk: Disk, name: str, back: int) -> None:
    content = bytearray(disk[name])
    content[-back] ^= 1
    disk[name] = bytes(content)


def footers_cut_off(disk: Disk) -> None:
    for name in list(disk)[1:]:
        disk[name] = disk[name][:-20]


@pytest.mark.parametrize("codec", ["none", "lz4", "zstd", "gzip", "zlib"])
@pytest.mark.parametrize(
    ("damage", "target"),
    [
        (footers_cut_off, SECOND),
        (lambda disk: a_flipped_bit(disk, min(disk), 30), SECOND),  # in a footer
        (lambda disk: a_flipped_bit(disk, max(disk), 200), FIRST),  # in an index
    ],
    ids=["footers cut off", "footer damaged", "index damaged"],
)
def test_a_repair_that_is_interrupted_is_done_again(
    tmp_path: Path, codec: str, damage: Callable[[Disk], None], target: dict[str, bytes]
) -> None:
    with writing(tmp_path, shards=3, codec=codec) as writer:
        for name, data in SECOND.items():
            if name not in FIRST:
                writer.commit()
            writer.create(name, data)
            writer.log.flush()
        writer.commit()
    disk = {path.name: path.read_bytes() for path in sorted(tmp_path.iterdir())}
    damage(disk)
    lay_out(disk, tmp_path)
    way = diagnose(tmp_path).way
    assert way is not None
    recording = Recording(disk)
    with pytest.MonkeyPatch.context() as patch:
        record(patch, recording)
        bring_back(tmp_path, way)
    assert read_checkpoint(tmp_path) == target
    count = 0
    for _, left in sampled(recording, random.Random(codec), 15):
        lay_out(left, tmp_path)
        if (again := diagnose(tmp_path).way) is not None:
            bring_back(tmp_path, again)
        assert read_checkpoint(tmp_path) == target
        assert verify(tmp_path).damages == ()
        count += 1
    print(count, "states")
