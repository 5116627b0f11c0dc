"""Real FUSE and real CRIU, as root. What is missing fails the tests, it does not skip them."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from host import Host, StartWorkload
from workloads import Workload

from cedanafs.criu.binary import find_criu


@pytest.fixture(scope="session")
def criu_binary() -> str:
    """$CRIU, or the criu that `make setup` installs."""
    return find_criu(os.environ.get("CRIU"))


@pytest.fixture(scope="session", autouse=True)
def _machine(criu_binary: str) -> None:
    assert os.geteuid() == 0, "mounts and CRIU need root"
    assert Path("/dev/fuse").exists(), "there is no /dev/fuse"


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    """This machine; the test fails when it leaves a mount, a process or a directory behind."""
    machine = Host(tmp_path)
    try:
        yield machine
        left = machine.wait_for_nothing_left()
    finally:
        machine.sweep()
    assert not left


@pytest.fixture
def store(host: Host) -> Path:
    """An empty store."""
    return host.make("store")


@pytest.fixture
def start(tmp_path: Path) -> Iterator[StartWorkload]:
    """Start a workload by kind and parameters; it is killed at the end, restored or not."""
    running: list[Workload] = []

    def start_workload(kind: str, **params: int) -> Workload:
        work = Workload(kind, tmp_path / f"state{len(running)}", **params)
        running.append(work)
        return work

    try:
        yield start_workload
    finally:
        for work in running:
            work.kill()
