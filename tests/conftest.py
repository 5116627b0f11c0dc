"""What all tests share. Its place here also lets them say `from workloads import Workload`.

The fixtures are the real thing: FUSE and CRIU, as root. What is missing fails the tests that use
them, it does not skip them.
"""

import os
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from host import Host, StartWorkload
from hypothesis import settings
from s3 import Bucket, Server, s3_server, s3fs_mount
from workloads import Workload

from cedanafs.criu.binary import find_criu

# Two slow cores are no finding: what takes too long is for the bench to say.
# CI repeats the same examples; everywhere else each run looks for new ones.
settings.register_profile("cedanafs", deadline=None, derandomize="CI" in os.environ)
settings.load_profile("cedanafs")


@pytest.fixture(scope="session")
def criu_binary() -> str:
    """$CRIU, or the criu that `make setup` installs. Fails where there is none, or without root."""
    assert os.geteuid() == 0, "CRIU needs root"
    return find_criu(os.environ.get("CRIU"))


@pytest.fixture
def host(tmp_path: Path, criu_binary: str) -> Iterator[Host]:
    """This machine; the test fails when it leaves a mount, a process or a directory behind."""
    assert Path("/dev/fuse").exists(), "there is no /dev/fuse"
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


@pytest.fixture
def criu_config() -> Iterator[Path]:
    """CRIU's configuration of this machine: empty in the test, and as it was after it."""
    directory = Path("/etc/criu")
    made = not directory.exists()
    directory.mkdir(exist_ok=True)
    before = {path: path.read_text() for path in directory.glob("*.conf")}
    for path in before:
        path.unlink()
    try:
        yield directory
    finally:
        for path in directory.glob("*.conf"):
            path.unlink()
        for path, text in before.items():
            path.write_text(text)
        if made:
            directory.rmdir()


@pytest.fixture(scope="session")
def s3_servers() -> Iterator[dict[str, Server]]:
    """A real S3 server of each kind, on loopback, for tests that leave them alone."""
    with ExitStack() as stack:
        yield {kind: stack.enter_context(s3_server(kind)) for kind in ("moto", "rclone")}


@pytest.fixture(params=["moto", "rclone"])
def bucket(s3_servers: dict[str, Server], request: pytest.FixtureRequest) -> Bucket:
    """An empty bucket, on each kind of server."""
    return s3_servers[request.param].make_bucket()


@pytest.fixture
def s3fs_store(host: Host, bucket: Bucket) -> Iterator[Path]:
    """An empty bucket, as a store through s3fs."""
    with s3fs_mount(host, bucket) as path:
        yield path
