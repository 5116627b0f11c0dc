"""--progress-json: what a program hears of real dumps and restores."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from container import Container
from host import Host, StartWorkload

from cedanafs.errors import UsageError
from cedanafs.watch.events import EventLog


def heard(host: Host, *arguments: object, code: int = 0) -> tuple[list[dict[str, Any]], str]:
    """The events of cedanafs with *arguments*, and the last line of its stdout."""
    hear, tell = os.pipe()
    with open(hear, encoding="utf-8") as events:
        try:
            process = subprocess.Popen(
                [sys.executable, "-m", "cedanafs", *map(str, arguments), f"--progress-json={tell}"],
                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                pass_fds=[tell], env=host.environment(),
            )  # fmt: skip
        finally:
            os.close(tell)
        lines = events.read().splitlines()  # to its end: nothing that was started keeps it open
    said, complaints = process.communicate(timeout=120)
    assert process.returncode == code, complaints
    told = [json.loads(line) for line in lines]
    assert all({"event", "time", "elapsed_s"} <= set(each) for each in told)
    return told, said.strip()


def names(told: list[dict[str, Any]]) -> list[str]:
    return [each["event"] for each in told if each["event"] != "progress"]


@pytest.mark.parametrize("ends", [True, False], ids=["kill", "leave running"])
def test_dump_and_restore(host: Host, store: Path, start: StartWorkload, ends: bool) -> None:
    work = start("memory", size_mib=24)
    dump = ("dump", "process", work.pid, "--dir", store, "--name", "x", "--stream", 3)
    told, path = heard(host, *dump, "--kill" if ends else "--leave-running")
    wanted = ["start", "frozen", "thawed", "committed", "finished"]
    if ends:  # it dies when that is durable
        wanted[2:4] = "committed", "thawed"
    assert names(told) == wanted
    by = {each["event"]: each for each in told}
    assert by["start"]["pid"] == work.pid
    assert by["start"]["checkpoint"] == by["committed"]["checkpoint"] == path
    assert by["thawed"]["alive"] is not ends
    assert by["thawed"]["frozen_s"] > 0
    assert by["thawed"]["memory_bytes"] >= 24 << 20
    finished = by["finished"]
    assert finished["done_bytes"] >= 24 << 20
    assert len(finished["shards"]) == 3
    # A seal follows, when nothing is counted any more.
    sizes = [(store / f"x/img-{k}.zst").stat().st_size for k in range(3)]
    for shard, size in zip(finished["shards"], sizes, strict=True):
        assert 0 < shard["size"] <= size
        assert shard["transfer_duration_millis"] >= 0
    assert any(each["event"] == "progress" for each in told)

    work.kill()
    work.wait_gone()
    told, pid = heard(host, "restore", "process", "--path", path)
    assert names(told) == ["start", "restored", "finished"]
    assert told[-1]["pid"] == int(pid) == work.pid
    assert sum(shard["size"] for shard in told[-1]["shards"]) > 0
    work.wait_ticking()


def test_into_a_mount_that_another_serves(host: Host, store: Path, start: StartWorkload) -> None:
    work = start("memory", size_mib=24)
    with host.mounted(store, "--stream", 2) as mnt:
        told, _ = heard(host, "dump", "process", work.pid, "--dir", mnt, "--name", "x")
        assert names(told)[-1] == "finished"
        assert told[-1]["done_bytes"] >= 24 << 20
        assert len(told[-1]["shards"]) == 2


def test_what_fails(host: Host, store: Path, start: StartWorkload) -> None:
    work = start("threads")
    dump = ("dump", "process", work.pid, "--dir", store)
    told, _ = heard(host, *dump, "--parent", "none", code=2)
    assert names(told) == ["start", "failed"]
    assert told[-1] | {"kind": "UsageError", "exit_code": 2} == told[-1]
    assert "there is none" in told[-1]["error"]
    work.wait_ticking()
    host.refused(2, *dump, "--progress-json", 99, match="no such descriptor is open here")


def test_a_container(host: Host, store: Path, criu_binary: str) -> None:
    with Container(host, criu_binary, namespaces=["network"]) as container:
        told, path = heard(host, "dump", "runc", container.id, "--dir", store, "--name", "a")
        assert names(told) == ["start", "frozen", "committed", "thawed", "finished"]
        bundle = ("--bundle", container.bundle)
        told, _ = heard(host, "restore", "runc", container.id, "--path", path, *bundle)
        assert names(told) == ["start", "restored", "finished"]
        container.wait_counting()


def test_nobody_reads() -> None:
    hear, tell = os.pipe()
    events = EventLog(tell)
    try:
        for _ in range(100):  # more than a pipe holds
            events.tell("progress", shards=[0] * 1000)
        os.close(hear)
        events.close()
        assert not any(worker.is_alive() for worker in events._writer._threads)
        with pytest.raises(UsageError, match="for reading only"), open("/dev/null") as null:
            EventLog(null.fileno())
    finally:
        os.close(tell)
