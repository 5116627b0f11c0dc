"""A store that takes 20 ms for each read: many at once, nothing twice."""

from __future__ import annotations

import os
import random
from pathlib import Path

from fault import Fault
from faulty import FaultyStore
from host import Host, StartWorkload
from workloads import Workload

MIB = 1 << 20
SLOW = Fault("read", delay_s=0.02)


def images(host: Host, faulty: FaultyStore, shards: int) -> tuple[Path, bytes]:
    """A checkpoint `x` in the store with 96 MiB of a third each of noise, text and one byte."""
    noise = random.Random(0)
    text = b"".join(b"line %d of it\n" % n for n in range(1 << 16))[:MIB]
    content = b"".join(noise.randbytes(MIB) + text + bytes([n]) * MIB for n in range(32))
    with host.mounted(faulty.path, "--stream", shards) as mnt:
        (mnt / "x").mkdir()
        (mnt / "x/pages-1.img").write_bytes(content)
    return faulty.backing / "x", content


def stored_bytes(checkpoint: Path) -> int:
    return sum(path.stat().st_size for path in checkpoint.iterdir())


def test_many_reads_at_once_and_nothing_twice(host: Host, faulty: FaultyStore) -> None:
    checkpoint, content = images(host, faulty, shards=4)
    faulty.fail(SLOW)
    with host.mounted(faulty.path, "--read-only") as mnt:
        opened = (mnt / "x/pages-1.img").stat()
        before = faulty.seen()
        with (mnt / "x/pages-1.img").open("rb") as image:
            parts = [image.read(MIB) for _ in range(opened.st_size // MIB)]
        after = faulty.seen()
    assert b"".join(parts) == content
    assert after.at_once["read"] > 8, "threads were as many as shards, or two a shard"
    assert after.lengths["read"] - before.lengths["read"] <= stored_bytes(checkpoint)
    # A frame of noise is two requests of the kernel, 1 MiB and the rest of it.
    assert after.operations["read"] - before.operations["read"] < 32 * 4


def test_frames_of_one_shard_are_read_together(host: Host, faulty: FaultyStore) -> None:
    checkpoint, content = images(host, faulty, shards=1)
    faulty.fail(SLOW)
    with host.mounted(faulty.path, "--read-only", "--memory-limit", "512M") as mnt:
        (mnt / "x/pages-1.img").stat()
        before = faulty.seen()
        assert (mnt / "x/pages-1.img").read_bytes() == content
        after = faulty.seen()
    assert after.lengths["read"] - before.lengths["read"] <= stored_bytes(checkpoint)
    # 32 of noise are two each; most of what lies between goes with its neighbour.
    assert after.operations["read"] - before.operations["read"] < 32 * 2 + 48


def test_pages_here_and_there_do_not_stop_the_stream(host: Host, faulty: FaultyStore) -> None:
    """As CRIU's lazy-pages reads: the whole in order, and what tasks wait for in between."""
    _, content = images(host, faulty, shards=4)
    faulty.fail(SLOW)
    elsewhere = random.Random(1)
    with host.mounted(faulty.path, "--read-only") as mnt:
        fd = os.open(mnt / "x/pages-1.img", os.O_RDONLY)
        try:
            for offset in range(0, len(content), MIB):
                assert os.pread(fd, MIB, offset) == content[offset : offset + MIB]
                if offset % (4 * MIB) == 0:
                    page = elsewhere.randrange(len(content) // 4096) * 4096
                    assert os.pread(fd, 4096, page) == content[page : page + 4096]
        finally:
            os.close(fd)
        assert faulty.seen().at_once["read"] > 8


def test_a_second_restore_reads_from_the_cache(
    host: Host, faulty: FaultyStore, start: StartWorkload
) -> None:
    work: Workload = start("memory", size_mib=32)
    digest = work.ask()["digest"]
    options = ("--cache-dir", host.base / "cache", "--cache-size", "1G")
    dumped = host.ok("dump", "process", work.pid, "--dir", faulty.path).last_line
    work.wait_gone()
    read = []
    for _ in range(2):
        before = faulty.seen().lengths.get("read", 0)
        host.ok("restore", "process", "--path", dumped, *options)
        read.append(faulty.seen().lengths["read"] - before)
        assert work.ask()["digest"] == digest
        work.kill()
        work.wait_gone()
    first, second = read
    assert first > stored_bytes(faulty.backing / Path(dumped).name) // 2
    assert second < first // 8, "beside the index, which is read anew, a read or two"
    with host.mounted(faulty.path, "--read-only", *options) as mnt:
        before = faulty.seen().lengths["read"]
        host.stock("cp", "-r", mnt / Path(dumped).name, host.base / "out")
        assert faulty.seen().lengths["read"] - before < first // 8


def test_restore(host: Host, faulty: FaultyStore, start: StartWorkload) -> None:
    work: Workload = start("memory", size_mib=64)
    digest = work.ask()["digest"]
    dumped = host.ok("dump", "process", work.pid, "--dir", faulty.path).last_line
    work.wait_gone()
    faulty.fail(SLOW)
    for lazy in ([], ["--lazy", "--wait", "--log-file", host.log]):
        before = faulty.seen()
        host.ok("restore", "process", "--path", dumped, *lazy)
        after = faulty.seen()
        assert after.operations["open"] - before.operations["open"] == 4, "shards are opened once"
        assert work.ask()["digest"] == digest
        if not lazy:
            work.kill()
            work.wait_gone()
