"""The faulty store itself: harmless until told otherwise, and then exactly what it was told."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest
from fault import ANY, Fault
from faulty import FaultyStore, faulty_store
from host import Host, poll

MIB = 1 << 20


def test_it_passes_everything_through(host: Host, faulty: FaultyStore) -> None:
    content = os.urandom(3 * MIB)
    (faulty.path / "x").mkdir()
    (faulty.path / "x/a").write_bytes(content)
    (faulty.path / "x").rename(faulty.path / "y")
    os.truncate(faulty.path / "y/a", 2 * MIB)
    host.stock("sync", faulty.path / "y/a", faulty.path / "y")
    for place in (faulty.path, faulty.backing):
        assert (place / "y/a").read_bytes() == content[: 2 * MIB]
        assert os.listdir(place) == ["y"]
    with (faulty.path / "y/a").open("rb") as open_still:
        (faulty.path / "y/a").unlink()
        assert open_still.read() == content[: 2 * MIB]
    (faulty.path / "y").rmdir()
    assert list(faulty.backing.iterdir()) == []
    assert faulty.seen().met == []


def test_a_disk_runs_full_after_some_bytes(faulty: FaultyStore) -> None:
    faulty.fail(Fault("write", error=errno.ENOSPC, after_bytes=MIB + 5))
    fd = os.open(faulty.path / "a", os.O_RDWR | os.O_CREAT)
    try:
        assert os.pwrite(fd, bytes(MIB), 0) == MIB
        assert os.pwrite(fd, bytes(10), MIB) == 5
        for _ in range(2):
            with pytest.raises(OSError, match="No space left"):
                os.pwrite(fd, bytes(10), MIB + 5)
        assert faulty.seen().met == ["write /a"] * 2
        faulty.heal()
        assert os.pwrite(fd, bytes(10), MIB + 5) == 10
    finally:
        os.close(fd)


def test_faults_meet_what_they_are_for(faulty: FaultyStore) -> None:
    faulty.fail(
        Fault("fsync", error=errno.EIO, after=1, times=1, where="/x/"),
        Fault("mkdir", error=errno.EDQUOT, times=1),
        Fault("write", short=3, where="/y"),
    )
    with pytest.raises(OSError, match="quota"):
        (faulty.path / "x").mkdir()
    (faulty.path / "x").mkdir()
    for name, taken in (("x/a", 10), ("y", 3)):
        fd = os.open(faulty.path / name, os.O_RDWR | os.O_CREAT)
        assert os.write(fd, bytes(10)) == taken
        os.fsync(fd)
        if name == "x/a":
            with pytest.raises(OSError, match="Input/output"):
                os.fsync(fd)
        os.fsync(fd)
        os.close(fd)


@pytest.mark.parametrize("let_go", ["heal", "fail", "vanish"])
def test_what_hangs_is_let_go(host: Host, faulty: FaultyStore, let_go: str) -> None:
    write = "import os, sys; os.write(os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT), b'all')"
    error = errno.EIO if let_go == "fail" else 0
    faulty.fail(Fault("write", hang=True, error=error))
    with subprocess.Popen(
        [sys.executable, "-c", write, faulty.path / "a"], stderr=subprocess.PIPE, text=True
    ) as writer:
        poll(lambda: faulty.seen().hanging, "a write that hangs")
        assert writer.poll() is None
        if let_go == "vanish":
            faulty.vanish()
        else:
            faulty.heal()
        _, said = writer.communicate(timeout=20)
    assert writer.returncode == (0 if let_go == "heal" else 1), said
    assert (faulty.backing / "a").read_bytes() == (b"all" if let_go == "heal" else b"")


def test_it_vanishes_and_comes_back(host: Host, faulty: FaultyStore) -> None:
    (faulty.path / "a").write_bytes(b"a")
    lost = os.open(faulty.path / "a", os.O_RDONLY)
    faulty.vanish()
    with pytest.raises(OSError, match="not connected"):
        os.listdir(faulty.path)
    faulty.come_back()
    assert (faulty.path / "a").read_bytes() == b"a"
    with pytest.raises(OSError, match="not connected"):
        os.read(lost, 1)
    with pytest.raises(OSError, match="not connected"):
        os.close(lost)


def test_any_operation(host: Host, tmp_path: Path) -> None:
    with faulty_store(host, "other") as store:
        store.fail(Fault(ANY, error=errno.EROFS))
        with pytest.raises(OSError, match="Read-only"):
            os.listdir(store.path)
