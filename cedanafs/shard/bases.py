"""A checkpoint as the base of others: taken as one, who uses it, and no longer needed. Blocking."""

from __future__ import annotations

from collections.abc import Iterator

from cedanafs.errors import (
    BaseUnusable,
    CedanaFsError,
    StoreBusy,
    StoreError,
    UsageError,
)
from cedanafs.shard.audit import require_complete
from cedanafs.shard.codec import EXTENSIONS, codec_of
from cedanafs.shard.commit import Base, digest_of
from cedanafs.shard.contents import is_image_name
from cedanafs.shard.foreign import REFUSED
from cedanafs.shard.format import Carrier
from cedanafs.shard.opening import MAX_CHAIN, Opened, open_checkpoint
from cedanafs.shard.place import ObjectPath, Place
from cedanafs.shard.scan import scan
from cedanafs.shard.segments import is_shard_name
from cedanafs.shard.store import (
    directory_at,
    open_shards,
    remove_shards,
    require_shards,
    require_there,
    shard_paths,
)


def take_base(directory: Place, name: str) -> tuple[Base, Opened]:
    """The checkpoint *name* beside *directory*, to refer to; nobody writes it until it is closed.

    Raises: UsageError, CheckpointError, StoreBusy when somebody writes it, StoreError.
    """
    if isinstance(directory, ObjectPath):
        raise UsageError(f"--base {name}: there are no bases in object stores")
    directory = directory.resolve()
    path = directory.parent / name
    if not is_image_name(name) or path == directory or path.is_symlink():
        raise UsageError(f"--base {name!r}: the name of another checkpoint beside {directory}")
    opened = open_checkpoint(path)
    try:
        if opened.foreign:
            raise UsageError(f"--base {name}: {REFUSED}")
        opened.files[0].lock_shared()
        if opened.files[0].length() != opened.lengths[0]:
            raise StoreBusy(f"{path}: is being written just now: no base yet")
        require_complete(opened)
        depth, each = 1, opened
        while each.base is not None:
            depth, each = depth + 1, each.base
        if depth > MAX_CHAIN:
            raise UsageError(f"--base {name}: {depth} checkpoints in a row: flatten one of them")
        for frames in opened.frames:
            for frame in frames:
                frame.home = opened.files, opened.codec
        assert opened.checkpoint is not None
        said = Base(
            name=name,
            checkpoint=opened.checkpoint,
            commit=opened.commit,
            frames=tuple(map(len, opened.frames)),
            markers=tuple(map(len, opened.markers)),
            digest=digest_of(zip(opened.frames, opened.markers, strict=True)),
        )
        return said, opened
    except BaseException:
        opened.close()
        raise


def users_of(directory: Place) -> list[str]:
    """The checkpoints beside *directory* that have it as their base.

    Raises: StoreError; CheckpointError when one of them cannot be asked.
    """
    users = []
    for name, said in _users(directory):
        if isinstance(said, CedanaFsError):
            raise BaseUnusable(
                f"whether {name} needs {directory.name} cannot be told: {said}"
            ) from said
        users.append(name)
    return users


def users_of_more(opened: Opened) -> tuple[list[str], list[str]]:
    """Of the checkpoints beside *opened* those that refer to more than it holds, as their base.

    And those that cannot be asked. Raises: StoreError.
    """
    held = list(zip(map(len, opened.frames), map(len, opened.markers), strict=True))
    users, unknown = [], []
    for name, said in _users(opened.directory):
        if isinstance(said, CedanaFsError):
            unknown.append(name)
        elif said.checkpoint == opened.checkpoint and any(
            frames > frames_held or markers > markers_held
            for frames, markers, (frames_held, markers_held) in zip(
                said.frames, said.markers, held, strict=True
            )
        ):
            users.append(name)
    return users, unknown


def _users(directory: Place) -> Iterator[tuple[str, Base | CedanaFsError]]:
    """Who beside *directory* says that it is his base, or why he cannot be asked."""
    if isinstance(directory, ObjectPath):
        return  # there are no bases
    directory = directory.resolve()
    names, _ = directory_at(directory.parent).entries()
    for name in names:
        if name == directory.name:
            continue
        try:
            base = _base_of(directory.parent / name)
        except StoreError:
            raise
        except CedanaFsError as exc:
            yield name, exc
        else:
            if base is not None and base.name == directory.name:
                yield name, base


def _base_of(directory: Place) -> Base | None:
    """What the last commit of the checkpoint's first shard says; None where there is none."""
    paths = shard_paths(directory)
    if not paths:
        return None
    (file,) = open_shards(paths[:1])
    try:
        carrier = Carrier(codec_of(EXTENSIONS[paths[0].suffix]))
        last = scan(file, carrier, file.length()).last
        return last.index.base if last is not None else None
    finally:
        file.close()


def refuse_if_used(directory: Place, what: str) -> None:
    """Raises: UsageError that names who has the checkpoint in *directory* as base."""
    if users := users_of(directory):
        raise UsageError(
            f"{directory}: base of {', '.join(users[:5])}: {what} after them, or flatten them"
        )


def remove(directory: Place, *, even_if_used: bool) -> None:
    """Remove the checkpoint in *directory*. Raises: UsageError when others need it, StoreBusy."""
    place = directory_at(directory)
    require_there(directory)
    shards = list(filter(is_shard_name, place.entries()[1]))
    if not shards:
        require_shards(directory)
    if not even_if_used:
        refuse_if_used(directory, "remove it")
    (file,) = place.open_shards(shards[:1], writable=True)
    try:
        file.lock()
        remove_shards(directory)
        if place.entries() == ([], []):
            place.remove()
    finally:
        file.close()
