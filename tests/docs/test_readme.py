"""Every `sh` block of the README does what it says, as root, on this machine.

Only /mnt and /srv are directories of the test's own. `make demo` and `make test` are run by CI.
"""

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.error import URLError
from urllib.request import Request, urlopen

import pytest
from workloads import Workload

ROOT = Path(__file__).parent.parent.parent
BLOCKS = re.findall(r"^```sh\n(.*?)^```$", (ROOT / "README.md").read_text(), re.M | re.S)


@pytest.fixture
def run_block(tmp_path: Path) -> Iterator[Callable[..., None]]:
    """Runs a block in bash, where any command that fails ends it."""
    for name in ("srv/checkpoints", "mnt/ckpt", "mnt/bucket"):
        (tmp_path / name).mkdir(mode=0o700, parents=True)

    def run(block: str, process: Workload, **environment: object) -> None:
        child = subprocess.Popen(
            ["bash", "-euxc", re.sub(r"(?<= )/(?=(mnt|srv)/)", f"{tmp_path}/", block)],
            env={
                **os.environ,
                "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}:/usr/sbin:/sbin",
                "PID": str(process.pid),
                **{name: str(value) for name, value in environment.items()},
            },
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )
        deadline = time.monotonic() + 120
        while child.poll() is None:
            assert time.monotonic() < deadline, (tmp_path / "output").read_text()
            process.alive()  # reaps it, as its parent: a zombie would keep its pid
            time.sleep(0.002)
        assert child.returncode == 0, (tmp_path / "output").read_text()

    with (tmp_path / "output").open("w") as output:
        yield run
    for name in ("mnt/ckpt", "mnt/bucket"):
        if (tmp_path / name).is_mount():
            subprocess.run(["umount", "--lazy", tmp_path / name], check=True)


@pytest.fixture
def process(tmp_path: Path) -> Iterator[Workload]:
    with Workload("memory", tmp_path / "state", size_mib=16) as work:
        yield work


@pytest.fixture
def s3_url() -> Iterator[str]:
    """A real S3 server on loopback, with a bucket."""
    server = subprocess.Popen(
        [Path(sys.executable).parent / "moto_server", "-H", "127.0.0.1", "-p", "0"],
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert server.stderr is not None
        for line in server.stderr:
            if found := re.search(r"Running on (http://\S+)", line):
                break
        else:
            raise RuntimeError("moto_server did not start")
        url = found[1]
        try:
            urlopen(Request(f"{url}/checkpoints", method="PUT")).close()
        except URLError as exc:
            raise RuntimeError("no bucket") from exc
        yield url
    finally:
        server.terminate()
        server.communicate()


def test_there_are_blocks_for_each_use() -> None:
    assert len(BLOCKS) == 4


@pytest.mark.parametrize("block", BLOCKS[:3], ids=["cedanafs", "plain criu", "durable"])
def test_local(block: str, process: Workload, run_block: Callable[..., None]) -> None:
    before = process.ask()
    run_block(block, process)
    process.wait_ticking()
    assert process.ask()["digest"] == before["digest"]


def test_s3fs(
    process: Workload, s3_url: str, tmp_path: Path, run_block: Callable[..., None]
) -> None:
    password = tmp_path / "passwd"
    password.touch(0o600)
    password.write_text("id:secret")
    before = process.ask()
    run_block(
        BLOCKS[3] + "ls -l /mnt/bucket/web/img-3.zst\n",
        process,
        BUCKET="checkpoints",
        S3_URL=s3_url,
        S3_PASSWD=password,
    )
    process.wait_ticking()
    assert process.ask()["digest"] == before["digest"]
