"""A mount whose store fails: what failed sticks to its checkpoint, and to no other."""

import errno
import os
import random
import shutil
from pathlib import Path

import pytest
from fault import ANY, Fault
from faulty import FaultyStore
from host import Host, StartWorkload, is_mounted
from scene import EARLIER, MIB, Scene, names
from writing import read_checkpoint

from cedanafs.fs.mounts import SEAL_XATTR

OLD = {"a.img": random.Random(1).randbytes(3 * MIB), "inventory.img": b"inventory"}
NEW = random.Random(2).randbytes(6 * MIB)


def write_files(directory: Path, files: dict[str, bytes]) -> None:
    directory.mkdir(exist_ok=True)
    for name, content in files.items():
        (directory / name).write_bytes(content)


def write_for_ever(fd: int) -> None:
    for _ in range(64):
        os.write(fd, NEW[:MIB])


def end_without_a_commit(host: Host, mountpoint: Path) -> None:
    """The plain umount, which gives up what could not be committed."""
    host.stock("umount", mountpoint)
    host.wait_for_servers(mountpoint)


@pytest.mark.parametrize(
    "fault",
    [
        Fault("write", errno.EIO, times=1, where="/x/"),
        Fault("write", errno.ENOSPC, after_bytes=4 * MIB, where="/x/"),
        Fault("write", errno.EDQUOT, times=1, where="/x/img-1"),
        Fault("write", errno.EROFS, where="/x/"),
    ],
    ids=lambda fault: errno.errorcode[fault.error],
)
def test_what_failed_after_it_was_acknowledged_sticks(
    host: Host, faulty: FaultyStore, fault: Fault
) -> None:
    said = os.strerror(fault.error)
    with host.mounted(faulty.path, "--stream", 2, "-c", "none") as mnt:
        write_files(mnt / "x", OLD)
        host.ok("commit", mnt / "x")
        faulty.fail(fault)
        fd = os.open(mnt / "x/b.img", os.O_WRONLY | os.O_CREAT)
        with pytest.raises(OSError, match=said):
            write_for_ever(fd)  # acknowledged first, then not
        faulty.heal()
        directory = os.open(mnt / "x", os.O_RDONLY)
        for _ in range(3):
            for failing in (
                lambda: os.write(fd, b"more"),
                lambda: os.fsync(fd),
                lambda: os.fsync(directory),
                lambda: os.close(os.dup(fd)),
                lambda: (mnt / "x/c.img").write_bytes(b"c"),
                lambda: os.truncate(mnt / "x/a.img", 1),
            ):
                with pytest.raises(OSError, match=said):
                    failing()
            host.refused(4, "commit", mnt / "x", match=said)
        with pytest.raises(OSError, match=said):
            os.close(fd)
        os.close(directory)
        # Others go on, and what was committed can be read on.
        write_files(mnt / "y", {"b.img": NEW})
        host.ok("commit", mnt / "y")
        assert (mnt / "x/a.img").read_bytes() == OLD["a.img"]
        host.refused(4, "umount", mnt, match=f"not durable.*{said}")
        assert is_mounted(mnt)
        end_without_a_commit(host, mnt)
    assert read_checkpoint(faulty.path / "x") == OLD
    assert read_checkpoint(faulty.path / "y") == {"b.img": NEW}
    with host.mounted(faulty.path) as mnt:
        assert names(mnt / "x") == sorted(OLD)
        write_files(mnt / "x", {"b.img": NEW})
    assert read_checkpoint(faulty.path / "x") == {**OLD, "b.img": NEW}


@pytest.mark.parametrize("after", [0, 2], ids=["index", "footers"])
@pytest.mark.parametrize("operation", ["write", "fsync"])
def test_commit_that_failed_sticks(
    host: Host, faulty: FaultyStore, operation: str, after: int
) -> None:
    with host.mounted(faulty.path, "--stream", 2, "-c", "none") as mnt:
        write_files(mnt / "x", OLD)
        host.ok("commit", mnt / "x")
        write_files(mnt / "x", {"b.img": b"new"})
        faulty.fail(Fault(operation, errno.EIO, after_fsyncs=after, times=1, where="/x/"))
        host.refused(4, "commit", mnt / "x", match="Input/output error")
        assert faulty.seen().met
        faulty.heal()
        for _ in range(3):
            host.refused(4, "commit", mnt / "x", match="Input/output error")
            with pytest.raises(OSError, match="Input/output error"):
                (mnt / "x/c.img").write_bytes(b"c")
        host.refused(4, "umount", mnt, match="not durable")
        end_without_a_commit(host, mnt)
    found = read_checkpoint(faulty.path / "x")
    # A footer that is whole is whole, though nobody vouches that it would survive a power cut.
    assert found in ([OLD, {**OLD, "b.img": b"new"}] if after else [OLD])


def test_failed_checkpoint_can_be_removed_and_made_anew(host: Host, faulty: FaultyStore) -> None:
    with host.mounted(faulty.path) as mnt:
        faulty.fail(Fault("write", errno.EIO, times=1, where="/x/"))
        write_files(mnt / "x", {"small": b"small"})
        host.refused(4, "commit", mnt / "x", match="Input/output error")
        shutil.rmtree(mnt / "x")
        assert names(faulty.backing) == []
        write_files(mnt / "x", OLD)
        host.ok("umount", mnt)
    assert read_checkpoint(faulty.path / "x") == OLD


@pytest.mark.parametrize("old", [{}, OLD], ids=["new", "over an earlier one"])
def test_every_operation_of_a_writer_fails_once(
    host: Host, faulty: FaultyStore, old: dict[str, bytes]
) -> None:
    """Each in turn, from the opening of the checkpoint to the last fsync of its commit."""
    with host.mounted(faulty.path, "--stream", 2, "-c", "none") as mnt:
        for at in range(1000):
            error = (errno.EIO, errno.ENOSPC)[at % 2]
            if not write_with_a_fault(faulty, mnt, old, Fault(ANY, error, after=at, times=1)):
                break
    assert 30 < at < 1000  # each run was whole, and they came to an end


def write_with_a_fault(
    faulty: FaultyStore, mnt: Path, old: dict[str, bytes], fault: Fault
) -> list[str]:
    """One run: what the fault met, nothing when it came too late."""
    (mnt / "x").mkdir()
    write_files(mnt / "x", old)
    os.setxattr(mnt, SEAL_XATTR, b"")  # at rest, to be opened anew
    new = {**old, "b.img": NEW}
    faulty.fail(fault)
    failed = None
    try:
        (mnt / "x/b.img").write_bytes(NEW)
        fsync_directory(mnt / "x")
    except OSError as exc:
        failed = exc.errno
    met = faulty.seen().met
    faulty.heal()
    assert failed in (None, fault.error), met
    if failed is None:
        assert read_checkpoint(faulty.path / "x") == new, met
        assert (mnt / "x/b.img").read_bytes() == NEW, met
    elif old:
        # The old one or, where only its last footer failed, the new one. Nothing in between.
        assert read_checkpoint(faulty.path / "x") in (old, new), met
        for name, content in old.items():
            assert (mnt / "x" / name).read_bytes() == content, met
    shutil.rmtree(mnt / "x")
    assert names(faulty.backing) == [], met
    return met


def fsync_directory(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def test_stock_criu_dumps_into_a_store_that_fails(
    host: Host, faulty: FaultyStore, start: StartWorkload, criu_binary: str
) -> None:
    # Without a barrier CRIU learns of what fails only if it is not far ahead of the store.
    scene = Scene(host, start, faulty.path, size_mib=80)
    with host.mounted(faulty.path, "-c", "none", "--memory-limit", "32M") as mnt:
        for fault in (
            Fault("create", errno.EDQUOT, where="/x/"),
            Fault("write", errno.EIO, times=1, where="/x/"),
            Fault("write", errno.ENOSPC, after_bytes=12 * MIB, where="/x/"),
        ):
            (mnt / "x").mkdir()
            faulty.fail(fault)
            dump = (criu_binary, "dump", "-D", mnt / "x", "-W", host.base, "-t", scene.process.pid)
            assert host.shell(*dump).code == 1
            assert faulty.seen().met
            scene.assert_unharmed()
            faulty.heal()
            if fault.operation == "write":
                host.refused(4, "commit", mnt / "x", match=os.strerror(fault.error))
            shutil.rmtree(mnt / "x")
            host.ok("commit", mnt)
        (mnt / "x").mkdir()
        host.stock(*dump)
        host.ok("commit", mnt / "x")
    scene.assert_restores(faulty.path / "x")
    scene.assert_earlier_whole()


def test_cedanafs_dumps_into_a_mount_of_a_store_that_fails(
    host: Host, faulty: FaultyStore, start: StartWorkload
) -> None:
    scene = Scene(host, start, faulty.path)
    with host.mounted(faulty.path, "-c", "none") as mnt:
        for fault in (
            Fault("mkdir", errno.EROFS),
            Fault("write", errno.ENOSPC, after_bytes=12 * MIB, where="/x/"),
            Fault("fsync", errno.EIO, times=1, where="/x/"),
        ):
            faulty.fail(fault)
            host.refused(4, *scene.dump(), match=os.strerror(fault.error))
            assert faulty.seen().met
            scene.assert_unharmed()
            faulty.heal()
            assert names(mnt) == names(faulty.backing) == [EARLIER]
        host.ok(*scene.dump())
    scene.assert_restores(faulty.path / "x")
    scene.assert_earlier_whole()
