"""podman: its fixed images directory is a link into a mount. Its commands: docs/drivers.md."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from host import Host
from podman import Podman


def test_a_checkpoint_goes_into_the_mount(host: Host, store: Path, criu_binary: str) -> None:
    """When podman has ended it is durable; the server is killed at once."""
    with Podman(host, criu_binary) as podman:
        with host.mounted(store, "--durable") as mnt:
            (mnt / "web").mkdir()
            podman.images_of().symlink_to(mnt / "web")
            counted = podman.count()
            podman.ok("container", "checkpoint", podman.container)
            for server in host.servers(mnt):
                os.kill(server, signal.SIGKILL)
            host.ok("umount", mnt)
        assert podman.state() == "exited"
        assert "every byte is right" in host.ok("verify", store / "web").stdout
        podman.images_of().unlink()
        with host.mounted(store, "--read-only") as mnt:
            podman.images_of().symlink_to(mnt / "web")
            podman.ok("container", "restore", "--keep", podman.container)
            podman.wait_counting()
            assert podman.count() > counted
