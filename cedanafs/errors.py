"""What can go wrong, in the words of the domain.

Each class is one kind of failure that a user can act upon; the message is one line that says
what is wrong, with which checkpoint or shard, and what to do. No errno and no exit code is
chosen here: `cedanafs.fs.errnos` and `cedanafs.cli` translate.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class CedanaFsError(Exception):
    """Base of every error that cedanafs raises on purpose."""


class UsageError(CedanaFsError):
    """What was asked for contradicts itself or what is there (exit code 2)."""


class CheckpointError(CedanaFsError):
    """A checkpoint is damaged, incomplete, foreign or mixed up (exit code 3)."""

    repairable = False
    """Whether `cedanafs repair` may have something to say."""


class CheckpointMissing(CheckpointError):
    """There is no checkpoint where one was named."""


class CheckpointIncomplete(CheckpointError):
    """Shards are missing, or no commit ever completed, or no inventory.img is in it."""


class CorruptShard(CheckpointError):
    """Bytes of a shard are not what was written; names shard, offset and what was found."""

    repairable = True


class MixedShards(CheckpointError):
    """Shards that belong to different checkpoints, commits or positions lie together."""

    repairable = True


class BaseUnusable(CheckpointError):
    """The checkpoint that this one refers to is missing or not what it was; both are named."""


class UnknownFeature(CheckpointError):
    """The checkpoint needs something that this version does not know; named."""


class StoreError(CedanaFsError):
    """The store failed: I/O, space, permission, or it is in use (exit code 4).

    `os_errno` is the store's own word for it, which the mount's callers get to see too.
    """

    def __init__(self, message: str, *, os_errno: int | None = None) -> None:
        super().__init__(message)
        self.os_errno = os_errno


class StoreBusy(StoreError):
    """Another server has the store or the checkpoint open for writing."""


class CriuError(CedanaFsError):
    """CRIU failed; carries its first error line and where its log lies (exit code 5)."""


class MachineError(CedanaFsError):
    """The machine lacks something: root, /dev/fuse, a working CRIU (exit code 6)."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """What to append to a message about *name*: which of *known* is most like it, if any is."""
    near = difflib.get_close_matches(name, sorted(known), n=1)
    return f": did you mean {near[0]!r}?" if near else ""


def the_error(exc: BaseException) -> BaseException:
    """The error that matters in the groups that nurseries make: ours before its consequences."""
    if not isinstance(exc, BaseExceptionGroup):
        return exc
    leaves = [the_error(each) for each in exc.exceptions]
    return next((leaf for leaf in leaves if isinstance(leaf, CedanaFsError)), leaves[0])
