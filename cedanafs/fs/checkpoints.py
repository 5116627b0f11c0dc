"""The life of the checkpoints in a mount: loaded, written, committed, at rest.

All that blocks runs on a thread while the directory's `busy` lock is held; between two awaits
nothing interleaves, so the rest needs no lock.
"""

from __future__ import annotations

import errno
import logging
import time

import trio

from cedanafs.config import MountSettings
from cedanafs.errors import CedanaFsError, StoreError
from cedanafs.fs.namespace import Directory, File, Namespace
from cedanafs.fs.patience import Patience
from cedanafs.shard.audit import INVENTORY
from cedanafs.shard.checkpoint import Checkpoint
from cedanafs.shard.contents import Image
from cedanafs.shard.lanes import Lanes
from cedanafs.shard.log import Log
from cedanafs.shard.opening import Opened
from cedanafs.shard.place import Place
from cedanafs.shard.store import directory_at, sync_shards

logger = logging.getLogger(__name__)


class Checkpoints:
    """Loads, commits and puts to rest; one for a mount."""

    def __init__(
        self,
        settings: MountSettings,
        names: Namespace,
        lanes: Lanes,
        patience: Patience,
        nursery: trio.Nursery,
    ) -> None:
        self._settings = settings
        self._names = names
        self._lanes = lanes
        self._nursery = nursery
        self.patience = patience
        self._adopted: dict[Place, Opened] = {}
        self._waiting = 0  # writers in `reserve`
        self.commits = self.failed_commits = 0
        self.last_commit_s: float | None = None
        self.damage: CedanaFsError | None = None  # the first that a reader met, of bytes or store

    def adopt(self, opened: Opened) -> None:
        """What is *opened* is not opened again when somebody looks into its directory."""
        self._adopted[opened.directory] = opened

    async def load(self, directory: Directory) -> Checkpoint:
        """The directory's checkpoint, as its last commit says or as it is being written.

        Raises: CheckpointError when it is damaged, StoreError.
        """
        checkpoint = directory.checkpoint if directory.at_hand else None
        if checkpoint is not None:
            return checkpoint
        async with directory.busy:
            return await self._loaded(directory)

    async def _loaded(self, directory: Directory) -> Checkpoint:
        if directory.checkpoint is None:
            opened = self._adopted.pop(directory.path, None)
            checkpoint = await self.patience.on_thread(
                directory, lambda: Checkpoint.load(directory.path, opened)
            )
            directory.checkpoint = checkpoint
            for name, file in directory.files.items():
                file.image = checkpoint.contents.images.get(name)
        return directory.checkpoint

    async def image(self, file: File) -> Image:
        """What *file* holds. Raises: OSError(ESTALE) when it is gone."""
        if file.image is None or file.directory.busy.locked():
            checkpoint = await self.load(file.directory)
            if file.image is None and not file.unlinked:
                file.image = checkpoint.contents.images.get(file.name)
        if file.image is None:
            raise OSError(errno.ESTALE, "gone", file.name)
        return file.image

    async def writable(self, directory: Directory) -> Log:
        """The log of the directory's checkpoint, which becomes one with this if it was none.

        Raises: StoreBusy, StoreError, the failure that sticks.
        """
        log = directory.log if directory.at_hand else None
        if log is None:
            async with directory.busy:
                checkpoint = await self._loaded(directory)
                images = checkpoint.contents.images
                try:
                    log = await self.patience.on_thread(
                        directory,
                        lambda: checkpoint.begin_writing(
                            self._lanes,
                            shards=self._settings.shards,
                            codec=self._settings.codec,
                            base=directory.base or self._base_beside(directory),
                            page_hashes=self._settings.page_hashes,
                        ),
                    )
                except StoreError as exc:
                    directory.refused = exc
                    raise
                if checkpoint.contents.images is not images:
                    for file in directory.files.values():
                        file.image, file.stale = None, True
        log.check()
        directory.last_change = trio.current_time()
        return log

    def _base_beside(self, directory: Directory) -> str | None:
        """The mount's base, where it lies beside *directory*. Blocks."""
        name = self._settings.base
        path = directory.path
        return (
            name
            if name and path.name != name and directory_at(path.parent / name).exists()
            else None
        )

    async def take_base(self, directory: Directory, name: str) -> None:
        """Make the checkpoint in *directory*, which is new, refer to *name* beside it.

        Raises: UsageError, CheckpointError, StoreError.
        """
        for other in self._names.directories():  # what was written a moment ago is committed
            beside = other is not directory and other.parent is directory.parent
            if beside and other.name == name and other.log is not None and not other.open_files:
                await self.commit(other, seal=True)
                await self.rest(other)
        directory.base = name
        try:
            await self.writable(directory)
        finally:
            directory.base = None

    async def writable_image(self, file: File) -> tuple[Log, Image]:
        """The log and what *file* holds in it; both of one moment, as long as nothing awaits.

        Raises: what `writable` and `image` raise.
        """
        log = await self.writable(file.directory)
        if file.image is None and not file.unlinked:
            file.image = log.contents.images.get(file.name)
        # The kernel says when a file was last written after the file is gone, too: a record of
        # that would make it anew.
        if file.image is None or log.contents.images.get(file.image.name) is not file.image:
            raise OSError(errno.ESTALE, "gone", file.name)
        return log, file.image

    def write_waits(self, file: File, length: int) -> bool:
        """Whether who writes *length* bytes into *file* may have to wait for something."""
        directory = file.directory
        writable = directory.at_hand and directory.log is not None
        return not writable or not self._lanes.has_budget(length) or self._commits_writes(file)

    async def reserve(self, directory: Directory, log: Log, length: int) -> None:
        """Wait until *length* bytes may be taken: the back-pressure that a writer feels."""
        if self._lanes.try_reserve(length):
            return
        self._waiting += 1
        try:
            # What waits to be packed would wait for ever, see also `written`.
            for other in self._names.directories():
                if other.log is not None:
                    async with other.busy:
                        if other.log is not None:  # it may have come to rest meanwhile
                            other.log.flush()
            await self.patience.reserve(directory, log, length)
        finally:
            self._waiting -= 1

    def written(self, log: Log) -> None:
        """*log* has taken bytes; it keeps none of them in memory while another waits for room."""
        if self._waiting:
            log.flush()

    def release(self, length: int) -> None:
        """Give back what was reserved and not used."""
        self._lanes.release(length)

    def note_replacement(self, directory: Directory, image: Image) -> None:
        """Pages begun anew under an inventory that is there: a dump over an earlier dump."""
        if image.name.startswith("pages-") and image.length:
            checkpoint = directory.checkpoint
            directory.half_replaced = (
                checkpoint is not None and INVENTORY in checkpoint.contents.images
            )
        elif image.name == INVENTORY:
            directory.half_replaced = False

    async def make_durable_if_asked(self, file: File) -> None:
        """*file* was written; with `durable`, return only when the end of a dump is durable.

        CRIU checks its writes, and kills the tasks after the last. Behind inventory.img it only
        flushes other images, one write each, so each of these waits for a commit.
        """
        directory = file.directory
        if file.name == INVENTORY:
            directory.dump_ends = True
        if self._commits_writes(file):
            await self.commit(directory, written=file)

    def _commits_writes(self, file: File) -> bool:
        ends = file.directory.dump_ends or file.name == INVENTORY
        return self._settings.durable and ends

    async def commit(
        self, directory: Directory, *, seal: bool = False, written: File | None = None
    ) -> None:
        """Return when all that was written into the directory so far is durable.

        *written* is open, but nothing will be written into it any more.
        Raises: StoreError and whatever else was found since the last commit; it sticks.
        """
        async with directory.busy:
            checkpoint = directory.checkpoint
            if checkpoint is None or checkpoint.log is None:
                return
            if directory.half_replaced:
                raise StoreError(
                    f"{directory.path}: a dump over an earlier one is not finished, "
                    "so there is nothing whole to commit",
                    os_errno=errno.EBUSY,
                )
            finished = {written.name} if written is not None else set()
            begun_s, dirty = time.monotonic(), checkpoint.log.dirty
            try:
                checkpoint.log.prepare_commit(set(directory.being_written()) - finished)
                await self.patience.on_thread(directory, lambda: checkpoint.commit(seal=seal))
            except BaseException:
                self.failed_commits += 1
                raise
            if dirty:
                self.commits += 1
                self.last_commit_s = round(time.monotonic() - begun_s, 6)
                logger.info("%s: committed in %.2f s", directory.path, self.last_commit_s)

    async def make_found_durable(self, directory: Directory) -> None:
        """What an earlier server wrote may still be in the page cache, if that was killed."""
        if not self._settings.read_only and not directory.found_durable:
            async with directory.busy:
                if directory.log is None:  # who goes on writing has done it
                    await self.patience.on_thread(directory, lambda: sync_shards(directory.path))
                directory.found_durable = True

    async def rest(self, directory: Directory, *, if_committed: bool = False) -> None:
        """Give back files, lock and memory of a checkpoint that nobody has open.

        What was not committed is lost, it is again what its last commit says; with
        *if_committed* it then does not come to rest.
        """
        async with directory.busy:
            checkpoint = directory.checkpoint
            if checkpoint is None or directory.open_files:
                return
            if if_committed and checkpoint.log is not None and checkpoint.log.dirty:
                return
            directory.checkpoint = None
            for file in directory.files.values():
                file.image, file.stale = None, True
            failed = checkpoint.failure is not None
            await self.patience.let_go(checkpoint.close, failed=failed)

    def watch(self, directory: Directory) -> None:
        """The last writer has closed: commit by itself once it has been quiet for a moment."""
        if self._settings.quiet_s is not None and not directory.quiet_watch:
            directory.quiet_watch = True
            self._nursery.start_soon(self._commit_when_quiet, directory, self._settings.quiet_s)

    async def _commit_when_quiet(self, directory: Directory, quiet_s: float) -> None:
        try:
            committed = False
            while not committed:
                while trio.current_time() < (quiet_at := directory.last_change + quiet_s):  # noqa: ASYNC110 - a time, not an event
                    await trio.sleep_until(quiet_at)
                if directory.open_writers or directory.half_replaced:
                    return  # whoever closes last watches anew
                await self.commit(directory, seal=True)
                await self.rest(directory, if_committed=True)
                # What was changed while we committed found this watch, and started none.
                committed = directory.log is None or not directory.log.dirty
        except CedanaFsError as exc:
            logger.error("%s: not committed: %s", directory.path, exc)
        finally:
            directory.quiet_watch = False

    async def discard(self, directory: Directory) -> None:
        """Take the checkpoint back to its last commit. Nobody may have it open.

        Raises, when it is done: what made writing fail, if something did.
        """
        if directory.open_files:
            raise OSError(errno.EBUSY, "files in it are open", directory.name)
        failure = (directory.log.failure if directory.log else None) or directory.refused
        directory.refused = None
        directory.half_replaced = False
        for name in list(directory.files):
            self._names.detach(directory, name)
        await self.rest(directory)
        try:
            if (await self.load(directory)).exists:
                # Cuts off what came after that commit, the seal with it, so seal it again.
                await self.writable(directory)
                await self.commit(directory, seal=True)
                await self.rest(directory)
        except CedanaFsError as exc:
            raise failure or exc from None
        if failure is not None:
            raise failure

    def call_off(self, top: Place) -> None:
        """Fail what is being written below *top*, a path in the store, and whoever waits for it.

        The store may be hanging: nothing here asks it.
        """
        why = StoreError("the dump was called off", os_errno=errno.ECANCELED)
        for directory in self._names.directories():
            if top in (directory.path, *directory.path.parents):
                self.patience.call_off(directory, why)

    async def finish(self) -> list[CedanaFsError]:
        """Commit and seal everything that was written. Returns what failed, and goes on."""
        failures: list[CedanaFsError] = []
        for directory in self._names.directories():
            try:
                await self.commit(directory, seal=True)
            except CedanaFsError as exc:
                logger.error("%s: not committed: %s", directory.path, exc)
                failures.append(exc)
            await self.rest(directory)
        return failures
