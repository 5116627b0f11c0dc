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
from host import Host, poll

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


def test_dump_runc_into_a_store_that_fails(
    host: Host, faulty: FaultyStore, criu_binary: str
) -> None:
    with Container(host, criu_binary) as container:
        for fault in (Fault("fsync", error=errno.EIO), Fault("write", error=errno.ENOSPC)):
            faulty.fail(fault)
            dump = ("dump", "runc", container.id, "--dir", faulty.path, "--name", "x")
            host.refused(4, *dump, match=os.strerror(fault.error))
            assert container.is_running()
            container.wait_counting()
            faulty.heal()
        host.ok("dump", "runc", container.id, "--dir", faulty.path, "--name", "x")


def test_dump_runc_that_is_interrupted(host: Host, faulty: FaultyStore, criu_binary: str) -> None:
    """While the container is frozen, and its checkpoint waits for the store."""
    with Container(host, criu_binary) as container:
        faulty.fail(Fault("fsync", hang=True, where="/x/"))
        with (
            host.started("dump", "runc", container.id, "--dir", faulty.path, "--name", "x") as dump,
            faulty.healed_at_the_end(),
        ):
            poll(lambda: faulty.seen().hanging, "a store that hangs")
            dump.send_signal(signal.SIGINT)
            poll(container.is_running, "the container")
            container.wait_counting()
            faulty.heal()
            _, err = dump.communicate(timeout=60)
        assert (dump.returncode, err.splitlines()[-1]) == (130, "cedanafs: interrupted")
        assert container.is_running()


def test_plain_images_of_a_dump_that_is_interrupted(
    host: Host, store: Path, criu_binary: str
) -> None:
    """Nothing fails there by itself: CRIU is told no when it asks."""
    with Container(host, criu_binary) as container:
        dump = ("dump", "runc", container.id, "--dir", store, "--name", "x", "--stream", 0)
        with host.started(*dump) as process:
            poll(lambda: list(store.iterdir()), "the dump")
            process.send_signal(signal.SIGINT)
            process.communicate(timeout=60)
        assert process.returncode == 130
        assert container.is_running()
        container.wait_counting()
        assert not list(store.iterdir())


@pytest.mark.parametrize("option", [[], ["--for", "runc"]], ids=["for all", "for runc"])
def test_the_hook_that_is_installed_holds_for_every_container(
    host: Host, faulty: FaultyStore, criu_binary: str, criu_config: Path, option: list[str]
) -> None:
    """With no annotation of its own, and no option."""
    with Container(host, criu_binary, None) as container:
        host.ok("hook", "install", *option)
        assert outcome(host, container, faulty, "a") != 0
        assert container.is_running()
        container.wait_counting()
        host.ok("hook", "remove")
        assert not list(criu_config.iterdir())
        assert outcome(host, container, faulty, "b") == 0, "the fault was felt without the hook"


def outcome(host: Host, container: Container, faulty: FaultyStore, name: str) -> int:
    """Of a checkpoint whose commit fails."""
    with host.mounted(faulty.path) as mnt:
        faulty.fail(Fault("fsync", error=errno.EIO))
        code = container.checkpoint(mnt / name).code
        faulty.heal()
        host.stock("rm", "-r", mnt / name)
    return code
