"""A podman of a test's own, on runc, with one container that counts: no registry, no network.

with Podman(host, criu_binary) as podman:
    podman.ok("container", "checkpoint", podman.container)
"""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import Final, Self

from host import Done, Host, poll

_PROGRAM: Final = "i=0; while true; do i=$((i+1)); echo $i >/count; sleep 0.02; done"

# Its own storage, nothing of systemd's, and runc as it is where CRIU is known to work.
_WRAPPER: Final = """#!/bin/sh
exec /usr/bin/podman --root {base}/root --runroot {base}/run --tmpdir {base}/tmp \
    --storage-driver vfs --runtime {runc} --cgroup-manager=cgroupfs --events-backend=file "$@"
"""


class Podman:
    """Runs from its making to the end of the block."""

    container: Final = "counter"

    def __init__(self, host: Host, criu_binary: str) -> None:
        self._host = host
        # Podman takes no path of more than 50 characters there.
        self._base = Path(tempfile.mkdtemp(prefix="pod", dir="/tmp"))
        runc = shutil.which("runc", path=f"{os.environ['PATH']}:/usr/sbin")
        assert runc is not None, "there is no runc"
        self.path = f"{self._base}/bin:{Path(criu_binary).parent}:{os.environ['PATH']}"
        (self._base / "bin").mkdir()
        wrapper = self._base / "bin/podman"
        wrapper.write_text(_WRAPPER.format(base=self._base, runc=runc))
        wrapper.chmod(0o755)

    def __enter__(self) -> Self:
        rootfs = self._base / "rootfs"
        (rootfs / "bin").mkdir(parents=True)
        shutil.copy("/bin/busybox", rootfs / "bin")
        for name in ("sh", "sleep"):
            (rootfs / "bin" / name).symlink_to("busybox")
        self._host.stock("tar", "-C", rootfs, "-cf", self._base / "rootfs.tar", "bin")
        self.ok("import", self._base / "rootfs.tar", "counting")
        self.ok(
            "run", "--detach", "--name", self.container, "--network=none",
            "--ulimit", "nofile=1024:1024", "--ulimit", "nproc=4096:4096",
            "counting", "/bin/sh", "-c", _PROGRAM,
        )  # fmt: skip
        self.wait_counting()
        return self

    def __exit__(self, *_: object) -> None:
        self._run("rm", "--all", "--force", "--time", "0")
        # Podman's own clean-up, which the container's end starts, may still write there.
        poll(self._removed, "the end of podman's clean-up")

    def _removed(self) -> bool:
        shutil.rmtree(self._base, ignore_errors=True)
        return not self._base.exists()

    def ok(self, *arguments: object) -> Done:
        done = self._run(*arguments)
        assert done.code == 0, done
        return done

    def count(self) -> int:
        """0 while it does not run."""
        while True:
            said = self._run("exec", self.container, "/bin/sh", "-c", "read i </count; echo $i")
            if said.code != 0:
                return 0
            if said.stdout.strip():  # else it was just being written
                return int(said.stdout)

    def wait_counting(self) -> None:
        """Wait until it counts."""
        before = self.count()
        poll(lambda: self.count() > before, "counting")

    def state(self) -> str:
        return self.ok("inspect", "--format", "{{.State.Status}}", self.container).stdout.strip()

    def images_of(self) -> Path:
        """Where podman has CRIU write: fixed, below its storage."""
        directory = self.ok("inspect", "--format", "{{.StaticDir}}", self.container).stdout.strip()
        return Path(directory) / "checkpoint"

    def _run(self, *arguments: object) -> Done:
        return self._host.shell("podman", *arguments, env={"PATH": self.path})
