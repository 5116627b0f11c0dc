"""A checkpoint into another store, byte by byte: whole or not at all. Blocking.

The shards are copied into a directory beside the target's, read back and checked there, and then
that directory gets the target's name. What an interrupted copy has left is gone on with.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

from cedanafs.errors import (
    BaseUnusable,
    CheckpointError,
    CheckpointIncomplete,
    CorruptShard,
    StoreBusy,
    StoreError,
    UsageError,
)
from cedanafs.shard.audit import Progress, verify
from cedanafs.shard.foreign import REFUSED
from cedanafs.shard.opening import Opened, open_checkpoint
from cedanafs.shard.place import ObjectPath, Place
from cedanafs.shard.store import ShardFile, StoreDirectory, directory_at

_PIECE_BYTES: Final = 1 << 20
_UNFINISHED: Final = ".cedanafs-copy"


def is_unfinished_copy(name: str) -> bool:
    """Whether a directory called *name* holds what `copy` or `compact` has not finished."""
    return name.startswith(".") and name.endswith(_UNFINISHED)


def unfinished_beside(target: Path) -> Path:
    """Where what is to become *target* is written and checked; `list` shows nothing there."""
    return target.parent / f".{target.name}{_UNFINISHED}"


def copy(source: Place, target: Place, progress: Progress = lambda _: None) -> int:
    """Copy the checkpoint in *source* to *target*, which is not there yet; returns its bytes.

    What lies behind its last commit stays behind. *progress* gets each byte twice, the second
    time when it is checked. Raises: UsageError, CheckpointError, StoreBusy, StoreError.
    """
    if isinstance(target, ObjectPath):
        raise UsageError(f"{target}: copies go to directories only: extract it, and pack it there")
    if directory_at(target).exists():
        raise UsageError(f"{target} is there already: choose another name")
    unfinished = unfinished_beside(target)
    with _unchanging(source) as opened:
        _require_base(opened, target)
        place = directory_at(unfinished)
        _make(place, unfinished)
        with ExitStack() as stack:
            for k, made in enumerate(_shards(place, opened)):
                stack.callback(made.close)
                if k == 0:
                    made.lock()
                _copy_shard(opened.files[k], made, opened.commit_ends[k], progress)
                made.sync()
            place.sync()
            found = verify(unfinished, progress)
            if found.damages:
                place.remove_files(place.entries()[1])
                place.remove()
                raise CorruptShard(f"{source}: not copied: {found.damages[0]}")
            try:
                place.rename(target)
            except OSError as exc:
                raise StoreError(
                    f"cannot give {unfinished} the name {target.name}: {exc.strerror}",
                    os_errno=exc.errno,
                ) from exc
        return sum(opened.commit_ends)


@contextmanager
def _unchanging(source: Place) -> Iterator[Opened]:
    """The checkpoint, which nobody writes or removes meanwhile."""
    opened = open_checkpoint(source)
    try:
        if opened.foreign:
            raise UsageError(f"{source}: {REFUSED}")
        if opened.commit == 0:
            raise CheckpointIncomplete(f"{source}: no commit of it is complete: nothing to copy")
        if not isinstance(source, ObjectPath):  # objects do not change
            opened.files[0].lock_shared()
            if opened.files[0].length() != opened.lengths[0]:
                raise StoreBusy(f"{source}: is being written just now: copy it later")
        yield opened
    finally:
        opened.close()


def _require_base(opened: Opened, target: Path) -> None:
    """Raises: BaseUnusable when its base does not lie beside *target*, too."""
    if opened.base_said is None:
        return
    beside = target.parent / opened.base_said.name
    try:
        open_checkpoint(beside, opened.base_said).close()
    except CheckpointError as exc:
        raise BaseUnusable(
            f"{opened.directory}: needs its base {opened.base_said.name}: copy that to {beside} "
            f"first, or flatten this one ({exc})"
        ) from exc


def _make(place: StoreDirectory, path: Path) -> None:
    try:
        place.make()
    except FileExistsError:  # of an earlier copy
        pass
    except OSError as exc:
        raise StoreError(f"cannot make {path}: {exc.strerror}", os_errno=exc.errno) from exc


def _shards(place: StoreDirectory, opened: Opened) -> Iterator[ShardFile]:
    """A shard for each of *opened*, with what an earlier copy has left in it."""
    names = [file.name for file in opened.files]
    _, there = place.entries()
    place.remove_files([name for name in there if name not in names])
    for name in names:
        if name in there:
            yield from place.open_shards([name], writable=True)
        else:
            yield from place.create_shards([name], 0)


def _copy_shard(file: ShardFile, made: ShardFile, end: int, progress: Progress) -> None:
    there = made.length()
    at = 0
    while at < end:
        piece = file.read_at(at, min(_PIECE_BYTES, end - at))
        if at + len(piece) > there or made.read_at(at, len(piece)) != piece:
            if there > at:
                made.truncate(at)
            there = at
            made.write_at(at, [piece])
        at += len(piece)
        progress(len(piece))
    if there > end:
        made.truncate(end)
