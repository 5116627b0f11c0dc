"""The process around CRIU, with programs in CRIU's place that do what it should not."""

import json
import os
from pathlib import Path

import pytest
import trio
from rig import Rig
from workloads import Workload

from cedanafs.criu import driver, worker
from cedanafs.criu.options import DumpOptions
from cedanafs.errors import CriuError


@pytest.fixture
def fake(rig: Rig, tmp_path: Path) -> Path:
    """The path of the program that *rig* takes for criu; the test writes it."""
    program = tmp_path / "criu"
    rig.criu_binary = str(program)
    return program


def write_program(program: Path, body: str) -> None:
    program.write_text(f"#!/usr/bin/python3\nimport json, os, sys, time\n{body}\n")
    program.chmod(0o755)


LIST_FDS = """
fds = {}
for fd in range(1000):
    try:
        fds[fd] = os.readlink(f"/proc/self/fd/{fd}")
    except OSError:
        pass
json.dump(fds, open(%r, "w"))
sys.exit("it is me")
"""


def test_criu_gets_the_socket_and_nothing_else(rig: Rig, fake: Path, tmp_path: Path) -> None:
    write_program(fake, LIST_FDS % str(tmp_path / "fds"))
    with Workload("threads", tmp_path / "state") as work, (tmp_path / "ours").open("w") as ours:
        os.set_inheritable(ours.fileno(), True)
        with pytest.raises(CriuError, match=f"it was to dump process {work.pid}: it is me; log"):
            rig.dump(DumpOptions(work.pid))
    fds = json.loads((tmp_path / "fds").read_text())
    assert fds.pop("0") == fds.pop("1") == "/dev/null"
    assert fds.pop("2").startswith("/memfd:criu-stderr")
    assert [target.partition(":")[0] for target in fds.values()] == ["socket"]


def test_criu_that_does_not_stop_is_killed(
    rig: Rig, fake: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(driver, "ABORT_GRACE_S", 0.1)
    monkeypatch.setattr(worker, "EXIT_GRACE_S", 0.1)
    write_program(
        fake, f"open({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid()))\ntime.sleep(99)"
    )

    async def dump_for_half_a_second(pid: int) -> None:
        with trio.move_on_after(0.5) as scope:
            await rig.adump(DumpOptions(pid))
        assert scope.cancelled_caught

    with Workload("threads", tmp_path / "state") as work:
        trio.run(dump_for_half_a_second, work.pid)
        work.wait_ticking()
    assert not Path(f"/proc/{int((tmp_path / 'pid').read_text())}").exists()


def test_garbage_from_criu(rig: Rig, fake: Path, tmp_path: Path) -> None:
    write_program(fake, "fd = int(sys.argv[2]); os.read(fd, 9999); os.write(fd, b'nonsense')")
    with (
        Workload("threads", tmp_path / "state") as work,
        pytest.raises(CriuError, match="criu sent 8 bytes that are no response"),
    ):
        rig.dump(DumpOptions(work.pid))
