"""What can be had of a checkpoint that a crash has torn or a fault has damaged. Blocking.

In place: the newest commit of which every byte is there. Its footers may be missing, as index
and frames are durable before them. Or out of it: every image that is whole, as plain files.
Nothing is changed before `bring_back` is called.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from cedanafs.errors import (
    BaseUnusable,
    CheckpointError,
    CheckpointIncomplete,
    CorruptShard,
    StoreBusy,
    UsageError,
)
from cedanafs.shard.appender import cut
from cedanafs.shard.audit import Audit, audit, extract_images, verify
from cedanafs.shard.bases import users_of_more
from cedanafs.shard.checkpoint import Checkpoint
from cedanafs.shard.commit import footer_unit
from cedanafs.shard.contents import Image
from cedanafs.shard.extents import Frame
from cedanafs.shard.lanes import Lanes
from cedanafs.shard.opening import Opened, open_checkpoint
from cedanafs.shard.place import ObjectPath, Place
from cedanafs.shard.reader import load_frame
from cedanafs.shard.scan import Commit
from cedanafs.shard.segments import is_shard_name
from cedanafs.shard.store import directory_at, require_shards
from cedanafs.shard.wreck import Wreck, as_far_as_known, as_of, look_at


@dataclass(frozen=True, slots=True)
class Way:
    """A commit that every shard can be brought back to, and what is lost by that.

    `needed_by` are the checkpoints that have as their base what is cut off; `unknown` are those
    that cannot be asked, as they are damaged themselves.
    """

    opened: Opened
    commits: tuple[Commit, ...]
    unfooted: tuple[int, ...]
    lost: tuple[str, ...]
    needed_by: tuple[str, ...]
    unknown: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """What is wrong with a checkpoint, and how it is brought back, if it can be.

    `damages` is empty where a crash at most has been at work: `torn_bytes` are what it left.
    """

    damages: tuple[str, ...]
    torn_bytes: int
    unfinished: tuple[str, ...]
    way: Way | None


def diagnose(directory: Place) -> Diagnosis:
    """What is wrong with the checkpoint in *directory*. Changes nothing.

    Raises: CheckpointMissing, CheckpointIncomplete where shards are missing, StoreError.
    """
    shards = look_at(require_shards(directory))
    try:
        try:
            opened = open_checkpoint(directory)
        except BaseUnusable:
            raise
        except CheckpointError as exc:
            damages: tuple[str, ...] = (str(exc),)
            unfinished: list[str] = []
            torn_bytes = 0
        else:
            opened.close()
            if opened.foreign:
                return Diagnosis((), 0, (), None)
            damages = audit(replace(opened, files=shards.files)).damages
            unfinished = opened.contents.unfinished()
            torn_bytes = opened.torn_bytes
        way = _way(shards) if damages or torn_bytes else None
        return Diagnosis(damages, torn_bytes, tuple(unfinished), way)
    finally:
        shards.close()


def bring_back(directory: Place, way: Way) -> Audit:
    """Make the checkpoint in *directory* what *way* says, and verify it.

    Raises: UsageError when others need what is cut off, StoreBusy when somebody writes there,
    StoreError, CheckpointError.
    """
    if isinstance(directory, ObjectPath):
        raise UsageError(
            f"{directory}: objects cannot be mended in place; repair --into DIRECTORY writes what "
            "is whole"
        )
    if way.needed_by:
        raise UsageError(
            f"{directory}: base of {', '.join(way.needed_by[:5])}, also with what would be cut "
            "off: flatten them first, or rm them if they are lost"
        )
    shards = look_at(require_shards(directory), writable=True)
    try:
        shards.files[0].lock()
        if tuple(as_of(shards, way.opened.commit)[1]) != way.commits:
            raise StoreBusy(f"{directory}: changed by another server since it was looked at")
        for file, found, commit in zip(shards.files, shards.commits, way.commits, strict=True):
            # As in `cut`: no footer may stand without what it vouches for.
            behind = [each.footer_at for each in found.values() if each.at >= commit.end]
            cut(file, min(behind, default=file.length()))
        for k, (file, commit) in enumerate(zip(shards.files, way.commits, strict=True)):
            cut(file, commit.footer_at if k in way.unfooted else commit.end)
        for k in way.unfooted:
            own = shards.commits[k][way.opened.commit]
            unit = footer_unit(way.commits[k].footer, shards.carrier, own.units.seq)
            shards.files[k].write_at(own.footer_at, [unit])
            shards.files[k].sync()
    finally:
        shards.close()
    return verify(directory)


def accept(directory: Place) -> None:
    """Commit anew without the note that images may hold a part only of what was to be written."""
    checkpoint = Checkpoint.load(directory)
    try:
        if checkpoint.codec is None:
            raise CheckpointIncomplete(f"{directory}: no checkpoint here")
        count = len(checkpoint.files)
        with Lanes(count, budget_bytes=1 << 20) as lanes:
            log = checkpoint.begin_writing(lanes, shards=count, codec=checkpoint.codec)
            for image in log.contents.images.values():
                image.unfinished = False
            log.prepare_commit()
            checkpoint.commit(seal=True)
            checkpoint.end_writing()
    finally:
        checkpoint.close()


def salvage(directory: Place, target: Path) -> tuple[int, list[str]]:
    """Write every image that is whole into *target*, plain. Returns how many, and what is lost.

    By the newest index that all shards have; without one, as the images were when the first
    record was written that is not there any more.
    Raises: UsageError, CheckpointError when nothing is to be had, StoreError.
    """
    _, names = directory_at(directory).entries()
    paths = sorted(
        (directory / name for name in names if is_shard_name(name)),
        key=lambda path: int(path.name.removeprefix("img-").split(".")[0]),
    )
    if not paths:
        require_shards(directory)
    shards = look_at([path for path in paths if path.suffix == paths[0].suffix])
    try:
        for number in shards.numbers():
            opened, _ = as_of(shards, number)
            if opened is not None:
                lost = _without_damaged(opened)
                break
        else:
            opened, lost = as_far_as_known(shards)
        if not opened.contents.images:
            raise CorruptShard(f"{directory}: not one image in it is whole")
        return extract_images(opened, target), lost
    finally:
        shards.close()


def _way(shards: Wreck) -> Way | None:
    """The newest commit that is whole, but for footers."""
    newest: Opened | None = None
    for number in shards.numbers():
        opened, commits = as_of(shards, number)
        if opened is None:
            continue
        newest = newest or opened
        if not _damaged(opened):
            unfooted = [k for k, found in enumerate(shards.commits) if found[number].footer is None]
            last = max(max(found, default=0) for found in shards.commits)
            lost = _differing(opened, newest)
            if newest.commit < last and not lost:
                lost = [f"what was committed after commit {newest.commit}"]
            needed_by, unknown = users_of_more(opened)
            return Way(
                opened,
                tuple(commits),
                tuple(unfooted),
                tuple(lost),
                tuple(needed_by),
                tuple(unknown),
            )
    return None


def _damaged(opened: Opened) -> set[Frame]:
    """The frames of the index that are not there as they were written."""
    damaged = set()
    for file, frames in zip(opened.files, opened.frames, strict=True):
        for frame in frames:
            try:
                load_frame(file, opened.codec, frame)
            except CorruptShard:
                damaged.add(frame)
    return damaged


def _layout(image: Image) -> list[tuple[int, ...]]:
    return [
        (at, piece.frame.shard, piece.frame.offset, piece.at, piece.length)
        for at, piece in image.extents
        if piece.frame is not None
    ]


def _differing(old: Opened, new: Opened) -> list[str]:
    """Names of the images that are not in *old* as they are in *new*."""
    then, now = old.contents.images, new.contents.images
    return sorted(
        name
        for name in then.keys() | now.keys()
        if name not in then
        or name not in now
        or then[name].size != now[name].size
        or then[name].symlink_to != now[name].symlink_to
        or _layout(then[name]) != _layout(now[name])
    )


def _without_damaged(opened: Opened) -> list[str]:
    """Take the images out that have a part in a damaged frame; returns their names."""
    damaged = _damaged(opened)
    images = opened.contents.images
    lost = [
        name
        for name, image in images.items()
        if any(piece.frame in damaged for _, piece in image.extents)
    ]
    for name in lost:
        del images[name]
    return sorted(lost)
