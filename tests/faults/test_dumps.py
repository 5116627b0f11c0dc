"""`cedanafs dump` into a store that fails: the process runs on, and one line says why, with 4."""

import errno
import itertools
import os
import shutil
from dataclasses import replace

import pytest
from fault import Fault
from faulty import FaultyStore
from host import Host, StartWorkload
from scene import EARLIER, MIB, Scene, forget_kept_logs, names

NEW = "/x/"  # in the checkpoint that is being made, not in the earlier one
STREAM = ("--stream", 4, "-c", "none")  # all bytes reach the store: 24 MiB and more

FAULTS = {
    "begin": [
        Fault("mkdir", errno.EROFS),
        Fault("mkdir", errno.EDQUOT),
        Fault("write", errno.EIO, where=NEW),
        Fault("write", errno.EIO, times=1, where=NEW),
    ],
    "middle": [
        Fault("write", errno.ENOSPC, after_bytes=12 * MIB, where=NEW),
        Fault("write", errno.EDQUOT, after_bytes=3 * MIB, where="/x/img-2"),
        Fault("write", errno.EROFS, after_bytes=12 * MIB, where=NEW),
        Fault("write", errno.EIO, after_bytes=4 * MIB, times=2, where="/x/img-1"),
        Fault("write", errno.ENOSPC, after_bytes=24 * MIB, where=NEW),
    ],
    "commit": [
        Fault("fsync", errno.EIO, where=NEW),
        Fault("fsync", errno.EIO, after=3, times=1, where=NEW),
        Fault("fsync", errno.EDQUOT, where=NEW),
        Fault("write", errno.ENOSPC, after_fsyncs=4, where=NEW),
        Fault("write", errno.EIO, after_fsyncs=1, times=1, where="/x/img-1"),
    ],
}


@pytest.mark.parametrize("phase", FAULTS)
def test_dump_into_a_store_that_fails(
    host: Host, faulty: FaultyStore, start: StartWorkload, phase: str
) -> None:
    scene = Scene(host, start, faulty.path)
    for fault, leave in itertools.product(FAULTS[phase], ["--kill", "--leave-running"]):
        faulty.fail(fault)
        host.refused(4, *scene.dump(*STREAM, leave), match=os.strerror(fault.error))
        assert faulty.seen().met, fault
        scene.assert_unharmed()
        faulty.heal()
        assert names(faulty.backing) == [EARLIER], fault
        host.ok("verify", faulty.path / EARLIER)
    scene.assert_earlier_whole()
    host.ok(*scene.dump(*STREAM))  # what is healed works as ever
    scene.assert_restores(faulty.path / "x")


def test_dump_over_an_earlier_one_into_a_store_that_fails(
    host: Host, faulty: FaultyStore, start: StartWorkload
) -> None:
    """The earlier one, which has the same name, stays what the checkpoint is."""
    scene = Scene(host, start, faulty.path)
    over = ("dump", "process", scene.process.pid, "--dir", faulty.path, "--name", EARLIER)
    for fault in FAULTS["middle"][:2] + FAULTS["commit"]:
        here = replace(fault, where=fault.where.replace("/x/", f"/{EARLIER}/"))
        faulty.fail(here)
        host.refused(4, *over, match=os.strerror(fault.error))
        assert faulty.seen().met, fault
        scene.assert_unharmed()
        faulty.heal()
        host.ok("verify", faulty.path / EARLIER)
    scene.assert_earlier_whole()


def test_dump_where_each_write_takes_only_some_of_the_bytes(
    host: Host, faulty: FaultyStore, start: StartWorkload
) -> None:
    scene = Scene(host, start, faulty.path)
    faulty.fail(Fault("write", short=70_001), Fault("read", short=50_003))
    host.ok(*scene.dump())
    scene.assert_restores(faulty.path / "x")
    scene.assert_earlier_whole()
    assert len(faulty.seen().met) > 100


def test_store_that_fails_once_the_process_is_gone(
    host: Host, faulty: FaultyStore, start: StartWorkload
) -> None:
    """What fails behind the commit costs CRIU's log and statistics, which is no failed dump."""
    scene = Scene(host, start, faulty.path)
    for fault in (
        Fault("write", errno.ENOSPC, after_fsyncs=8, where=NEW),
        Fault("fsync", errno.EIO, after_fsyncs=8, times=1, where=NEW),
    ):
        faulty.fail(fault)
        done = host.run(*scene.dump())
        assert faulty.seen().met, fault
        faulty.heal()
        assert done.code == 0, done
        assert done.last_line == str(faulty.path / "x")
        assert [line.partition(",")[0] for line in done.complaints] == [
            "warning: the checkpoint is safe"
        ], done
        scene.assert_restores(faulty.path / "x")
        shutil.rmtree(faulty.path / "x")


@pytest.mark.parametrize("operation", ["create", "fsyncdir"])
def test_dump_whose_shards_cannot_be_made(
    host: Host, faulty: FaultyStore, start: StartWorkload, operation: str
) -> None:
    scene = Scene(host, start, faulty.path)
    faulty.fail(Fault(operation, errno.EDQUOT, where="/x"))
    done = host.run(*scene.dump())
    assert faulty.seen().met
    scene.assert_unharmed()
    faulty.heal()
    assert names(faulty.backing) == [EARLIER]
    forget_kept_logs(host)
    assert done.code == 4, done


def test_restore_from_a_store_that_fails(
    host: Host, faulty: FaultyStore, start: StartWorkload
) -> None:
    scene = Scene(host, start, faulty.path)
    host.ok(*scene.dump(*STREAM))
    scene.process.wait_gone()
    faulty.fail(Fault("read", errno.EIO, after_bytes=12 * MIB, where=NEW))
    done = host.run("restore", "process", "--path", faulty.path / "x")
    assert faulty.seen().met
    faulty.heal()
    forget_kept_logs(host)
    scene.assert_restores(faulty.path / "x")
    assert done.code == 4, done
