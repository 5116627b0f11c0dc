"""A container of runc's or crun's that counts: busybox in a directory, no image, no network.

with Container(host) as container:
    container.checkpoint(images)                # or "--leave-running", …
    container.restore(images)
"""

from __future__ import annotations

import json
import os
import subprocess
import time
import uuid
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, Final, Self

from host import Done, Host, poll

OTHERS: Final = 100_000
"""Who root of a user namespace is outside of it."""

COUNT: Final = "i=0; while true; do i=$((i+1)); echo $i >/count; sleep 0.02; done"


class Container:
    """Runs from its making to the end of the block.

    It has a pid, mount, ipc and uts namespace, and those in *namespaces*. *criu_config* is a file
    of CRIU's options, None: what runc's own file says. With a user namespace the *bundle*, a
    directory, must be one that others can reach. *runtime* is the program and what goes before it.
    With *attached* that stays, as `process`, with pipes to us for the streams of the *program*.
    """

    def __init__(
        self,
        host: Host,
        criu_binary: str,
        criu_config: str | None = "",
        *,
        namespaces: Collection[str] = (),
        bundle: Path | None = None,
        runtime: Sequence[object] = ("runc",),
        program: str = COUNT,
        attached: bool = False,
    ) -> None:
        self.id = f"cedanafs-{uuid.uuid4().hex[:8]}"
        self._host = host
        self._runtime = runtime
        self.bundle = self._bundle = bundle or host.make("bundle")
        self._work = host.make("criu-work")
        self._path = f"{Path(criu_binary).parent}:{os.environ['PATH']}"
        self._counter = self._bundle / "rootfs/count"
        self._attached = attached
        self.process: subprocess.Popen[str] | None = None
        self._make_bundle(criu_config, namespaces, program)

    def __enter__(self) -> Self:
        if self._attached:
            self.process = subprocess.Popen(
                [*map(str, self._runtime), "run", "-b", self._bundle, self.id],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env=self._host.environment(),
            )
            return self
        # Its streams must be no files of the host, and no pipes that wait for their end.
        with open(os.devnull, "r+b") as null:
            subprocess.run(
                [*map(str, self._runtime), "run", "-d", "-b", self._bundle, self.id],
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
        if self.process is not None:
            self.process.communicate(timeout=30)

    def checkpoint(self, images: Path, *options: str, work_path: bool = True) -> Done:
        """Without *work_path* CRIU's log goes to the images."""
        work = ["--work-path", self._work] if work_path else []
        return self._runc("checkpoint", "--image-path", images, *work, *options, self.id)

    def restore(self, images: Path, *options: str, work_path: bool = True) -> None:
        work = ["--work-path", self._work] if work_path else []
        with open(os.devnull, "r+b") as null:
            subprocess.run(
                [
                    *map(str, self._runtime), "restore", "-d", "-b", self._bundle,
                    "--image-path", images, *work, *options, self.id,
                ],
                stdin=null,
                stdout=null,
                stderr=null,
                check=True,
                env=self._host.environment(PATH=self._path),
            )  # fmt: skip

    def count(self) -> int:
        for _ in range(10):
            if text := self._counter.read_text() if self._counter.exists() else "":
                return int(text)
            time.sleep(0.005)  # it may be just being written
        return 0

    def wait_counting(self) -> None:
        """Wait until it counts, which it does only while it runs unharmed."""
        before = self.count()
        poll(lambda: self.count() > before, "counting")

    def is_running(self) -> bool:
        return self.state().get("status") == "running"

    def state(self) -> dict[str, Any]:
        """What `runc state` says; nothing where there is no such container."""
        done = self._runc("state", self.id)
        return dict(json.loads(done.stdout)) if done.code == 0 else {}

    def _runc(self, *arguments: object) -> Done:
        return self._host.shell(*self._runtime, *arguments, env={"PATH": self._path})

    def _make_bundle(
        self, criu_config: str | None, namespaces: Collection[str], program: str
    ) -> None:
        rootfs = self._bundle / "rootfs"
        (rootfs / "bin").mkdir(parents=True)
        (rootfs / "proc").mkdir()
        self._host.stock("cp", "/bin/busybox", rootfs / "bin")
        for name in ("sh", "sleep"):
            (rootfs / "bin" / name).symlink_to("busybox")
        self._host.stock("runc", "spec", cwd=self._bundle)
        path = self._bundle / "config.json"
        config = json.loads(path.read_text())
        config["process"] |= {"terminal": False, "args": ["/bin/sh", "-c", program]}
        config["process"].pop("rlimits", None)
        config["root"]["readonly"] = False
        if criu_config is not None:
            config_file = self._bundle / "criu.conf"
            config_file.write_text(criu_config)
            config["annotations"] = {"org.criu.config": str(config_file)}
        linux = config["linux"]
        linux["namespaces"] = [
            each for each in linux["namespaces"] if each["type"] not in ("network", "user")
        ] + [{"type": each} for each in namespaces]
        if "user" in namespaces:
            mapping = [{"containerID": 0, "hostID": OTHERS, "size": 65536}]
            linux |= {"uidMappings": mapping, "gidMappings": mapping}
            config["mounts"] = [
                each for each in config["mounts"] if each["type"] not in ("sysfs", "cgroup")
            ]
            self._host.stock("chown", "-R", f"{OTHERS}:{OTHERS}", rootfs)
        path.write_text(json.dumps(config))
