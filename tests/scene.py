"""What every fault is tried on: a process to dump, beside a checkpoint that must survive."""

from __future__ import annotations

import os
import select
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

from host import Host, StartWorkload
from workloads import Workload

MIB = 1 << 20
EARLIER = "earlier"


class Scene:
    """A store with the checkpoint `earlier` in it, and a process that runs."""

    def __init__(
        self, host: Host, start: StartWorkload, store: Path, *, size_mib: int = 24
    ) -> None:
        self.store = store
        self._host = host
        self._gone = start("memory", size_mib=2)
        self._told = self._gone.ask()
        host.ok("dump", "process", self._gone.pid, "--dir", store, "--name", EARLIER)
        self._gone.wait_gone()
        self.process: Workload = start("memory", size_mib=size_mib)
        self._shape = self.process.fingerprint()
        self._digest = self.process.ask()["digest"]

    def dump(self, *options: object) -> tuple[object, ...]:
        """The arguments for a dump of the process as the checkpoint `x`."""
        return ("dump", "process", self.process.pid, "--dir", self.store, "--name", "x", *options)

    def assert_unharmed(self) -> None:
        """The process runs, and is what it was."""
        self.process.wait_ticking()
        assert self.process.fingerprint() == self._shape
        assert self.process.ask()["digest"] == self._digest

    def assert_restores(self, checkpoint: Path) -> None:
        """The process is gone, and *checkpoint* is all of it."""
        self.process.wait_gone()
        self._host.ok("verify", checkpoint)
        self._restored(checkpoint, self.process, {"digest": self._digest})

    def assert_earlier_whole(self, store: Path | None = None) -> None:
        """The earlier checkpoint is what it was, down to the process in it."""
        checkpoint = (store or self.store) / EARLIER
        self._host.ok("verify", checkpoint)
        self._restored(checkpoint, self._gone, self._told)

    def _restored(self, checkpoint: Path, work: Workload, told: dict[str, Any]) -> None:
        self._host.ok("restore", "process", "--path", checkpoint)
        work.wait_ticking()
        assert work.ask()["digest"] == told["digest"]


def names(directory: Path) -> list[str]:
    """What lies in *directory*."""
    return sorted(os.listdir(directory))


def forget_kept_logs(host: Host) -> None:
    """CRIU's logs, which are kept for their reader where CRIU is to blame."""
    for kept in host.temporary.iterdir():
        shutil.rmtree(kept)


def complaint(process: subprocess.Popen[str]) -> str:
    """Its error line, as soon as that comes; the process may not be able to end."""
    assert process.stderr is not None
    said = b""
    deadline = time.monotonic() + 60
    while not any(line.startswith(b"cedanafs: ") for line in said.split(b"\n")[:-1]):
        assert time.monotonic() < deadline, said
        if select.select([process.stderr], [], [], 1)[0]:
            some = os.read(process.stderr.fileno(), 1 << 16)
            assert some, said
            said += some
    return said.decode().splitlines()[-1]
