"""A process tree to dump, and one to bring back: `driver`, with all that it has to be told."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

import trio

from cedanafs.criu import attach, driver, tree
from cedanafs.criu.binary import find_criu
from cedanafs.criu.options import DumpOptions, RestoreOptions
from cedanafs.criu.overlay import overlay


@dataclass(frozen=True, slots=True)
class RunningProcess:
    """The process tree under `options.pid`. Use `find`."""

    options: DumpOptions
    criu_binary: str

    @classmethod
    def find(cls, options: DumpOptions, criu_binary: str | None) -> Self:
        """Raises: UsageError where no dump can be of that pid; MachineError without a criu."""
        tree.check_can_dump(options.pid)
        return cls(options, find_criu(criu_binary))

    @property
    def pid(self) -> int:
        return self.options.pid

    @property
    def label(self) -> str:
        return f"process {self.pid}"

    @property
    def name(self) -> str:
        try:
            name = Path(f"/proc/{self.pid}/comm").read_text().strip()
        except OSError:
            name = str(self.pid)
        return "process-" + "".join(c if c.isalnum() or c in "-_." else "_" for c in name)

    @property
    def leaves_running(self) -> bool:
        return self.options.leaves_running()

    @property
    def frozen_stage(self) -> str:
        return "query-ext-files"

    async def dump(self, images_dir: Path, work_dir: Path, on_notify: driver.Hooks) -> None:
        await driver.dump(
            self.options,
            images_dir=images_dir,
            work_dir=work_dir,
            criu_binary=self.criu_binary,
            on_notify=on_notify,
        )


@dataclass(frozen=True, slots=True)
class DumpedProcess:
    """The process tree in a checkpoint. Use `find`."""

    options: RestoreOptions
    criu_binary: str

    @classmethod
    def find(cls, options: RestoreOptions, criu_binary: str | None) -> Self:
        """Raises: MachineError without a criu."""
        return cls(options, find_criu(criu_binary))

    @property
    def as_other_users(self) -> bool:
        return False

    async def restore(self, images_dir: Path, work_dir: Path) -> int:
        options = self.options
        if options.tcp_listen_remap:
            stored, images_dir = images_dir, work_dir / "images"
            await trio.to_thread.run_sync(overlay, stored, images_dir, options.tcp_listen_remap)
        if options.attach:
            options = await _with_our_streams(options, images_dir)
        result = await driver.restore(
            options,
            images_dir=images_dir,
            work_dir=work_dir,
            criu_binary=self.criu_binary,
            on_notify={},
        )
        return result.pid


async def _with_our_streams(options: RestoreOptions, images_dir: Path) -> RestoreOptions:
    """*options*, with our standard streams for the pipes that nobody gave another end to."""
    taken = {each.resource for each in options.inherit_fd}
    ours = await trio.to_thread.run_sync(attach.standard_streams, images_dir)
    more = tuple(each for each in ours if each.resource not in taken)
    return replace(options, inherit_fd=options.inherit_fd + more)
