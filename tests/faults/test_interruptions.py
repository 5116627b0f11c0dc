"""Somebody ends something in the middle of a dump: the server, CRIU, the mount."""

import os
import signal
from pathlib import Path

import psutil
import pytest
from fault import Fault
from faulty import faulty_store
from host import Host, StartWorkload, is_mounted, poll
from scene import EARLIER, MIB, Scene, forget_kept_logs, names

# CRIU is never far ahead of the store: when that has so many bytes, it is in the middle.
SIZE_MIB = 160
LIMITS = ("-c", "none", "--memory-limit", "32M")
ENOUGH = 8 * MIB


def written_bytes(checkpoint: Path) -> int:
    return sum(path.stat().st_size for path in checkpoint.glob("img-*"))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
def test_server_ends_in_a_dump_by_stock_criu(
    host: Host, store: Path, start: StartWorkload, criu_binary: str, number: signal.Signals
) -> None:
    scene = Scene(host, start, store, size_mib=SIZE_MIB)
    with host.mounted(store, *LIMITS) as mnt:
        (mnt / "x").mkdir()
        dump = (criu_binary, "dump", "-D", mnt / "x", "-W", host.base, "-t", scene.process.pid)
        with host.started_program(*dump) as criu:
            poll(lambda: written_bytes(store / "x") > ENOUGH, "written bytes")
            (server,) = host.servers(mnt)
            os.kill(server, number)
            criu.communicate(timeout=60)
        assert criu.returncode == 1
        scene.assert_unharmed()
        host.wait_for_servers(mnt)
        assert is_mounted(mnt) == (number == signal.SIGKILL)  # the others unmount
        if is_mounted(mnt):
            host.ok("umount", mnt)
    assert "incomplete" in host.run("list", store).stdout
    host.refused(3, "restore", "process", "--path", store / "x", match="no commit|no inventory")
    scene.assert_earlier_whole()
    with host.mounted(store, at=mnt):  # over what is left
        host.stock(*dump)
    scene.assert_restores(store / "x")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_server_ends_in_a_dump_by_cedanafs(
    host: Host, store: Path, start: StartWorkload, number: signal.Signals
) -> None:
    scene = Scene(host, start, store, size_mib=SIZE_MIB)
    with host.mounted(store, *LIMITS) as mnt:
        with host.started(*scene.dump()) as dump:
            poll(lambda: written_bytes(store / "x") > ENOUGH, "written bytes")
            (server,) = host.servers(mnt)
            os.kill(server, number)
            out, err = dump.communicate(timeout=60)
        assert (dump.returncode, out) == (4, ""), err
        assert err.splitlines()[-1].startswith(
            f"cedanafs: process {scene.process.pid} is not dumped"
        )
        scene.assert_unharmed()
        host.wait_for_servers(mnt)
        if is_mounted(mnt):
            host.ok("umount", mnt)
    host.refused(3, "restore", "process", "--path", store / "x", match="no commit|no inventory")
    scene.assert_earlier_whole()
    host.ok(*scene.dump())
    scene.assert_restores(store / "x")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_dump_into_a_mount_is_called_off(
    host: Host, store: Path, start: StartWorkload, number: signal.Signals
) -> None:
    scene = Scene(host, start, store, size_mib=SIZE_MIB)
    with host.mounted(store, *LIMITS) as mnt:
        with host.started(*scene.dump()) as dump:
            poll(lambda: written_bytes(store / "x") > ENOUGH, "written bytes")
            dump.send_signal(number)
            out, err = dump.communicate(timeout=60)
        assert (dump.returncode, out) == (130, ""), err
        assert err.splitlines()[-1] == "cedanafs: interrupted"
        scene.assert_unharmed()
        assert names(mnt) == names(store) == [EARLIER]
        host.ok(*scene.dump())
    scene.assert_restores(store / "x")
    scene.assert_earlier_whole()


def test_criu_is_killed(host: Host, store: Path, start: StartWorkload, criu_binary: str) -> None:
    """What becomes of the process is CRIU's affair. Its half of a checkpoint is known as such."""
    scene = Scene(host, start, store, size_mib=SIZE_MIB)
    other = start("memory", size_mib=4)
    digest = other.ask()["digest"]
    with host.mounted(store, *LIMITS) as mnt:
        (mnt / "x").mkdir()
        dump = (criu_binary, "dump", "-D", mnt / "x", "-W", host.base, "-t", scene.process.pid)
        with host.started_program(*dump) as criu:
            poll(lambda: written_bytes(store / "x") > ENOUGH, "written bytes")
            criu.kill()
            criu.communicate(timeout=60)
        host.ok("commit", mnt / "x")  # of what there is
        listed = host.run("list", store)
        assert [line.split()[:2] for line in listed.stdout.splitlines()[1:]] == [
            [EARLIER, "complete"],
            ["x", "incomplete"],
        ]
        host.refused(3, "restore", "process", "--path", store / "x", match=r"no inventory\.img")
        host.ok("dump", "process", other.pid, "--dir", mnt, "--name", "other")
        other.wait_gone()
    host.ok("restore", "process", "--path", store / "other")
    other.wait_ticking()
    assert other.ask()["digest"] == digest
    scene.assert_earlier_whole()


def test_dump_is_killed_while_it_commits(host: Host, start: StartWorkload) -> None:
    """It waits for the store, and for nothing of its own that its end would take with it."""
    with faulty_store(host) as faulty:
        scene = Scene(host, start, faulty.path)
        faulty.fail(Fault("fsync", hang=True, times=1, where="/x/img-"))
        with host.started(*scene.dump()) as dump:
            faulty.wait_for_fault()
            dump.kill()
            faulty.heal()
            dump.communicate(timeout=20)
        scene.assert_unharmed()
        (stale,) = host.own_mounts()
        host.ok("umount", stale)
        stale.rmdir()
        forget_kept_logs(host)
        host.ok(*scene.dump())
        scene.assert_restores(faulty.path / "x")
        scene.assert_earlier_whole()


def test_criu_of_cedanafs_is_killed(host: Host, store: Path, start: StartWorkload) -> None:
    scene = Scene(host, start, store, size_mib=SIZE_MIB)
    with host.started(*scene.dump(*LIMITS)) as dump:
        poll(lambda: written_bytes(store / "x") > ENOUGH, "written bytes")
        (criu,) = psutil.Process(dump.pid).children()
        criu.kill()
        out, err = dump.communicate(timeout=60)
    assert (dump.returncode, out) == (5, ""), err
    assert "criu ended without an answer" in err.splitlines()[-1]
    forget_kept_logs(host)
    assert names(store) == [EARLIER]
    scene.assert_earlier_whole()


def test_image_that_was_begun_when_the_server_ended_is_begun_anew(host: Host, store: Path) -> None:
    with host.mounted(store) as mnt:
        (mnt / "x").mkdir()
        (mnt / "x/inventory.img").write_bytes(b"inventory")
        (mnt / "x/files.img").touch()
        still_open = os.open(mnt / "x/files.img", os.O_WRONLY)
        host.ok("commit", mnt / "x")
        for server in host.servers(mnt):
            os.kill(server, signal.SIGKILL)
        host.wait_for_servers(mnt)
        with pytest.raises(OSError, match=r"not connected|connection abort"):
            os.close(still_open)
        host.ok("umount", mnt)
    host.refused(3, "restore", "process", "--path", store / "x", match=r"cut short .*files\.img")
    with host.mounted(store) as mnt:
        (mnt / "x/files.img").write_bytes(b"files")
    assert host.ok("inspect", store / "x").stdout.startswith(f"{store / 'x'}: complete")


def test_umount_in_a_dump(host: Host, store: Path, start: StartWorkload, criu_binary: str) -> None:
    """It is refused, and the dump goes on to a good end."""
    scene = Scene(host, start, store, size_mib=SIZE_MIB)
    with host.mounted(store, *LIMITS) as mnt:
        (mnt / "x").mkdir()
        dump = (criu_binary, "dump", "-D", mnt / "x", "-W", host.base, "-t", scene.process.pid)
        with host.started_program(*dump) as criu:
            poll(lambda: written_bytes(store / "x") > ENOUGH, "written bytes")
            criu.send_signal(signal.SIGSTOP)
            host.refused(2, "umount", mnt, match="busy")
            assert host.shell("umount", mnt).code != 0
            criu.send_signal(signal.SIGCONT)
            criu.communicate(timeout=60)
        assert criu.returncode == 0
    scene.assert_restores(store / "x")
    scene.assert_earlier_whole()
