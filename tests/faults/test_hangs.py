"""A store that hangs: nobody waits for ever, and the tasks least of all.

A process that the kernel holds in a request to such a store cannot end before that does; what it
has to say, and whoever waits for it, does not depend on that.
"""

import shutil
import signal
import time
from pathlib import Path

import pytest
from disks import ext4_disk
from fault import Fault
from faulty import FaultyStore
from host import Host, StartWorkload, poll
from scene import EARLIER, MIB, Scene, complaint, forget_kept_logs, names

from cedanafs.fs.patience import SLOW_S

# CRIU is never far ahead of the store: when that hangs, CRIU soon waits in a write.
SIZE_MIB = 80
LIMITS = ("-c", "none", "--memory-limit", "32M")
TIMEOUT = ("--store-timeout", 2)
SILENT = "not answered|timed out"

HANGS = {
    "create": Fault("create", hang=True, after=1, where="/x/"),
    "write": Fault("write", hang=True, after_bytes=40 * MIB, where="/x/"),
    "one shard": Fault("write", hang=True, where="/x/img-2"),
    "index": Fault("fsync", hang=True, after=2, where="/x/"),
    "footers": Fault("fsync", hang=True, after_fsyncs=4, where="/x/"),
}


def written_bytes(checkpoint: Path) -> int:
    return sum(path.stat().st_size for path in checkpoint.glob("img-*"))


@pytest.mark.parametrize(
    ("where", "number"),
    [
        ("create", signal.SIGINT),
        ("write", signal.SIGINT),
        ("one shard", signal.SIGTERM),
        ("index", signal.SIGINT),
        ("footers", signal.SIGTERM),
    ],
)
def test_dump_into_a_store_that_hangs_is_called_off(
    host: Host,
    faulty: FaultyStore,
    start: StartWorkload,
    where: str,
    number: signal.Signals,
) -> None:
    scene = Scene(host, start, faulty.path, size_mib=SIZE_MIB)
    faulty.fail(HANGS[where])
    with host.started(*scene.dump(*LIMITS)) as dump, faulty.healed_at_the_end():
        poll(lambda: faulty.seen().hanging, "a store that hangs")
        time.sleep(2 * SLOW_S)
        dump.send_signal(number)
        assert complaint(dump) == "cedanafs: interrupted"
        scene.assert_unharmed()
        assert faulty.seen().hanging
        faulty.heal()
        dump.communicate(timeout=60)
    assert dump.returncode == 130
    assert_nothing_torn_is_left(host, scene, whole=where == "footers")
    scene.assert_earlier_whole()


@pytest.mark.parametrize("where", ["create", "one shard", "index"])
def test_dump_into_a_store_that_hangs_ends_by_itself(
    host: Host, faulty: FaultyStore, start: StartWorkload, where: str
) -> None:
    scene = Scene(host, start, faulty.path, size_mib=SIZE_MIB)
    faulty.fail(HANGS[where])
    with host.started(*scene.dump(*LIMITS, *TIMEOUT)) as dump, faulty.healed_at_the_end():
        line = complaint(dump)
        scene.assert_unharmed()
        assert faulty.seen().hanging
        faulty.heal()
        dump.communicate(timeout=60)
    assert dump.returncode == 4, line
    assert any(word in line for word in SILENT.split("|")), line
    assert_nothing_torn_is_left(host, scene)
    scene.assert_earlier_whole()
    shutil.rmtree(faulty.path / "x", ignore_errors=True)
    host.ok(*scene.dump())
    scene.assert_restores(faulty.path / "x")


def assert_nothing_torn_is_left(host: Host, scene: Scene, *, whole: bool = False) -> None:
    """What is left, as nobody could clean up, is known for what it is; *whole*: or is complete.

    A footer whose fsync hangs is there all the same.
    """
    if names(scene.store) == [EARLIER]:
        return
    if whole and host.run("verify", scene.store / "x").code == 0:
        return
    host.refused(3, "restore", "process", "--path", scene.store / "x", match="x")


@pytest.mark.parametrize("where", ["write", "footers"])
def test_dump_into_a_store_that_hangs_for_a_moment(
    host: Host, faulty: FaultyStore, start: StartWorkload, where: str
) -> None:
    scene = Scene(host, start, faulty.path, size_mib=SIZE_MIB)
    faulty.fail(HANGS[where])
    with host.started(*scene.dump(*LIMITS)) as dump, faulty.healed_at_the_end():
        poll(lambda: faulty.seen().hanging, "a store that hangs")
        time.sleep(1)
        faulty.heal()
        _, err = dump.communicate(timeout=60)
    assert dump.returncode == 0, err
    scene.assert_restores(faulty.path / "x")


def test_stock_criu_into_a_store_that_hangs(
    host: Host, faulty: FaultyStore, start: StartWorkload, criu_binary: str
) -> None:
    scene = Scene(host, start, faulty.path, size_mib=SIZE_MIB)
    with host.mounted(faulty.path, *LIMITS, *TIMEOUT) as mnt:
        (mnt / "x").mkdir()
        faulty.fail(HANGS["write"])
        dump = (criu_binary, "dump", "-D", mnt / "x", "-W", host.base, "-t", scene.process.pid)
        assert host.shell(*dump).code == 1
        scene.assert_unharmed()
        assert faulty.seen().hanging
        host.refused(4, "commit", mnt / "x", match=SILENT)
        faulty.heal()
        host.refused(4, "commit", mnt / "x", match=SILENT)  # it sticks
        shutil.rmtree(mnt / "x")
        (mnt / "x").mkdir()
        host.stock(*dump)
    scene.assert_restores(faulty.path / "x")
    scene.assert_earlier_whole()


@pytest.mark.parametrize(
    ("fault", "command"),
    [
        ("readdir", ("list", "{store}")),
        ("read", ("verify", "{store}/earlier")),
        ("open", ("restore", "process", "--path", "{store}/earlier")),
        ("mkdir", ("dump", "process", "{pid}", "--dir", "{store}")),
    ],
)
def test_who_looks_at_a_store_that_hangs(
    host: Host, faulty: FaultyStore, start: StartWorkload, fault: str, command: tuple[str, ...]
) -> None:
    scene = Scene(host, start, faulty.path, size_mib=2)
    faulty.fail(Fault(fault, hang=True))
    words = [word.format(store=faulty.path, pid=scene.process.pid) for word in command]
    with host.started(*words, *TIMEOUT) as look, faulty.healed_at_the_end():
        line = complaint(look)
        scene.assert_unharmed()
        assert faulty.seen().hanging
        faulty.heal()
        look.communicate(timeout=60)
    assert look.returncode == 4
    assert "has not answered for 2 s" in line
    scene.assert_earlier_whole()


def test_restore_from_a_store_that_hangs(
    host: Host, faulty: FaultyStore, start: StartWorkload
) -> None:
    scene = Scene(host, start, faulty.path, size_mib=SIZE_MIB)
    host.ok(*scene.dump(*LIMITS))
    scene.process.wait_gone()
    restore = ("restore", "process", "--path", faulty.path / "x", *TIMEOUT)
    faulty.fail(Fault("read", hang=True, after_bytes=40 * MIB, where="/x/"))
    with host.started(*restore) as restoring, faulty.healed_at_the_end():
        line = complaint(restoring)
        assert faulty.seen().hanging
        faulty.heal()
        restoring.communicate(timeout=60)
    forget_kept_logs(host)
    scene.assert_restores(faulty.path / "x")  # nothing of the first attempt is in its way
    assert restoring.returncode == 4, line
    assert any(word in line for word in SILENT.split("|")), line


def test_disk_that_is_frozen_in_a_dump(host: Host, start: StartWorkload) -> None:
    with ext4_disk(host, "disk", size_mib=300) as disk:
        scene = Scene(host, start, disk.path, size_mib=SIZE_MIB)
        with host.started(*scene.dump(*LIMITS, *TIMEOUT)) as dump:
            poll(lambda: written_bytes(disk.path / "x") > 20 * MIB, "written bytes")
            with disk.frozen():
                line = complaint(dump)
                scene.assert_unharmed()
            dump.communicate(timeout=60)
        assert dump.returncode == 4, line
        if (disk.path / "x").exists():
            host.refused(3, "restore", "process", "--path", disk.path / "x", match="x")
        scene.assert_earlier_whole()


def test_a_mount_says_what_it_does_while_its_store_hangs(host: Host, faulty: FaultyStore) -> None:
    with host.mounted(faulty.path, "--stream", 2, "-c", "none") as mnt:
        (mnt / "x").mkdir()
        faulty.fail(Fault("write", hang=True, where="/x/"))
        with faulty.healed_at_the_end():
            (mnt / "x/a.img").write_bytes(bytes(8 * MIB))
            poll(lambda: faulty.seen().hanging, "a store that hangs")
            shown = host.ok("stat", mnt).stdout
            assert "8.0 MiB taken, 0 B landed" in shown
            assert "x           not durable" in shown
