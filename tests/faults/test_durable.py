"""No process dies before its checkpoint is safe, whoever drives CRIU."""

from __future__ import annotations

import errno
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from fault import Fault
from faulty import FaultyStore
from host import Done, Host, StartWorkload
from workloads import Workload

HOOK = Path(sys.executable).parent / "cedanafs-post-dump"

Barrier = tuple[Sequence[str], Sequence[str]]
"""Options of the mount, and of CRIU."""

barriers = pytest.mark.parametrize(
    "barrier",
    [(["--durable"], []), ([], ["--action-script", str(HOOK)])],
    ids=["durable", "hook"],
)


def criu_dump(host: Host, criu_binary: str, work: Workload, images: Path, *options: str) -> Done:
    images.mkdir(exist_ok=True)
    # The log elsewhere: into a mount that fails, it would fail too.
    return host.shell(criu_binary, "dump", "-D", images, "-W", host.base, "-t", work.pid, *options)


def kill_server(host: Host, mountpoint: Path) -> None:
    """As a power cut would, but for what the page cache keeps."""
    for server in host.servers(mountpoint):
        os.kill(server, signal.SIGKILL)
    host.ok("umount", mountpoint)


@barriers
def test_when_criu_has_ended_the_checkpoint_is_there(
    host: Host, store: Path, start: StartWorkload, criu_binary: str, barrier: Barrier
) -> None:
    work = start("memory", size_mib=24)
    before = work.ask()
    with host.mounted(store, *barrier[0]) as mnt:
        assert criu_dump(host, criu_binary, work, mnt / "x", *barrier[1]).code == 0
        kill_server(host, mnt)
    work.wait_gone()
    host.ok("verify", store / "x")
    host.ok("restore", "process", "--path", store / "x")
    work.wait_ticking()
    assert work.ask()["digest"] == before["digest"]


def test_without_either_it_is_not(
    host: Host, store: Path, start: StartWorkload, criu_binary: str
) -> None:
    """What the barriers are for: CRIU never syncs, and does not look at close's errors."""
    work = start("memory", size_mib=24)
    with host.mounted(store) as mnt:
        assert criu_dump(host, criu_binary, work, mnt / "x").code == 0
        kill_server(host, mnt)
    host.refused(3, "restore", "process", "--path", store / "x", match="no commit ever completed")


@barriers
@pytest.mark.parametrize(
    "fault",
    [
        Fault("fsync", error=errno.EIO),
        Fault("fsync", error=errno.EIO, after=2),  # the index is durable, the footers are not
        Fault("fsync", error=errno.EDQUOT, where="img-1"),
        Fault("write", error=errno.ENOSPC, after_bytes=20_000_000),
    ],
    ids=lambda fault: f"{fault.operation}-{errno.errorcode[fault.error]}-{fault.after}",
)
def test_a_store_that_fails_at_the_end_fails_the_dump(
    host: Host,
    faulty: FaultyStore,
    start: StartWorkload,
    criu_binary: str,
    barrier: Barrier,
    fault: Fault,
) -> None:
    work = start("memory", size_mib=24)
    before = work.ask()
    with host.mounted(faulty.path, "--stream", 2, "--compression", "none", *barrier[0]) as mnt:
        faulty.fail(fault)
        done = criu_dump(host, criu_binary, work, mnt / "x", *barrier[1])
        assert done.code != 0
        assert faulty.seen().met
        work.wait_ticking()
        assert work.ask()["digest"] == before["digest"]
        faulty.heal()
        host.refused(4, "umount", mnt, match="not durable")
        # It is failed for good, but another is not, and this one may be begun anew.
        assert criu_dump(host, criu_binary, work, mnt / "y", *barrier[1]).code == 0
        work.wait_gone()
        kill_server(host, mnt)
    host.ok("restore", "process", "--path", faulty.path / "y")
    work.wait_ticking()


def test_a_dump_that_fails_after_its_inventory_is_incomplete(
    host: Host, faulty: FaultyStore, start: StartWorkload, criu_binary: str
) -> None:
    """With --durable inventory.img is committed before CRIU has flushed files.img and others."""
    work = start("memory", size_mib=4)
    with host.mounted(faulty.path, "--stream", 2, "--durable") as mnt:
        faulty.fail(Fault("fsync", error=errno.EIO, after=4))  # all of the first commit's
        assert criu_dump(host, criu_binary, work, mnt / "x").code != 0
        work.wait_ticking()
        faulty.heal()
        kill_server(host, mnt)
    cut_short = r"cut short while \S+\.img.* was being written"
    host.refused(3, "restore", "process", "--path", faulty.path / "x", match=cut_short)
    assert '"incomplete"' in host.ok("list", "--json", faulty.path).stdout


@barriers
def test_a_full_disk_fails_the_dump(
    host: Host, start: StartWorkload, criu_binary: str, barrier: Barrier
) -> None:
    work = start("memory", size_mib=24)
    before = work.ask()
    with (
        host.small_disk("disk", 16) as disk,
        host.mounted(disk, "--compression", "none", *barrier[0]) as mnt,
    ):
        assert criu_dump(host, criu_binary, work, mnt / "x", *barrier[1]).code != 0
        work.wait_ticking()
        assert work.ask()["digest"] == before["digest"]
        host.stock("rm", "-r", mnt / "x")


@barriers
def test_a_second_dump_that_fails_leaves_the_first(
    host: Host, faulty: FaultyStore, start: StartWorkload, criu_binary: str, barrier: Barrier
) -> None:
    work = start("memory", size_mib=24)
    before = work.ask()
    options = ["--leave-running", *barrier[1]]
    with host.mounted(faulty.path, "--stream", 2, *barrier[0]) as mnt:
        assert criu_dump(host, criu_binary, work, mnt / "x", *options).code == 0
        faulty.fail(Fault("fsync", error=errno.EIO))
        assert criu_dump(host, criu_binary, work, mnt / "x", *barrier[1]).code != 0
        work.wait_ticking()
        faulty.heal()
        kill_server(host, mnt)
    host.ok("verify", faulty.path / "x")
    work.kill()
    host.ok("restore", "process", "--path", faulty.path / "x")
    work.wait_ticking()
    assert work.ask()["digest"] == before["digest"]
