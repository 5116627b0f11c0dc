"""Dump into and restore from a plain directory, as plain calls."""

from collections.abc import Awaitable, Callable
from pathlib import Path

import trio

from cedanafs.criu import driver
from cedanafs.criu.driver import DumpResult, RestoreResult
from cedanafs.criu.options import DumpOptions, RestoreOptions

Hook = Callable[[], Awaitable[None]]


class Rig:
    """*images* and *work* below one directory, and the criu to use."""

    def __init__(self, criu_binary: str, base: Path) -> None:
        self.criu_binary = criu_binary
        self.images = base / "images"
        self.work = base / "work"
        self.images.mkdir()
        self.work.mkdir()

    async def adump(self, options: DumpOptions, hooks: dict[str, Hook] | None = None) -> DumpResult:
        """`driver.dump` into our directories."""
        return await driver.dump(
            options,
            images_dir=self.images,
            work_dir=self.work,
            criu_binary=self.criu_binary,
            on_notify=hooks or {},
        )

    async def arestore(
        self, options: RestoreOptions, hooks: dict[str, Hook] | None = None
    ) -> RestoreResult:
        """`driver.restore` from our directories."""
        return await driver.restore(
            options,
            images_dir=self.images,
            work_dir=self.work,
            criu_binary=self.criu_binary,
            on_notify=hooks or {},
        )

    def dump(self, options: DumpOptions, hooks: dict[str, Hook] | None = None) -> DumpResult:
        """`adump` in an event loop of its own."""
        return trio.run(self.adump, options, hooks)

    def restore(
        self, options: RestoreOptions | None = None, hooks: dict[str, Hook] | None = None
    ) -> RestoreResult:
        """`arestore` in an event loop of its own."""
        return trio.run(self.arestore, options or RestoreOptions(), hooks)
