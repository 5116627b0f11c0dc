"""What is asked of a store, seen from below it: docs/stores.md lists exactly this."""

from __future__ import annotations

import re
from pathlib import Path

from faulty import FaultyStore
from host import Host, StartWorkload

READING = {"lookup", "getattr", "opendir", "readdir", "open", "read", "statfs", "flush"}
WRITING = READING | {"mkdir", "create", "write", "fsync", "fsyncdir"}
OTHERWISE = {"truncate", "rename", "unlink", "rmdir", "setattr"}


def test_a_dump_and_a_restore_ask_for_no_more_than_is_said(
    host: Host, faulty: FaultyStore, start: StartWorkload
) -> None:
    work = start("memory", size_mib=8)
    host.ok("dump", "process", work.pid, "--dir", faulty.path, "--name", "x")
    work.wait_gone()
    assert set(faulty.seen().operations) <= WRITING
    assert {"mkdir", "create", "write", "fsync", "fsyncdir"} <= set(faulty.seen().operations)
    wrote = {each: faulty.seen().operations[each] for each in WRITING - READING}
    host.ok("list", faulty.path)
    host.ok("verify", faulty.path / "x")
    host.ok("restore", "process", "--path", faulty.path / "x")
    work.wait_ticking()
    assert {each: faulty.seen().operations[each] for each in WRITING - READING} == wrote
    assert set(faulty.seen().operations) <= WRITING


def test_what_only_some_commands_ask_for(host: Host, faulty: FaultyStore) -> None:
    with host.mounted(faulty.path) as mnt:
        (mnt / "x").mkdir()
        (mnt / "x/inventory.img").write_bytes(b"1")
    with host.mounted(faulty.path) as mnt:
        (mnt / "x/inventory.img").write_bytes(b"2")  # behind a seal, which is cut off
        (mnt / "x/inventory.img").unlink()
        (mnt / "x").rename(mnt / "y")
        (mnt / "y").rmdir()
    assert {"truncate", "rename", "unlink", "rmdir"} <= set(faulty.seen().operations)
    assert set(faulty.seen().operations) <= WRITING | OTHERWISE


def test_the_page_says_so() -> None:
    page = Path(__file__).parents[2] / "docs/stores.md"
    table = page.read_text().partition("## What it asks of a directory")[2].partition("\n## ")[0]
    said = set(re.findall(r"`(\w+)`", table))
    for names in (WRITING - READING, OTHERWISE - {"setattr"}):
        for name in names - {"fsyncdir", "statfs"}:
            assert name in said, name
