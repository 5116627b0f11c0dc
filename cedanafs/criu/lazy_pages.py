"""CRIU's lazy-pages daemon, supervised: it gives restored tasks the memory that they touch."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import trio

from cedanafs.criu import logfile
from cedanafs.criu.guard import check_can_hold, userfaultfds
from cedanafs.criu.worker import cannot_start
from cedanafs.errors import CriuError

LAZY_PAGES_LOG: Final = "lazy-pages.log"

_END_GRACE_S: Final = 10.0
_LOG_BYTES_MAX: Final = 1 << 20


class LazyPages:
    """A running daemon. Use `lazy_pages`."""

    def __init__(self, process: trio.Process, work_dir: Path) -> None:
        self.log = work_dir / LAZY_PAGES_LOG
        self._process = process

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def is_needed(self) -> bool:
        """Whether a restore has come to the point where tasks need the daemon."""
        return bool(userfaultfds(self.pid))

    async def finished(self) -> None:
        """Return when the tasks have all their memory.

        Raises: CriuError with the daemon's own reason and the path of its log. The tasks then wait
        for memory until they are killed, where a guard holds their descriptors.
        """
        code = await self._process.wait()
        if code != 0:
            raise CriuError(f"criu lazy-pages {await self._reason(code)}; log: {self.log}")

    async def _reason(self, code: int) -> str:
        if code < 0:
            return f"was killed by {signal.Signals(-code).name}"
        error = await trio.to_thread.run_sync(_first_error, self.log)
        return f"failed: {error.line}" if error is not None else f"ended with {code}"

    async def end(self) -> None:
        """End the daemon, if it still runs, and let go of what is held."""
        with trio.CancelScope(shield=True):
            self._process.terminate()
            with trio.move_on_after(_END_GRACE_S):
                await self._process.wait()
            self._process.kill()
            await self._process.wait()


@asynccontextmanager
async def lazy_pages(
    criu_binary: str, *, images_dir: Path, work_dir: Path
) -> AsyncIterator[LazyPages]:
    """A daemon that serves the tasks of *images_dir*, listening in *work_dir* for their restore.

    Raises: MachineError when CRIU cannot be started, CriuError when it cannot serve these images.
    """
    ready, write_end = os.pipe()
    try:
        try:
            process = await trio.lowlevel.open_process(
                [
                    criu_binary, "lazy-pages", "-v2", "-D", os.fspath(images_dir),
                    "-W", os.fspath(work_dir), "-o", LAZY_PAGES_LOG,
                    "--status-fd", str(write_end),
                ],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=[write_end],
                start_new_session=True,
            )  # fmt: skip
        except OSError as exc:
            raise cannot_start(criu_binary, exc) from exc
        finally:
            os.close(write_end)
        daemon = LazyPages(process, work_dir)
        try:
            check_can_hold(process.pid)
            await trio.lowlevel.wait_readable(ready)
            if not os.read(ready, 1):  # it has ended without saying that it is ready
                await daemon.finished()
                raise CriuError(f"criu lazy-pages ended before it served; log: {daemon.log}")
            yield daemon
        finally:
            await daemon.end()
    finally:
        os.close(ready)


def _first_error(log_path: Path) -> logfile.LogError | None:
    try:
        with log_path.open(errors="replace") as log_file:
            return logfile.first_error(log_file.read(_LOG_BYTES_MAX))
    except OSError:
        return None
