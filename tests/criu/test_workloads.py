"""Each workload survives a dump and a restore through a plain directory.

What then fails on a mount is the mount's.
"""

import os
import socket
from pathlib import Path
from typing import Any

import pytest
import trio
from rig import Rig
from workloads import Workload

from cedanafs.criu.binary import version
from cedanafs.criu.options import DumpOptions
from cedanafs.errors import CriuError


def through_dump_and_restore(rig: Rig, work: Workload) -> tuple[dict[str, Any], dict[str, Any]]:
    """What *work* says of itself before a dump that kills it, and after its restore."""
    before = work.ask()
    pids = work.pids()
    shape = work.fingerprint()
    rig.dump(DumpOptions(work.pid))
    work.wait_gone()
    assert rig.restore().pid == work.pid
    work.wait_ticking()
    assert work.pids() == pids
    assert work.fingerprint()["SigIgn"] == shape["SigIgn"]
    assert work.fingerprint()["fds"] == shape["fds"]
    after = work.ask()
    assert after["counter"] > before["counter"]
    return before, after


@pytest.mark.parametrize("churn_mib", [0, 2])
def test_memory_is_what_it_was(rig: Rig, tmp_path: Path, churn_mib: int) -> None:
    with Workload("memory", tmp_path / "state", size_mib=8, churn_mib=churn_mib) as work:
        before, after = through_dump_and_restore(rig, work)
        assert (before["digest"] == after["digest"]) == (churn_mib == 0)
        assert after["torn_blocks"] == 0


def test_tree_goes_on_passing_its_token_round(rig: Rig, tmp_path: Path) -> None:
    with Workload("tree", tmp_path / "state") as work:
        before, after = through_dump_and_restore(rig, work)
        assert after["pids"] == before["pids"]
        assert len(set(after["rounds"])) == 1
        assert after["rounds"] > before["rounds"]


def test_all_threads_go_on(rig: Rig, tmp_path: Path) -> None:
    with Workload("threads", tmp_path / "state") as work:
        before, after = through_dump_and_restore(rig, work)
        pairs = zip(before["counters"], after["counters"], strict=True)
        assert all(earlier < later for earlier, later in pairs)


def test_shared_memory_is_still_shared(rig: Rig, tmp_path: Path) -> None:
    with Workload("shm", tmp_path / "state", size_mib=8) as work:
        before, after = through_dump_and_restore(rig, work)
        for digest in ("digest", "memfd_digest"):
            assert after[digest] == before[digest]
        work.wait_ticking()
        later = work.ask()
        for count in ("child_ticks", "echoed"):
            assert before[count] < after[count] < later[count]


def test_open_file_is_read_on_from_where_it_was(rig: Rig, tmp_path: Path) -> None:
    with Workload("openfile", tmp_path / "state") as work:
        before, after = through_dump_and_restore(rig, work)
        assert (before["offset"], after["offset"]) == (0, 100)
        assert after["text"] == (tmp_path / "state" / "data").read_text()[100:200]


def test_listening_socket_takes_connections(rig: Rig, tmp_path: Path) -> None:
    with Workload("tcplisten", tmp_path / "state") as work:
        if kernel() >= (6, 16) and trio.run(version, rig.criu_binary) < (4, 2, 0):
            with pytest.raises(CriuError, match=r"CRIU before 4\.2 cannot dump TCP"):
                rig.dump(DumpOptions(work.pid))
            work.wait_ticking()
            return
        before, after = through_dump_and_restore(rig, work)
        assert after["port"] == before["port"]
        with socket.create_connection(("127.0.0.1", after["port"]), timeout=30) as connection:
            connection.sendall(b"still there?")
            assert connection.recv(100) == b"still there?"


def kernel() -> tuple[int, ...]:
    """The running kernel's version, as far as it matters."""
    return tuple(int(number) for number in os.uname().release.split(".")[:2])


def test_a_workload_that_is_gone_says_so(tmp_path: Path) -> None:
    with Workload("threads", tmp_path / "state") as work:
        work.kill()
        assert not work.alive()
        with pytest.raises(TimeoutError, match="ended while we waited for a tick"):
            work.wait_ticking(timeout_s=5)
