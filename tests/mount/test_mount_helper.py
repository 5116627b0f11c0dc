"""mount(8), umount(8) and fstab, in a mount namespace whose /sbin has our helpers."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from host import Done, Host, poll

from cedanafs.cli.mount_helper import flags_of
from cedanafs.errors import UsageError

BIN = Path(sys.executable).parent


class Machine:
    """Commands in the namespace."""

    def __init__(self, host: Host, pid: int) -> None:
        self.host = host
        self._enter = ("nsenter", f"--mount=/proc/{pid}/ns/mnt", "--")

    def run(self, *command: object) -> Done:
        return self.host.shell(*self._enter, *command)

    def ok(self, *command: object) -> str:
        done = self.run(*command)
        assert done.code == 0, done
        assert not done.stderr, done
        return done.stdout.strip()


@pytest.fixture
def machine(host: Host) -> Iterator[Machine]:
    """Its /sbin is this machine's with the links that docs/system.md asks for."""
    disk = host.make("disk")
    sbin = Path("/sbin").resolve()
    script = f"""
        mount --make-rprivate /
        mkdir -p /run/mount
        mount -t tmpfs tmpfs /run/mount
        mount -t tmpfs tmpfs {disk}
        mkdir {disk}/upper {disk}/work
        mount -t overlay -o lowerdir={sbin},upperdir={disk}/upper,workdir={disk}/work overlay {sbin}
        ln -s {BIN}/mount.cedanafs {BIN}/umount.cedanafs {sbin}/
        ln -s mount.cedanafs {sbin}/mount.fuse.cedanafs
        ln -s umount.cedanafs {sbin}/umount.fuse.cedanafs
        touch {host.base}/made
        exec sleep infinity
    """
    with host.started_program("unshare", "--mount", "sh", "-euc", script) as process:
        poll(lambda: (host.base / "made").exists() or process.poll() is not None, "the namespace")
        assert process.poll() is None, process.communicate()
        yield Machine(host, process.pid)


@pytest.fixture
def mnt(host: Host) -> Path:
    return host.make("mnt")


@pytest.mark.parametrize("kind", ["fuse.cedanafs", "cedanafs"])
def test_mount_and_umount(machine: Machine, store: Path, mnt: Path, kind: str) -> None:
    log = machine.host.log
    options = f"stream=2,compression=lz4,memory_limit=64M,allow_other,log_file={log},x-ours"
    machine.ok("mount", "-t", kind, store, mnt, "-o", f"{options},uhelper=cedanafs,noatime")
    shown = machine.ok("findmnt", "-no", "SOURCE,FSTYPE,OPTIONS", mnt)
    assert shown.startswith(f"{store} fuse.cedanafs rw,nosuid,nodev,")
    assert "allow_other" in shown
    machine.ok("mkdir", mnt / "x")
    machine.ok("sh", "-c", f"echo images > {mnt}/x/inventory.img")
    machine.ok("umount", mnt)  # commits, and waits until it is done
    assert machine.host.ok("verify", store / "x").code == 0
    assert sorted(os.listdir(store / "x")) == ["img-0.lz4", "img-1.lz4"]
    assert machine.run("mountpoint", "-q", mnt).code != 0

    machine.ok("mount", "-t", kind, "-r", store, mnt, "-o", f"log_file={log}")
    assert machine.ok("cat", mnt / "x/inventory.img") == "images"
    assert "Read-only" in machine.run("touch", mnt / "y").stderr
    machine.ok("umount", mnt)


def test_fstab(machine: Machine, store: Path, mnt: Path) -> None:
    fstab = machine.host.base / "fstab"
    log = machine.host.log
    fstab.write_text(
        f"{store} {mnt} fuse.cedanafs stream=1,nofail,uhelper=cedanafs,log_file={log} 0 0\n"
    )
    machine.ok("mount", "-T", fstab, "-a")
    machine.ok("mount", "-T", fstab, "-a")  # is there already
    machine.ok("touch", mnt / "inventory.img")
    machine.ok("umount", mnt)
    assert os.listdir(store) == ["img-0.zst"]
    machine.ok("mount", "-T", fstab, mnt)
    machine.ok("umount", mnt)


def test_umount_refuses_when_busy_and_not_when_lazy(
    machine: Machine, store: Path, mnt: Path
) -> None:
    options = f"uhelper=cedanafs,log_file={machine.host.log}"
    machine.ok("mount", "-t", "cedanafs", store, mnt, "-o", options)
    enter = [*machine._enter, "sh", "-c", f"exec 3>{mnt}/inventory.img; echo open; read _"]
    with machine.host.started_program(*enter, stdin=-1) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "open\n"
        done = machine.run("umount", mnt)
        assert done.code == 2
        assert "is busy: close what is open in it" in done.stderr
        machine.ok("umount", "-l", mnt)
        assert machine.run("mountpoint", "-q", mnt).code != 0
    machine.host.wait_for_servers(mnt)


def test_umount_refuses_when_something_is_not_durable(
    machine: Machine, store: Path, mnt: Path
) -> None:
    machine.ok("mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", store)
    options = f"uhelper=cedanafs,compression=none,log_file={machine.host.log}"
    machine.ok("mount", "-t", "cedanafs", store, mnt, "-o", options)
    machine.run("dd", "if=/dev/urandom", f"of={mnt}/pages-1.img", "bs=1M", "count=4")
    done = machine.run("umount", mnt)
    assert done.code == 4
    assert "stays mounted, as something is not durable" in done.stderr
    assert machine.run("mountpoint", "-q", mnt).code == 0
    machine.ok("umount", "-l", mnt)
    machine.host.wait_for_servers(mnt)


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ("colour=red", "mount option colour=red: unknown; there are ro, rw"),
        ("noexec", "mount option noexec: unknown"),
        ("durable=1", "mount option durable=1: takes no value"),
        ("stream", "mount option stream: takes a value"),
        ("stream=many", "'many' is not a valid integer"),
        ("foreground", "mount option foreground: unknown"),
    ],
)
def test_what_is_wrong_is_said(
    machine: Machine, store: Path, mnt: Path, options: str, complaint: str
) -> None:
    done = machine.run("mount", "-t", "fuse.cedanafs", store, mnt, "-o", options)
    assert done.code == 2
    (line,) = done.stderr.splitlines()
    assert complaint in line
    assert machine.run("mountpoint", "-q", mnt).code != 0


def test_flags() -> None:
    assert flags_of("") == []
    assert flags_of("defaults,ro,page_hashes,page-hashes,store_timeout=2.5,_netdev") == [
        "--read-only", "--page-hashes", "--page-hashes", "--store-timeout=2.5",
    ]  # fmt: skip
    assert flags_of("colour=red,durable", sloppy=True) == ["--durable"]
    with pytest.raises(UsageError, match="colour"):
        flags_of("colour=red,durable")
