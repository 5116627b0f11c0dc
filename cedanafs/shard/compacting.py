"""A checkpoint written anew without what no image of it holds any more. Blocking; no mount.

A log is only appended to: what was written over, removed or committed before stays in the shards.
"""

from __future__ import annotations

import os
import stat
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cedanafs.errors import CheckpointIncomplete, StoreBusy, StoreError, UsageError
from cedanafs.shard.audit import Progress
from cedanafs.shard.bases import refuse_if_used
from cedanafs.shard.copying import convert
from cedanafs.shard.extents import Frame
from cedanafs.shard.foreign import REFUSED
from cedanafs.shard.opening import Opened, open_checkpoint
from cedanafs.shard.place import ObjectPath, Place
from cedanafs.shard.segments import is_shard_name
from cedanafs.shard.store import PAGES_NAME, directory_at, remove_shards, shard_paths
from cedanafs.shard.transfer import unfinished_beside

_BUDGET_BYTES: Final = 32 << 20
_WORTH_BYTES: Final = 4096
"""Two indexes of the same differ by some bytes; less than a block gives no disk room back."""


@dataclass(frozen=True, slots=True)
class Room:
    """What the shards of a checkpoint take, and what they take, or about would, written anew.

    The same, where that is not worth it.
    """

    before_bytes: int
    after_bytes: int


def _room(before_bytes: int, after_bytes: int) -> Room:
    worth = before_bytes - after_bytes >= _WORTH_BYTES
    return Room(before_bytes, after_bytes if worth else before_bytes)


def survey(directory: Place) -> Room:
    """About what `compact` would bring. Reads no frame.

    Raises: as `compact`, where it can be known beforehand.
    """
    with _compactable(directory) as (_, opened):
        used: Counter[Frame] = Counter()
        for image in opened.contents.images.values():
            for _, piece in image.extents:
                if piece.frame is not None and piece.frame.home is None:
                    used[piece.frame] += piece.length
        frames = sum(
            frame.stored_len * min(length / frame.raw_len, 1.0) for frame, length in used.items()
        )
        indexes = sum(opened.commit_ends) - sum(opened.ends) if opened.sealed else 0
        return _room(sum(opened.lengths), round(frames) + 2 * indexes)


def compact(directory: Place, progress: Progress = lambda _: None) -> Room:
    """Write the checkpoint in *directory* anew, and put that in its place, if that is worth it.

    The same images, shards, codec, base and times; until all of it is durable, read back and
    compared, *directory* is as it was, and then at once as it is to be.
    Raises: UsageError where others refer to it, or the store cannot exchange directories,
    CheckpointError, StoreBusy, StoreError.
    """
    with _compactable(directory, lock=True) as (directory, opened):
        _require_exchange(directory.parent)
        new = unfinished_beside(directory)
        _remove(new)  # of a compaction that was interrupted
        convert(
            directory,
            new,
            shards=len(opened.files),
            codec=opened.codec,
            budget_bytes=_BUDGET_BYTES,
            base=opened.base_said.name if opened.base_said else None,
            progress=progress,
        )
        after = sum(path.stat().st_size for path in _local_shards(new))
        found = _room(sum(opened.lengths), after)
        if found.after_bytes < found.before_bytes:
            _own_alike(directory, new)
            _exchange(directory, new)
        _remove(new)
        return found


@contextmanager
def _compactable(directory: Place, *, lock: bool = False) -> Iterator[tuple[Path, Opened]]:
    """The checkpoint, and where it really is; with *lock* nobody refers to it or writes it."""
    if isinstance(directory, ObjectPath):
        raise UsageError(
            f"{directory}: in an object store nothing can be exchanged: convert it to a new name, "
            "then rm it"
        )
    directory = directory.resolve()
    opened = open_checkpoint(directory)
    try:
        if opened.foreign:
            raise UsageError(f"{directory}: {REFUSED}")
        if opened.commit == 0:
            raise CheckpointIncomplete(f"{directory}: no commit of it is complete: rm removes it")
        if lock:
            opened.files[0].lock()
            if opened.files[0].length() != opened.lengths[0]:
                raise StoreBusy(f"{directory}: is being written just now: compact it later")
        refuse_if_used(directory, "compact it")
        _require_alone(directory)
        yield directory, opened
    finally:
        opened.close()


def _require_alone(directory: Path) -> None:
    directories, names = directory_at(directory).entries()
    others = [name for name in names if not is_shard_name(name) and name != PAGES_NAME]
    if beside := directories + others:
        raise UsageError(
            f"{directory}: {beside[0]} lies beside its shards: move it elsewhere, then compact"
        )


def _require_exchange(parent: Path) -> None:
    """Before all is written, that it can be put into its place. Raises: UsageError, StoreError."""
    try:
        with tempfile.TemporaryDirectory(prefix=".", suffix=".cedanafs", dir=parent) as made:
            one, other = Path(made, "1"), Path(made, "2")
            one.mkdir()
            other.mkdir()
            _exchange(one, other)
    except OSError as exc:
        raise StoreError(f"cannot write in {parent}: {exc.strerror}", os_errno=exc.errno) from exc


def _exchange(old: Path, new: Path) -> None:
    try:
        directory_at(old).exchange(new)
    except OSError as exc:
        raise UsageError(
            f"{old.parent}: its filesystem cannot exchange directories ({exc.strerror}): convert "
            "the checkpoint to a new name, then rm it"
        ) from exc


def _local_shards(directory: Path) -> list[Path]:
    return [path for path in shard_paths(directory) if isinstance(path, Path)]


def _own_alike(old: Path, new: Path) -> None:
    """Whose they are and who may read them is the same afterwards, whoever compacts."""
    try:
        for made in (new, *_local_shards(new)):
            found = (old / made.relative_to(new)).stat()
            os.chown(made, found.st_uid, found.st_gid)
            made.chmod(stat.S_IMODE(found.st_mode))
    except OSError as exc:
        raise StoreError(f"cannot write {new}: {exc.strerror}", os_errno=exc.errno) from exc


def _remove(directory: Path) -> None:
    place = directory_at(directory)
    if not place.exists():
        return
    try:
        remove_shards(directory)
        place.remove()
    except OSError as exc:
        raise StoreError(f"cannot remove {directory}: {exc.strerror}", os_errno=exc.errno) from exc
