"""--spill: the tasks do not wait for a slow store, and their death does."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from fault import Fault
from faulty import FaultyStore
from host import Host, StartWorkload, poll
from scene import MIB, Scene, complaint

LIMITS = ("-c", "none", "--memory-limit", "32M")
TAKEN = 8 * MIB
HANGS = Fault("write", hang=True, after_bytes=TAKEN, where="/x/")


def in_store(faulty: FaultyStore) -> int:
    return sum(path.stat().st_size for path in (faulty.backing / "x").glob("img-*"))


@pytest.mark.parametrize("mode", ["--leave-running", "--kill"])
def test_the_dump_is_over_before_the_store_has_it(
    host: Host, faulty: FaultyStore, start: StartWorkload, mode: str
) -> None:
    scene = Scene(host, start, faulty.path, size_mib=64)
    spill = host.make("spill")
    faulty.fail(HANGS)
    with (
        faulty.healed_at_the_end(),
        host.started(*scene.dump(*LIMITS, "--spill", spill, mode)) as dump,
    ):
        poll(host.criu_wrote_all, "CRIU's last image")
        assert in_store(faulty) <= TAKEN
        if mode == "--leave-running":
            scene.assert_unharmed()
        assert scene.process.alive()
        assert dump.poll() is None, "it is not durable"
        assert os.listdir(spill) == []
        faulty.heal()
        _, said = dump.communicate(timeout=60)
        assert dump.returncode == 0, said
    if mode == "--leave-running":
        scene.assert_unharmed()
        scene.process.kill()
    scene.assert_restores(faulty.path / "x")


def test_what_is_spilled_and_never_taken_fails_the_dump(
    host: Host, faulty: FaultyStore, start: StartWorkload
) -> None:
    scene = Scene(host, start, faulty.path, size_mib=64)
    faulty.fail(HANGS)
    options = ("--spill", host.make("spill"), "--store-timeout", 2)
    with host.started(*scene.dump(*LIMITS, *options)) as dump, faulty.healed_at_the_end():
        line = complaint(dump)
        scene.assert_unharmed()
        faulty.heal()
        dump.communicate(timeout=60)
    assert dump.returncode == 4, line
    assert "has not answered" in line
    scene.assert_earlier_whole()


def test_a_full_spill_is_back_pressure(
    host: Host, faulty: FaultyStore, start: StartWorkload
) -> None:
    scene = Scene(host, start, faulty.path, size_mib=64)
    with host.small_disk("spill", 32) as spill:
        faulty.fail(HANGS)
        with (
            faulty.healed_at_the_end(),
            host.started(*scene.dump(*LIMITS, "--spill", spill)) as dump,
        ):
            assert dump.stderr is not None
            line = next(line for line in dump.stderr if "--spill" in line)
            assert "takes no more" in line
            assert str(spill) in line
            assert not host.criu_wrote_all()
            faulty.heal()
            _, said = dump.communicate(timeout=60)
            assert dump.returncode == 0, said
    scene.assert_restores(faulty.path / "x")


def test_a_mount_takes_what_the_store_does_not(host: Host, faulty: FaultyStore) -> None:
    source = host.base / "source"
    source.write_bytes(os.urandom(64 * MIB))
    spill = host.make("spill")
    with host.mounted(faulty.path, *LIMITS, "--spill", spill) as mnt:
        (mnt / "x").mkdir()
        faulty.fail(HANGS)
        with faulty.healed_at_the_end():
            host.stock("cp", source, mnt / "x/pages-1.img")
            assert in_store(faulty) <= TAKEN
            assert (mnt / "x/pages-1.img").stat().st_size == 64 * MIB
        host.stock("cmp", source, mnt / "x/pages-1.img")
    host.ok("verify", faulty.path / "x")
    host.ok("extract", faulty.path / "x", host.base / "out")
    host.stock("cmp", source, host.base / "out/pages-1.img")


def test_a_spill_that_cannot_be_used_is_named(host: Host, store: Path) -> None:
    mountpoint = host.make("mnt")
    for spill in (host.base / "none", Path("/proc")):
        host.refused(
            2, "mount", store, mountpoint, "--log-file", host.log, "--spill", spill,
            match=f"--spill {spill}",
        )  # fmt: skip
