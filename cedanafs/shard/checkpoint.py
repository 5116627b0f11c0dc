"""A checkpoint: its contents, its shard files, and its log while it is written.

Blocking where it touches the store; the caller runs those calls on a thread and serialises all
calls of one checkpoint.
"""

from __future__ import annotations

import errno
from pathlib import Path

from cedanafs.errors import CedanaFsError, StoreBusy, StoreError, UsageError
from cedanafs.shard.appender import Appender, cut
from cedanafs.shard.at_once import on_each
from cedanafs.shard.bases import take_base
from cedanafs.shard.codec import Codec
from cedanafs.shard.contents import Contents
from cedanafs.shard.foreign import REFUSED
from cedanafs.shard.format import Carrier
from cedanafs.shard.lanes import Lanes
from cedanafs.shard.log import Log
from cedanafs.shard.opening import Opened, open_checkpoint
from cedanafs.shard.pages import Pages, keep, table_of, table_of_written
from cedanafs.shard.place import Place
from cedanafs.shard.store import ShardFile, create_shards, open_shards, shard_paths


class Checkpoint:
    """One directory of a store that holds shards, or will when the first image is created."""

    def __init__(self, directory: Place) -> None:
        self.directory = directory
        self.contents = Contents()
        self.files: list[ShardFile] = []
        self.codec: Codec | None = None
        self._opened: Opened | None = None
        self._log: Log | None = None
        self._base: Opened | None = None
        self._replaced: list[ShardFile] = []

    @classmethod
    def load(cls, directory: Place, opened: Opened | None = None) -> Checkpoint:
        """What *directory* holds, perhaps *opened*; without shards, an empty checkpoint. Blocks.

        Raises: what `open_checkpoint` raises.
        """
        checkpoint = cls(directory)
        if opened is None and shard_paths(directory):
            opened = open_checkpoint(directory)
        if opened is not None:
            checkpoint._opened = opened
            checkpoint.files = opened.files
            checkpoint.codec = opened.codec
            checkpoint.contents = opened.contents
            checkpoint._base = opened.base
        return checkpoint

    @property
    def exists(self) -> bool:
        """Whether the store holds shards of it."""
        return bool(self.files)

    @property
    def log(self) -> Log | None:
        """The log, while the checkpoint is open for writing."""
        return self._log

    @property
    def failure(self) -> CedanaFsError | None:
        return self._log.failure if self._log else None

    def begin_writing(
        self,
        lanes: Lanes,
        *,
        shards: int,
        codec: Codec,
        base: str | None = None,
        page_hashes: bool = False,
        dated: tuple[int, int] | None = None,
    ) -> Log:
        """Open for writing; a new checkpoint gets *shards* shards of *codec*. Blocks.

        A new one refers to the checkpoint *base* beside it for the pages that this holds; with
        *page_hashes* those of its own are kept, so that it is a base at once; *dated*, it says
        that it was made and committed then (`_ns`), not now. Cuts off what lies behind the last
        complete commit. Raises: UsageError, CheckpointError, StoreBusy, StoreError.
        """
        if self._log is not None and base is None:
            return self._log
        if base is not None and (self._log is not None or self._opened is not None):
            raise UsageError(f"--base {base}: {self.directory} is a checkpoint already")
        if self._opened is None:
            said, pages = None, Pages(None) if page_hashes else None
            if base is not None:
                said, self._base = take_base(self.directory, base)
                pages = Pages(table_of(self._base), self._base.contents.images)
            self.files = create_shards(self.directory, shards, codec, lanes.upload_bytes)
            self.files[0].lock()
            self.codec = codec
            contents = self._base.contents if self._base else None
            self._log = Log.create(self.files, codec, lanes, said, contents, pages, dated)
        else:
            self._log = self._go_on(self._opened, lanes)
        self.contents = self._log.contents
        return self._log

    def commit(self, *, seal: bool = False) -> None:
        """Make durable what `Log.prepare_commit` has dealt. Blocks. Raises: StoreError, …"""
        if self._log is not None:
            self._log.complete_commit()
            if seal:
                self._log.seal()
                self._keep_pages(self._log)

    def _keep_pages(self, log: Log) -> None:
        if log.pages is not None:
            table = table_of_written(log.contents, log.pages.seed)
            if table is not None and isinstance(self.directory, Path):
                keep(self.directory, table, log.identity())

    def end_writing(self) -> None:
        """Close the log, committed or not; what was not is lost. Blocks.

        The checkpoint is then as its last complete commit says, and is loaded anew.
        """
        log, self._log = self._log, None
        if log is not None:
            self.files = []
            log.close()

    def close(self) -> None:
        self.end_writing()
        files = self.files + self._replaced
        self.files, self._replaced = [], []
        for file in files:
            file.close()
        if self._base is not None:
            self._base.close()
            self._base = None

    def _go_on(self, opened: Opened, lanes: Lanes) -> Log:
        if opened.foreign:
            raise StoreError(f"{self.directory}: {REFUSED}", os_errno=errno.EROFS)
        files = open_shards(
            [file.path for file in opened.files],
            writable=True,
            buffer_bytes=lanes.upload_bytes,
        )
        try:
            files[0].lock()
            for file, *lengths in zip(
                files, opened.lengths, opened.footers, opened.ends, strict=True
            ):
                # As it was read, or as we left it, if the store failed while we cut.
                if file.length() not in lengths:
                    raise StoreBusy(
                        f"{self.directory}: changed by another server since it was read"
                    )
            if files[0].whole:  # the first of them says what all others have
                cut(files[0], opened.ends[0])
                on_each(lambda each: cut(*each), list(zip(files, opened.ends, strict=True))[1:])
            else:
                for ends in (opened.footers, opened.ends):
                    on_each(lambda each: cut(*each), list(zip(files, ends, strict=True)))
        except BaseException:
            for file in files:
                file.close()
            raise
        self._replaced = self.files  # a reader's thread may be using them just now
        self.files = files
        if opened.checkpoint is None:  # no commit ever completed: nothing of it is kept
            return Log.create(files, opened.codec, lanes)
        carrier = Carrier(opened.codec)
        appenders = [
            Appender(
                k,
                file,
                carrier,
                opened.checkpoint,
                end=opened.ends[k],
                frames=opened.frames[k],
                markers=opened.markers[k],
            )
            for k, file in enumerate(files)
        ]
        return Log(
            opened.contents,
            appenders,
            opened.codec,
            lanes,
            checkpoint=opened.checkpoint,
            created_ns=opened.created_ns,
            commit=opened.commit - opened.sealed,
            next_seq=opened.next_seq,
            base=opened.base_said,
        )
