"""Memory stays bounded while the store takes nothing."""

from __future__ import annotations

import os
import subprocess
import time

import psutil
from fault import Fault
from faulty import FaultyStore
from host import Host, poll

MIB = 1 << 20
LIMIT_MIB = 64


def test_a_store_that_hangs_takes_no_more_memory_than_allowed(
    host: Host, faulty: FaultyStore
) -> None:
    source = host.base / "source"
    source.write_bytes(os.urandom(256 * MIB))
    with host.mounted(
        faulty.path, "--stream", 2, "--compression", "none", "--memory-limit", f"{LIMIT_MIB}M"
    ) as mnt:
        (server,) = map(psutil.Process, host.servers(mnt))
        before = server.memory_info().rss
        faulty.fail(Fault("write", hang=True, where="img-"))
        with subprocess.Popen(["cp", source, mnt / "pages-1.img"]) as writer:
            try:
                poll(lambda: faulty.seen().hanging == 2, "a write of each shard that hangs")
                poll(lambda: is_waiting(psutil.Process(writer.pid)), "back-pressure")
                assert server.memory_info().rss - before < LIMIT_MIB * MIB
                faulty.heal()
                assert writer.wait(60) == 0
            finally:
                faulty.heal()
                writer.kill()
        assert server.memory_info().rss - before < LIMIT_MIB * MIB
    host.ok("verify", faulty.path)
    host.ok("extract", faulty.path, host.base / "out")
    host.stock("cmp", source, host.base / "out/pages-1.img")


def is_waiting(writer: psutil.Process) -> bool:
    written = writer.io_counters().write_chars
    time.sleep(0.5)
    return bool(writer.io_counters().write_chars == written)
