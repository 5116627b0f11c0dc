"""Processes of every kind through four shards, and dumps that leave them running."""

import json
import os
import socket
import time
from pathlib import Path
from typing import Any

import pytest
import trio
from host import Host, StartWorkload, poll
from workloads import Workload

from cedanafs.criu.binary import version


def through_dump_and_restore(
    host: Host, store: Path, work: Workload
) -> tuple[dict[str, Any], dict[str, Any]]:
    """What *work* says of itself before a dump that kills it, and after its restore."""
    before = work.ask()
    pids, shape = work.pids(), work.fingerprint()
    checkpoint = host.ok("dump", "process", work.pid, "--dir", store).last_line
    work.wait_gone()
    host.ok("restore", "process", "--path", checkpoint)
    work.wait_ticking()
    assert work.pids() == pids
    assert work.fingerprint()["fds"] == shape["fds"]
    after = work.ask()
    assert after["counter"] > before["counter"]
    return before, after


def test_large_memory(host: Host, store: Path, start: StartWorkload) -> None:
    work = start("memory", size_mib=300)
    before, after = through_dump_and_restore(host, store, work)
    assert after["digest"] == before["digest"]


def test_tree_with_pipes_and_a_socket_pair(host: Host, store: Path, start: StartWorkload) -> None:
    before, after = through_dump_and_restore(host, store, start("tree"))
    assert len(after["pids"]) == 5
    assert after["pids"] == before["pids"]
    assert len(set(after["rounds"])) == 1
    assert after["rounds"] > before["rounds"]


def test_threads(host: Host, store: Path, start: StartWorkload) -> None:
    before, after = through_dump_and_restore(host, store, start("threads"))
    assert after["threads"] == 9
    pairs = zip(before["counters"], after["counters"], strict=True)
    assert all(earlier < later for earlier, later in pairs)


def test_shared_memory_and_memfd(host: Host, store: Path, start: StartWorkload) -> None:
    work = start("shm", size_mib=8)
    before, after = through_dump_and_restore(host, store, work)
    for digest in ("digest", "memfd_digest"):
        assert after[digest] == before[digest]
    work.wait_ticking()
    later = work.ask()
    for count in ("child_ticks", "echoed"):
        assert before[count] < after[count] < later[count]


def test_open_file_with_an_offset(host: Host, store: Path, start: StartWorkload) -> None:
    work = start("openfile")
    before, after = through_dump_and_restore(host, store, work)
    assert (before["offset"], after["offset"]) == (0, 100)
    assert after["text"] == (work.state_dir / "data").read_text()[100:200]


def test_tcp_listener(host: Host, store: Path, start: StartWorkload, criu_binary: str) -> None:
    work = start("tcplisten")
    if kernel() >= (6, 16) and trio.run(version, criu_binary) < (4, 2, 0):
        # What no checkpointer can do here, this one says in a line, and leaves nothing.
        assert_dump_fails(host, store, work, match=r"CRIU before 4\.2 cannot dump TCP")
        assert list(store.iterdir()) == []
        return
    before, after = through_dump_and_restore(host, store, work)
    assert after["port"] == before["port"]
    with socket.create_connection(("127.0.0.1", after["port"]), timeout=30) as connection:
        connection.sendall(b"still there?")
        assert connection.recv(100) == b"still there?"


def test_file_lock_with_criu_own_option(host: Host, store: Path, start: StartWorkload) -> None:
    work = start("filelock")
    path = host.ok("dump", "process", work.pid, "--dir", store, "--file-locks").last_line
    work.wait_gone()
    host.ok("restore", "process", "--path", path, "--file-locks")
    work.wait_ticking()
    assert work.ask()["locked"]


def test_attached_restore_ends_with_the_status_of_the_process(
    host: Host, store: Path, start: StartWorkload
) -> None:
    work = start("threads")
    path = host.ok("dump", "process", work.pid, "--dir", store).last_line
    work.wait_gone()
    pid_file = host.base / "pid"
    with host.started(
        "restore", "process", "--path", path, "--attach", "--pid-file", pid_file
    ) as restore:
        poll(pid_file.exists, "the restored process")
        work.wait_ticking()
        assert pid_file.read_text() == f"{work.pid}\n"
        assert restore.poll() is None
        os.kill(work.pid, 15)
        out, err = restore.communicate(timeout=30)
        assert restore.returncode == 128 + 15, err
        assert out.splitlines()[-1] == str(work.pid)


def test_left_running_twice_under_two_names(host: Host, store: Path, start: StartWorkload) -> None:
    work = start("memory", size_mib=16)
    counters = []
    for name in ("first", "second"):
        counters.append(work.ask()["counter"])
        dump_left_running(host, store, work, name)
    told = work.ask()
    counters.append(told["counter"])
    for name, low, high in zip(("first", "second"), counters, counters[1:], strict=False):
        began = time.monotonic()
        counter = restored_counter(host, store / name, work, told["digest"])
        ticks_since = (time.monotonic() - began) / 0.02  # at most
        assert low < counter <= high + ticks_since


def test_left_running_twice_under_one_name(host: Host, store: Path, start: StartWorkload) -> None:
    work = start("memory", size_mib=16, churn_mib=1)
    dump_left_running(host, store, work, "x")
    first = host.ok("inspect", store / "x").stdout
    between = work.ask()
    dump_left_running(host, store, work, "x")
    assert host.ok("inspect", store / "x").stdout != first
    host.ok("verify", store / "x")
    assert restored_counter(host, store / "x", work) > between["counter"]


@pytest.mark.parametrize(
    ("kind", "options", "complaint"),
    [
        ("memory", ["--criu-opts", '{"freeze_cgroup": "/no/such"}'], "cgroup"),  # at once
        ("filelock", [], r"file locks are hold|--file-locks"),  # refused when all is written
    ],
)
def test_failed_dump_leaves_the_earlier_one_of_its_name(
    host: Host,
    store: Path,
    start: StartWorkload,
    kind: str,
    options: list[str],
    complaint: str,
) -> None:
    first = start("memory", size_mib=16)
    told = first.ask()
    host.ok("dump", "process", first.pid, "--dir", store, "--name", "x")
    first.wait_gone()
    before = inspected(host, store / "x")
    second = start(kind, size_mib=4)
    assert_dump_fails(host, store, second, "--name", "x", *options, match=complaint)
    assert inspected(host, store / "x") == before
    host.ok("verify", store / "x")
    host.ok("restore", "process", "--path", store / "x")
    first.wait_ticking()
    assert first.ask()["digest"] == told["digest"]


@pytest.mark.parametrize("name", ["x", None])
def test_failed_dump_leaves_nothing(
    host: Host, store: Path, start: StartWorkload, name: str | None
) -> None:
    named = ["--name", name] if name else []
    assert_dump_fails(host, store, start("filelock"), *named, match="lock")
    assert list(store.iterdir()) == []


def test_a_process_that_goes_on_writing_does_not_tear_its_image(
    host: Host, store: Path, start: StartWorkload
) -> None:
    work = start("memory", size_mib=96, churn_mib=8)
    dump_left_running(host, store, work, "x")
    work.kill()
    work.wait_gone()
    host.ok("restore", "process", "--path", store / "x")
    work.wait_ticking()
    assert work.ask()["torn_blocks"] == 0


def dump_left_running(host: Host, store: Path, work: Workload, name: str) -> None:
    """Dump *work* as *name* and see that it runs on as before."""
    shape = work.fingerprint()
    host.ok("dump", "process", work.pid, "--dir", store, "--name", name, "--leave-running")
    work.wait_ticking()
    assert {**work.fingerprint(), "State": None} == {**shape, "State": None}


def inspected(host: Host, checkpoint: Path) -> dict[str, Any]:
    """What `inspect` says, but for the times."""
    said = json.loads(host.ok("inspect", "--json", checkpoint).stdout)
    assert said["state"] == "complete"
    assert said["torn_bytes"] == 0
    del said["committed_ns"]
    return said


def restored_counter(
    host: Host, checkpoint: Path, work: Workload, digest: str | None = None
) -> int:
    """Kill *work*, restore it from *checkpoint*: how far it had counted then."""
    work.kill()
    work.wait_gone()
    host.ok("restore", "process", "--path", checkpoint)
    work.wait_ticking()
    told = work.ask()
    assert told["torn_blocks"] == 0
    assert digest in (told["digest"], None)
    counter: int = told["counter"]
    return counter


def assert_dump_fails(
    host: Host, store: Path, work: Workload, *options: object, match: str
) -> None:
    """A dump that CRIU refuses: exit code 5, its reason in a line, its log kept, *work* alive."""
    shape = work.fingerprint()
    line = host.refused(5, "dump", "process", work.pid, "--dir", store, *options, match=match)
    log = Path(line.rpartition("log: ")[2])
    assert "Error" in log.read_text()
    log.unlink()
    log.parent.rmdir()
    work.wait_ticking()
    assert {**work.fingerprint(), "State": None} == {**shape, "State": None}


def kernel() -> tuple[int, ...]:
    """The running kernel's version, as far as it matters."""
    return tuple(int(number) for number in os.uname().release.split(".")[:2])
