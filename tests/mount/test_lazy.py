"""Lazy restores: the process runs at once, its memory follows, and what fails is seen and named."""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path

import pytest
from host import Host, StartWorkload, poll
from programs import program, wait_gone
from workloads import Workload

from cedanafs.criu.tree import parent_of

LARGE_MIB = 256
"""Takes a second to arrive: long enough to find the daemon at work."""


def dumped(host: Host, work: Workload, directory: Path, *options: object) -> Path:
    """*work* dumped, and gone."""
    checkpoint = host.ok("dump", "process", work.pid, "--dir", directory, *options).last_line
    work.wait_gone()
    return Path(checkpoint)


def make_cold(checkpoint: Path) -> None:
    """Have none of its bytes in the page cache."""
    for path in checkpoint.iterdir():
        fd = os.open(path, os.O_RDONLY)
        os.fsync(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(fd)


def lazily(host: Host, checkpoint: Path, *options: object) -> list[object]:
    """The command that restores *checkpoint* so."""
    log = ("--log-file", host.log)
    return ["restore", "process", "--path", checkpoint, "--lazy", *log, *options]


def the_daemon(host: Host) -> int:
    (pid,) = host.running("lazy-pages")
    return pid


def the_supervisor_and_its_guard(host: Host) -> tuple[int, int]:
    pids = set(host.running("restore"))
    (guard,) = pids - {parent_of(pid) for pid in pids}
    assert parent_of(guard) in pids
    return parent_of(guard), guard


def wait_for_the_rest(host: Host) -> None:
    """Wait until all memory has arrived, and those that brought it are gone."""
    poll(lambda: not host.running("lazy-pages") and not host.own_mounts(), "the last page", 60)
    poll(lambda: not host.running("restore"), "the end of supervisor and guard")


@pytest.mark.parametrize("options", [(), ("--stream", 0)], ids=["shards", "plain images"])
def test_it_computes_while_its_memory_arrives(
    host: Host, store: Path, start: StartWorkload, options: tuple[object, ...]
) -> None:
    work = start("memory", size_mib=LARGE_MIB, churn_mib=1)
    checkpoint = dumped(host, work, store, *options)
    make_cold(checkpoint)
    assert host.ok(*lazily(host, checkpoint)).last_line == str(work.pid)
    daemon = the_daemon(host)
    work.wait_ticking()
    assert the_daemon(host) == daemon, "all memory was there before it ran"
    assert work.ask()["torn_blocks"] == 0
    wait_for_the_rest(host)
    work.wait_ticking()
    assert work.ask()["torn_blocks"] == 0


def test_a_tree_with_its_memory_untouched(host: Host, store: Path, start: StartWorkload) -> None:
    work = start("tree")
    before, pids = work.ask(), work.pids()
    checkpoint = dumped(host, work, store)
    make_cold(checkpoint)
    host.ok(*lazily(host, checkpoint, "--wait"))
    assert not host.running("lazy-pages")
    work.wait_ticking()
    after = work.ask()
    assert work.pids() == pids
    assert after["pids"] == before["pids"]
    assert after["rounds"] > before["rounds"]
    assert len(set(after["rounds"])) == 1


def test_memory_that_nobody_touched_is_the_same(
    host: Host, store: Path, start: StartWorkload
) -> None:
    work = start("memory", size_mib=64)
    digest = work.ask()["digest"]
    checkpoint = dumped(host, work, store)
    make_cold(checkpoint)
    host.ok(*lazily(host, checkpoint, "--wait"))
    assert work.ask()["digest"] == digest


def test_attached_it_ends_with_the_status_of_the_process(
    host: Host, store: Path, start: StartWorkload
) -> None:
    work = start("memory", size_mib=16)
    checkpoint = dumped(host, work, store)
    with host.started(*lazily(host, checkpoint, "--attach")) as restore:
        poll(work.alive, "the restored process")
        work.wait_ticking()
        os.kill(work.pid, signal.SIGTERM)
        restore.communicate(timeout=30)
        assert restore.returncode == 128 + signal.SIGTERM
    wait_for_the_rest(host)


def test_from_a_mount_with_stock_criu(
    host: Host, store: Path, start: StartWorkload, criu_binary: str
) -> None:
    """Its daemon binds a socket in the images' directory, unless it is told another."""
    work = start("memory", size_mib=16)
    digest = work.ask()["digest"]
    with host.mounted(store) as mnt:
        images = dumped(host, work, mnt)
        serve = (criu_binary, "lazy-pages", "-D", images)
        with host.started_program(*serve) as daemon:
            poll((images / "lazy-pages.socket").is_socket, "the daemon's socket")
            host.stock(criu_binary, "restore", "-d", "--lazy-pages", "-D", images)
            assert work.ask()["digest"] == digest
            assert daemon.wait(30) == 0
    host.ok("verify", store / images.name)


def test_from_a_mount_that_is_there(host: Host, store: Path, start: StartWorkload) -> None:
    work = start("memory", size_mib=16)
    digest = work.ask()["digest"]
    with host.mounted(store) as mnt:
        images = dumped(host, work, mnt)
        host.ok(*lazily(host, images, "--wait"))
        assert work.ask()["digest"] == digest


def test_a_daemon_that_dies_takes_the_process_with_it(
    host: Host, store: Path, start: StartWorkload
) -> None:
    """Its memory would read as zeros from then on."""
    work = start("memory", size_mib=LARGE_MIB)
    checkpoint = dumped(host, work, store)
    host.ok(*lazily(host, checkpoint))
    os.kill(the_daemon(host), signal.SIGKILL)
    work.wait_gone()
    wait_for_the_rest(host)
    (line,) = [line for line in host.log.read_text().splitlines() if "ERROR" in line]
    told = re.search(rf"process {work.pid} is killed.* was killed by SIGKILL; log: (.*)", line)
    assert told, line
    remove_log(Path(told[1]))


def test_whoever_waits_is_told_of_a_daemon_that_dies(
    host: Host, store: Path, start: StartWorkload
) -> None:
    work = start("memory", size_mib=LARGE_MIB)
    checkpoint = dumped(host, work, store)
    with host.started(*lazily(host, checkpoint, "--wait")) as restore:
        poll(work.alive, "the restored process")
        work.wait_ticking()
        os.kill(the_daemon(host), signal.SIGKILL)
        _, err = restore.communicate(timeout=30)
    assert restore.returncode == 5, err
    assert re.search(rf"cedanafs: process {work.pid} is killed.*SIGKILL; log: ", err)
    work.wait_gone()
    remove_log(Path(err.strip().rpartition("log: ")[2]))


def test_damage_that_is_found_late_is_named(host: Host, store: Path, start: StartWorkload) -> None:
    work = start("memory", size_mib=64)
    checkpoint = dumped(host, work, store, "--stream", 1, "--compression", "none")
    shard = checkpoint / "img-0"
    with shard.open("r+b") as file:  # memory that nothing touches before it is brought
        file.seek(shard.stat().st_size // 2)
        file.write(bytes(byte ^ 255 for byte in os.pread(file.fileno(), 8, file.tell())))
    host.refused(3, *lazily(host, checkpoint, "--wait"), match=r"is killed.*pages-1\.img.*img-0")
    work.wait_gone()


def test_a_supervisor_that_is_told_to_stop_kills_what_cannot_live_without_it(
    host: Host, store: Path, start: StartWorkload
) -> None:
    work = start("memory", size_mib=LARGE_MIB)
    checkpoint = dumped(host, work, store)
    host.ok(*lazily(host, checkpoint))
    supervisor, _ = the_supervisor_and_its_guard(host)
    os.kill(supervisor, signal.SIGTERM)
    work.wait_gone()
    wait_for_the_rest(host)
    assert f"process {work.pid} is killed" in host.log.read_text()


# Looks at all its memory, over and over from the end; makes a directory when it begins.
LOOKS = """
import mmap, os, sys
memory = mmap.mmap(-1, {mib} << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
for at in range(0, len(memory), 1 << 20):
    memory[at : at + (1 << 20)] = b"x" * (1 << 20)
os.mkdir({begun!r})
while all(memory[at] for at in range(len(memory) - 1, -1, -4096)):
    pass
"""


def test_a_supervisor_that_is_killed_is_outlived_by_its_guard(host: Host, store: Path) -> None:
    """Its mount dies with it, then the daemon. With zeros for what is missing the process would
    end by itself, at the first it looks at or by SIGSEGV, as Python's own memory is missing too."""
    begun = host.base / "begun"
    with program(LOOKS.format(mib=LARGE_MIB, begun=str(begun))) as process:
        poll(begun.exists, "its memory")
        checkpoint = Path(host.ok("dump", "process", process.pid, "--dir", store).last_line)
        process.wait(30)
        wait_gone(process.pid)
        make_cold(checkpoint)
        with host.started(*lazily(host, checkpoint, "--attach")) as restore:
            assert restore.stdout is not None
            assert restore.stdout.readline() == f"{process.pid}\n"
            (mountpoint,) = host.own_mounts()
            supervisor, _ = the_supervisor_and_its_guard(host)
            os.kill(supervisor, signal.SIGKILL)
            assert restore.wait(30) == 128 + signal.SIGKILL
    poll(lambda: not host.running("lazy-pages") and not host.running("restore"), "the others' end")
    told = f"process {process.pid} is killed: its supervisor has died"
    assert told in host.log.read_text()
    host.stock("umount", "--lazy", mountpoint)
    mountpoint.rmdir()
    (work_dir,) = host.temporary.glob("cedanafs-restore-*")
    remove_log(work_dir / "lazy-pages.log")


def test_a_guard_that_is_killed_takes_the_process_with_it(
    host: Host, store: Path, start: StartWorkload
) -> None:
    work = start("memory", size_mib=LARGE_MIB)
    checkpoint = dumped(host, work, store)
    make_cold(checkpoint)
    with host.started(*lazily(host, checkpoint, "--wait")) as restore:
        poll(work.alive, "the restored process")
        work.wait_ticking()
        _, guard = the_supervisor_and_its_guard(host)
        os.kill(guard, signal.SIGKILL)
        _, err = restore.communicate(timeout=30)
    assert restore.returncode == 1, err
    assert f"process {work.pid} is killed" in err
    assert "the process that guards it has died" in err
    work.wait_gone()
    wait_for_the_rest(host)


def test_a_mount_whose_server_is_killed_takes_the_process_with_it(
    host: Host, store: Path, start: StartWorkload
) -> None:
    work = start("memory", size_mib=LARGE_MIB)
    with host.mounted(store) as mnt:
        images = dumped(host, work, mnt)
    make_cold(store / images.name)
    host.ok("mount", store, mnt)
    host.ok(*lazily(host, mnt / images.name))
    (server,) = host.servers(mnt)
    os.kill(server, signal.SIGKILL)
    work.wait_gone()
    poll(lambda: not host.running("lazy-pages") and not host.running("restore"), "the others' end")
    told = re.search(
        rf"process {work.pid} is killed.*lazy-pages.*; log: (.*)", host.log.read_text()
    )
    assert told
    remove_log(Path(told[1]))
    host.stock("umount", "--lazy", mnt)


def test_a_restore_that_fails_says_why(host: Host, store: Path, start: StartWorkload) -> None:
    work = start("memory", size_mib=4)
    host.ok("dump", "process", work.pid, "--dir", store, "--name", "x", "--leave-running")
    line = host.refused(5, *lazily(host, store / "x"), match="failed to restore")
    remove_log(Path(line.rpartition("log: ")[2]))
    work.wait_ticking()
    host.refused(3, *lazily(host, store), match="no checkpoint here")
    host.refused(2, "restore", "process", "--path", store / "x", "--wait", match="--lazy")


def remove_log(log: Path) -> None:
    """CRIU's, which is kept beside others of it where CRIU failed."""
    assert log.exists()
    for each in log.parent.iterdir():
        each.unlink()
    log.parent.rmdir()
