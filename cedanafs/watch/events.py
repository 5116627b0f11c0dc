"""What happens, for a program: a JSON object in each line, to a descriptor that it gave us."""

from __future__ import annotations

import fcntl
import json
import logging
import os
import select
import time
from datetime import UTC, datetime
from functools import partial
from typing import Final

from cedanafs.errors import UsageError
from cedanafs.shard.workers import Workers

logger = logging.getLogger(__name__)

END_S: Final = 2.0
"""How long the end waits for a reader that does not read."""


class EventLog:
    """Lines to descriptor *fd*, by a thread of its own: who reads slowly holds up no frozen task.

    docs/watching.md has the events. Raises: UsageError when *fd* is not open for writing.
    """

    def __init__(self, fd: int) -> None:
        try:
            mode = fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE
        except (OSError, OverflowError):
            raise UsageError(f"--progress-json {fd}: no such descriptor is open here") from None
        if mode == os.O_RDONLY:
            raise UsageError(f"--progress-json {fd}: that descriptor is open for reading only")
        if fd > 2:
            os.set_inheritable(fd, False)  # its end is ours
        self._fd = fd
        self._begun_s = time.monotonic()
        self._writer = Workers(0, name="cedanafs-events")
        self._broken = False

    def tell(self, event: str, **details: object) -> None:
        """Have the line written. Never waits."""
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        elapsed_s = round(time.monotonic() - self._begun_s, 3)
        line = json.dumps({"event": event, "time": now, "elapsed_s": elapsed_s} | details)
        self._writer.grow(1)  # not before: a lazy restore forks first
        self._writer.put(partial(self._write, f"{line}\n".encode()))

    def close(self) -> None:
        """Return when all is written, or nobody reads it."""
        self._writer.end(time.monotonic() + END_S)

    def _write(self, line: bytes) -> None:
        """On the thread."""
        while line and not self._broken:
            try:
                line = line[os.write(self._fd, line) :]
            except BlockingIOError:
                select.select([], [self._fd], [])
            except OSError as exc:
                self._broken = True
                logger.warning("--progress-json %d: %s", self._fd, exc.strerror)
