"""A runc container that counts: busybox in a directory, no image, no network of its own.

with Container(host) as container:
    container.checkpoint(images)                # or "--leave-running", …
    container.restore(images)
"""

from __future__ import annotations

import json
import os
import subprocess
import uuid
from pathlib import Path
from typing import Final, Self

from host import Done, Host, poll

_PROGRAM: Final = "i=0; while true; do i=$((i+1)); echo $i >/count; sleep 0.02; done"


class Container:
    """Runs from its making to the end of the block; *criu_config* is a file of CRIU's options."""

    def __init__(self, host: Host, criu_binary: str, criu_config: str = "") -> None:
        self.id = f"cedanafs-{uuid.uuid4().hex[:8]}"
        self._host = host
        self._bundle = host.make("bundle")
        self._work = host.make("criu-work")
        self._path = f"{Path(criu_binary).parent}:{os.environ['PATH']}"
        self._counter = self._bundle / "rootfs/count"
        self._make_bundle(criu_config)

    def __enter__(self) -> Self:
        # Its streams must be no files of the host, and no pipes that wait for their end.
        with open(os.devnull, "r+b") as null:
            subprocess.run(
                ["runc", "run", "-d", "-b", self._bundle, self.id],
                stdin=null,
                stdout=null,
                stderr=null,
                check=True,
                env=self._host.environment(),
            )
        self.wait_counting()
        return self

    def __exit__(self, *_: object) -> None:
        self._runc("delete", "--force", self.id)

    def checkpoint(self, images: Path, *options: str) -> Done:
        return self._runc(
            "checkpoint", "--image-path", images, "--work-path", self._work, *options, self.id
        )

    def restore(self, images: Path) -> None:
        with open(os.devnull, "r+b") as null:
            subprocess.run(
                [
                    "runc", "restore", "-d", "-b", self._bundle,
                    "--image-path", images, "--work-path", self._work, self.id,
                ],
                stdin=null,
                stdout=null,
                stderr=null,
                check=True,
                env=self._host.environment(PATH=self._path),
            )  # fmt: skip

    def count(self) -> int:
        return int(self._counter.read_text() or 0) if self._counter.exists() else 0

    def wait_counting(self) -> None:
        """Wait until it counts, which it does only while it runs unharmed."""
        before = self.count()
        poll(lambda: self.count() > before, "counting")

    def is_running(self) -> bool:
        done = self._runc("state", self.id)
        return done.code == 0 and json.loads(done.stdout)["status"] == "running"

    def _runc(self, *arguments: object) -> Done:
        return self._host.shell("runc", *arguments, env={"PATH": self._path})

    def _make_bundle(self, criu_config: str) -> None:
        binaries = self._bundle / "rootfs/bin"
        binaries.mkdir(parents=True)
        (self._bundle / "rootfs/proc").mkdir()
        self._host.stock("cp", "/bin/busybox", binaries)
        for name in ("sh", "sleep"):
            (binaries / name).symlink_to("busybox")
        config_file = self._bundle / "criu.conf"
        config_file.write_text(criu_config)
        self._host.stock("runc", "spec", cwd=self._bundle)
        path = self._bundle / "config.json"
        config = json.loads(path.read_text())
        config["process"] |= {"terminal": False, "args": ["/bin/sh", "-c", _PROGRAM]}
        config["process"].pop("rlimits", None)
        config["root"]["readonly"] = False
        config["annotations"] = {"org.criu.config": str(config_file)}
        config["linux"]["namespaces"] = [
            each for each in config["linux"]["namespaces"] if each["type"] != "network"
        ]
        path.write_text(json.dumps(config))
