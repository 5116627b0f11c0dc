"""A tree of processes that is no workload of ours: started, dumped, restored, killed."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from pathlib import Path
from typing import Self

from host import Host, poll

from cedanafs.criu.tree import descendants


class Tree:
    """*command*, leading a session, with what it forks; killed at the end of the block."""

    def __init__(self, *command: object) -> None:
        null = subprocess.DEVNULL
        self._process = subprocess.Popen(
            [str(word) for word in command],
            stdin=null, stdout=null, stderr=null, cwd="/", start_new_session=True,
        )  # fmt: skip
        self.pid = self._process.pid

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        tree = self.pids()
        for pid in tree:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._wait_gone(tree)

    def pids(self) -> list[int]:
        """Of all that run."""
        return [self.pid, *descendants(self.pid)]

    def _wait_gone(self, pids: list[int]) -> None:
        def is_gone() -> bool:
            self._process.poll()  # a zombie of ours would keep its pid
            return not any(Path(f"/proc/{pid}").exists() for pid in pids)

        poll(is_gone, "its end")

    def through_dump_and_restore(self, host: Host, store: Path, *options: object) -> None:
        """Dumped and killed, restored as it was."""
        before = self.pids()
        dumped = host.ok("dump", "process", self.pid, "--dir", store, *options)
        self._process.wait(30)
        self._wait_gone(before)
        host.ok("verify", dumped.last_line)
        host.ok("restore", "process", "--path", dumped.last_line, *options)
        assert set(self.pids()) >= {self.pid}
