"""A stock container runtime under the two barriers: `--durable`, and the action script."""

from __future__ import annotations

import errno
import os
import signal
import sys
from pathlib import Path

import pytest
from container import Container
from fault import Fault
from faulty import FaultyStore
from host import Host

HOOK = f"action-script {Path(sys.executable).parent}/cedanafs-post-dump\n"

barriers = pytest.mark.parametrize(
    ("mount_option", "criu_config"), [(["--durable"], ""), ([], HOOK)], ids=["durable", "hook"]
)


@barriers
def test_a_container_ends_only_when_its_checkpoint_is_there(
    host: Host, store: Path, criu_binary: str, mount_option: list[str], criu_config: str
) -> None:
    with Container(host, criu_binary, criu_config) as container:
        with host.mounted(store, *mount_option) as mnt:
            done = container.checkpoint(mnt / "c")
            assert done.code == 0, done
            counted = container.count()
            for server in host.servers(mnt):
                os.kill(server, signal.SIGKILL)
            host.ok("umount", mnt)
        assert not container.is_running()
        with host.mounted(store, "--read-only") as mnt:
            container.restore(mnt / "c")
            container.wait_counting()
            assert container.count() > counted


@barriers
def test_a_container_outlives_a_store_that_fails(
    host: Host, faulty: FaultyStore, criu_binary: str, mount_option: list[str], criu_config: str
) -> None:
    with (
        Container(host, criu_binary, criu_config) as container,
        host.mounted(faulty.path, *mount_option) as mnt,
    ):
        faulty.fail(Fault("fsync", error=errno.EIO))
        assert container.checkpoint(mnt / "c").code != 0
        assert container.is_running()
        container.wait_counting()
        faulty.heal()
        host.stock("rm", "-r", mnt / "c")
