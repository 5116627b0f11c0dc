"""list and inspect of real dumps, against what /proc and the programs say themselves."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from container import Container
from host import Host, StartWorkload


def _inspected(host: Host, checkpoint: object) -> dict[str, Any]:
    said: dict[str, Any] = json.loads(host.ok("inspect", checkpoint, "--json").stdout)
    assert said["dump"]["problems"] == []
    return said


def test_a_tree_with_its_memory_and_files(host: Host, store: Path, start: StartWorkload) -> None:
    work = start("tree")
    commands = {
        pid: Path(f"/proc/{pid}/cmdline").read_text().rstrip("\0").split("\0")
        for pid in work.pids()
    }
    parents = {pid: int(Path(f"/proc/{pid}/stat").read_text().split()[3]) for pid in commands}
    files = {
        pid: {fd.name: os.readlink(fd) for fd in Path(f"/proc/{pid}/fd").iterdir()}
        for pid in commands
    }
    path = host.ok("dump", "process", work.pid, "--dir", store, "--leave-running").last_line
    said = _inspected(host, path)
    processes = {each["pid"]: each for each in said["dump"]["processes"]}
    assert {pid: each["command"] for pid, each in processes.items()} == commands
    del parents[work.pid]
    assert {pid: processes[pid]["parent"] for pid in parents} == parents
    for pid, each in processes.items():
        shown = {str(file["fd"]): file["what"] for file in each["files"]}
        assert shown.keys() == files[pid].keys()
        for fd, target in files[pid].items():
            if not target.startswith("socket:"):
                assert shown[fd] == target
        assert each["program"] == os.readlink(f"/proc/{pid}/exe")
        assert each["directory"] == "/"
    images = sum(image["bytes"] for image in said["images"] if image["name"].startswith("pages-"))
    mappings = [mapping for each in processes.values() for mapping in each["mappings"]]
    assert sum(mapping["image_bytes"] for mapping in mappings) == images
    stored = sum(mapping["stored_bytes"] for mapping in mappings)
    assert 0.5 * said["stored_bytes"] < stored < said["stored_bytes"]
    assert said["dump"]["stats"]["frozen_time_us"] > 0
    assert said["created_ns"] < said["dump"]["written_at_ns"] < said["committed_ns"]
    text = host.ok("inspect", path).stdout
    assert "└─ " in text
    assert "frozen for " in text
    (listed,) = json.loads(host.ok("list", store, "--json").stdout)
    assert (listed["process"], listed["processes"]) == ("python3", 5)


def test_shared_memory(host: Host, store: Path, start: StartWorkload) -> None:
    work = start("shm", size_mib=4)
    path = host.ok("dump", "process", work.pid, "--dir", store, "--leave-running").last_line
    for process in _inspected(host, path)["dump"]["processes"]:
        shared = [each for each in process["mappings"] if each["protection"].endswith("s")]
        assert sum(each["image_bytes"] for each in shared) >= 4 << 20


def test_a_listening_socket(host: Host, store: Path, start: StartWorkload) -> None:
    work = start("tcplisten")
    port = work.ask()["port"]
    path = host.ok("dump", "process", work.pid, "--dir", store, "--leave-running").last_line
    (process,) = _inspected(host, path)["dump"]["processes"]
    listening = [file for file in process["files"] if file["state"] == "LISTEN"]
    assert [file["local"] for file in listening] == [f"127.0.0.1:{port}"]
    assert f"TCP 127.0.0.1:{port}" in host.ok("inspect", path, "--sockets").stdout


def test_a_container(host: Host, store: Path, criu_binary: str) -> None:
    with Container(host, criu_binary) as container:
        host.ok("dump", "runc", container.id, "--dir", store, "--name", "box", "--leave-running")
    said = _inspected(host, store / "box")
    assert said["dump"]["container"] == container.id
    kinds = {each["kind"]: each["detail"] for each in said["dump"]["namespaces"]}
    assert {"pid", "mnt", "ipc", "uts"} <= kinds.keys()
    mounts = {mount["mountpoint"]: mount["kind"] for mount in said["dump"]["mounts"]}
    assert mounts["/proc"] == "proc"
    assert "/" in mounts
    assert "/proc " in host.ok("inspect", store / "box", "--mounts").stdout
    assert container.id[:12] in host.ok("list", store).stdout
