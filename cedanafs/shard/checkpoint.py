"""A checkpoint: its contents, its shard files, and its log while it is written.

Blocking where it touches the store; the caller runs those calls on a thread and serialises all
calls of one checkpoint.
"""

from __future__ import annotations

from pathlib import Path

from cedanafs.errors import CedanaFsError, StoreBusy
from cedanafs.shard.appender import Appender, cut
from cedanafs.shard.codec import Codec
from cedanafs.shard.contents import Contents
from cedanafs.shard.format import Carrier
from cedanafs.shard.lanes import Lanes
from cedanafs.shard.log import Log
from cedanafs.shard.opening import Opened, open_checkpoint
from cedanafs.shard.store import ShardFile, create_shards, shard_paths


class Checkpoint:
    """One directory of a store that holds shards, or will when the first image is created."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.contents = Contents()
        self.files: list[ShardFile] = []
        self.codec: Codec | None = None
        self._opened: Opened | None = None
        self._log: Log | None = None
        self._replaced: list[ShardFile] = []

    @classmethod
    def load(cls, directory: Path) -> Checkpoint:
        """What *directory* holds; without shards, an empty checkpoint. Blocks.

        Raises: what `open_checkpoint` raises.
        """
        checkpoint = cls(directory)
        if shard_paths(directory):
            checkpoint._opened = opened = open_checkpoint(directory)
            checkpoint.files = opened.files
            checkpoint.codec = opened.codec
            checkpoint.contents = opened.contents
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

    def begin_writing(self, lanes: Lanes, *, shards: int, codec: Codec) -> Log:
        """Open for writing; a new checkpoint gets *shards* shards of *codec*. Blocks.

        Cuts off what lies behind the last complete commit. Raises: StoreBusy, StoreError.
        """
        if self._log is not None:
            return self._log
        if self._opened is None:
            self.files = create_shards(self.directory, shards, codec)
            self.files[0].lock()
            self.codec = codec
            self._log = Log.create(self.files, codec, lanes)
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

    def _go_on(self, opened: Opened, lanes: Lanes) -> Log:
        files: list[ShardFile] = []
        try:
            for file in opened.files:
                files.append(ShardFile.open(file.path, writable=True))
            files[0].lock()
            for file, *lengths in zip(
                files, opened.lengths, opened.footers, opened.ends, strict=True
            ):
                # As it was read, or as we left it, if the store failed while we cut.
                if file.length() not in lengths:
                    raise StoreBusy(
                        f"{self.directory}: changed by another server since it was read"
                    )
            for ends in (opened.footers, opened.ends):
                for file, end in zip(files, ends, strict=True):
                    cut(file, end)
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
        )
