"""Stores on disks that run full, turn read-only, or are pulled out, while something is written."""

import errno
import os
import random
import re
from pathlib import Path

import pytest
from disks import ext4_disk
from faulty import FaultyStore
from host import Host, StartWorkload, poll
from scene import EARLIER, MIB, Scene, forget_kept_logs, names
from writing import read_checkpoint

GONE = "not connected|connection abort|Input/output error"
# CRIU is never far ahead of the store: when that has some bytes, it is in the middle.
LIMITS = ("-c", "none", "--memory-limit", "32M")
CONTENT = random.Random(1).randbytes(4 * MIB)


def written_bytes(checkpoint: Path) -> int:
    return sum(path.stat().st_size for path in checkpoint.glob("img-*"))


def test_disk_that_runs_full_in_a_dump(host: Host, start: StartWorkload) -> None:
    with ext4_disk(host, "disk", size_mib=32) as disk:
        scene = Scene(host, start, disk.path, size_mib=40)
        for _ in range(2):
            host.refused(4, *scene.dump("-c", "none"), match="No space left")
            scene.assert_unharmed()
            assert names(disk.path) == [EARLIER, "lost+found"]
        scene.assert_earlier_whole()


def test_disk_that_runs_full_in_a_commit(host: Host) -> None:
    """All data fits, but not what a commit adds to it; then there is room again."""
    with (
        host.small_disk("disk", 16) as store,
        host.mounted(store, "--stream", 2, "-c", "none") as mnt,
    ):
        (mnt / "old").mkdir()
        (mnt / "old/a.img").write_bytes(CONTENT)
        host.ok("commit", mnt / "old")
        (mnt / "x").mkdir()
        with (mnt / "x/b.img").open("wb", buffering=0) as still_written:  # nothing commits it
            still_written.write(CONTENT)
            for k in range(1000):
                (mnt / f"x/{k}.img").touch()
            poll(lambda: written_bytes(store / "x") > 3 * MIB, "what was written")
            with (store / "filler").open("wb") as filler, pytest.raises(OSError, match="No space"):
                filler.write(bytes(64 * MIB))
            for _ in range(2):
                host.refused(4, "commit", mnt / "x", match="No space left")
                with pytest.raises(OSError, match="No space left"):
                    still_written.write(b"c")
            with pytest.raises(OSError, match="No space left"):
                still_written.close()
        (store / "filler").unlink()
        host.refused(4, "commit", mnt / "x", match="No space left")  # it sticks
        (mnt / "new").mkdir()
        (mnt / "new/b.img").write_bytes(b"b")
        host.ok("commit", mnt / "new")
        host.refused(4, "umount", mnt, match="not durable")
        host.stock("umount", mnt)
        host.wait_for_servers(mnt)
        assert read_checkpoint(store / "old") == {"a.img": CONTENT}
        assert read_checkpoint(store / "new") == {"b.img": b"b"}


@pytest.mark.parametrize("pull", ["abort", "cut_off"])
def test_disk_that_fails_in_a_dump(host: Host, start: StartWorkload, pull: str) -> None:
    with ext4_disk(host, "disk", size_mib=400) as disk:
        scene = Scene(host, start, disk.path, size_mib=200)
        host.stock("sync", "-f", disk.path)
        with host.started(*scene.dump(*LIMITS)) as dump:
            poll(lambda: written_bytes(disk.path / "x") > 8 * MIB, "written bytes")
            getattr(disk, pull)()
            out, err = dump.communicate(timeout=60)
        assert (dump.returncode, out) == (4, ""), err
        complaint = err.splitlines()[-1]
        assert complaint.startswith("cedanafs: "), err
        assert os.strerror(errno.EROFS if pull == "abort" else errno.EIO) in complaint
        scene.assert_unharmed()
        disk.detach()
        disk.attach()
        # Nobody could clean up there, but what is left is seen for what it is.
        if (disk.path / "x").exists():
            host.refused(3, "restore", "process", "--path", disk.path / "x", match="x")
        scene.assert_earlier_whole()
        host.ok(*scene.dump("-c", "none"))
        scene.assert_restores(disk.path / "x")


@pytest.mark.parametrize("pull", ["abort", "cut_off"])
def test_disk_that_fails_under_stock_criu(
    host: Host, start: StartWorkload, criu_binary: str, pull: str
) -> None:
    with ext4_disk(host, "disk", size_mib=400) as disk:
        scene = Scene(host, start, disk.path, size_mib=200)
        host.stock("sync", "-f", disk.path)
        with host.mounted(disk.path, *LIMITS) as mnt:
            (mnt / "x").mkdir()
            dump = (criu_binary, "dump", "-D", mnt / "x", "-W", host.base, "-t", scene.process.pid)
            with host.started_program(*dump) as criu:
                poll(lambda: written_bytes(disk.path / "x") > 8 * MIB, "written bytes")
                getattr(disk, pull)()
                criu.communicate(timeout=60)
            assert criu.returncode == 1
            scene.assert_unharmed()
            host.refused(4, "commit", mnt / "x", match="not durable")
            host.refused(4, "umount", mnt, match="not durable")
            host.stock("umount", mnt)
            host.wait_for_servers(mnt)
        disk.detach()
        disk.attach()
        scene.assert_earlier_whole()


def test_store_that_is_read_only_for_a_while(host: Host) -> None:
    with host.small_disk("disk", 16) as store, host.mounted(store) as mnt:
        (mnt / "x").mkdir()
        (mnt / "x/a.img").write_bytes(CONTENT)
        host.stock("umount", mnt)  # at rest: no disk turns read-only under open files
        host.wait_for_servers(mnt)
        with host.mounted(store, at=mnt):
            assert (mnt / "x/a.img").read_bytes() == CONTENT
            host.stock("mount", "-o", "remount,ro", store)
            for _ in range(2):
                with pytest.raises(OSError, match="Read-only"):
                    (mnt / "x/b.img").write_bytes(b"b")
                with pytest.raises(OSError, match="Read-only"):
                    (mnt / "y").mkdir()
            assert (mnt / "x/a.img").read_bytes() == CONTENT
            host.ok("commit", mnt / "x")  # there is nothing to commit
            host.stock("mount", "-o", "remount,rw", store)
            (mnt / "x/b.img").write_bytes(b"b")
        assert read_checkpoint(store / "x") == {"a.img": CONTENT, "b.img": b"b"}


def test_store_that_vanishes_in_a_dump_and_comes_back(
    host: Host, faulty: FaultyStore, start: StartWorkload
) -> None:
    scene = Scene(host, start, faulty.path, size_mib=200)
    with host.started(*scene.dump(*LIMITS)) as dump:
        poll(lambda: written_bytes(faulty.backing / "x") > 8 * MIB, "written bytes")
        faulty.vanish()
        out, err = dump.communicate(timeout=60)
    assert (dump.returncode, out) == (4, ""), err
    assert re.search(GONE, err.splitlines()[-1]), err
    scene.assert_unharmed()
    for command in (
        scene.dump(),
        ("list", faulty.path),
        ("inspect", faulty.path / EARLIER),
        ("verify", faulty.path / EARLIER),
        ("restore", "process", "--path", faulty.path / EARLIER),
        ("mount", faulty.path, host.make(f"mnt-{len(os.listdir(host.base))}")),
    ):
        host.refused(4, *command, match=GONE)
    scene.assert_unharmed()
    faulty.come_back()
    host.refused(3, "restore", "process", "--path", faulty.path / "x", match="x")
    scene.assert_earlier_whole()
    host.ok(*scene.dump())
    scene.assert_restores(faulty.path / "x")


def test_store_that_vanishes_under_a_mount_and_comes_back(
    host: Host, faulty: FaultyStore, start: StartWorkload
) -> None:
    scene = Scene(host, start, faulty.path)
    with host.mounted(faulty.path) as mnt:
        (mnt / "x").mkdir()
        (mnt / "x/a.img").write_bytes(CONTENT)
        host.ok("commit", mnt / "x")
        (mnt / "x/b.img").write_bytes(CONTENT)
        faulty.vanish()
        host.refused(4, "commit", mnt / "x", match=GONE)
        host.refused(4, *scene.dump()[:-1], "z", match=GONE)
        scene.assert_unharmed()
        faulty.come_back()
        host.refused(4, "commit", mnt / "x", match=GONE)  # it sticks
        host.ok(*scene.dump()[:-1], "z")
        host.refused(4, "umount", mnt, match="not durable")
        host.stock("umount", mnt)
        host.wait_for_servers(mnt)
    assert read_checkpoint(faulty.path / "x") == {"a.img": CONTENT}
    scene.assert_restores(faulty.path / "z")
    scene.assert_earlier_whole()
    forget_kept_logs(host)
