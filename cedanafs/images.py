"""Where the images of a dump or restore lie: in a mount that is there, one of our own, or plain."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, closing, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Final, TypeVar

import trio

from cedanafs.config import Defaults, MountSettings
from cedanafs.criu import tree
from cedanafs.errors import CedanaFsError, StoreError, UsageError, did_you_mean
from cedanafs.fs.figures import MountFigures
from cedanafs.fs.filesystem import Filesystem
from cedanafs.fs.mount import mounted
from cedanafs.fs.mounts import (
    BASE_XATTR,
    CALL_OFF_XATTR,
    DISCARD_XATTR,
    mount_holding,
    mount_of_store,
)
from cedanafs.fs.namespace import ROOT
from cedanafs.progress import Far, HowFar, Shard
from cedanafs.shard.asking import patiently
from cedanafs.shard.audit import INVENTORY, require_complete
from cedanafs.shard.bases import take_base
from cedanafs.shard.chain import chain
from cedanafs.shard.opening import Opened, open_checkpoint
from cedanafs.shard.place import ObjectPath, Place, path_below
from cedanafs.shard.reader import Reader
from cedanafs.shard.segments import is_shard_name
from cedanafs.shard.store import (
    PAGES_NAME,
    directory_at,
    no_checkpoint,
    remove_shards,
    require_there,
    shard_paths,
)
from cedanafs.watch.reading import read_figures

T = TypeVar("T")

CLEAN_UP_S: Final = 5.0
_RUNTIME_DIR: Final = Path("/run")


async def _unknown() -> Far:
    return Far()


@dataclass(frozen=True, slots=True)
class Images:
    """A directory that takes CRIU's images, as seen by CRIU, and by the user afterwards."""

    path: Path
    kept_at: Place
    streamed: bool
    how_far: HowFar = _unknown
    total_bytes: int | None = None
    """Of all that `how_far` counts, where that is known."""
    call_off: Callable[[], None] = lambda: None
    """Make every write that waits for the store fail, and those to come. Blocks if a mount does."""
    damage: Callable[[], CedanaFsError | None] = lambda: None
    """The first damage that whoever read the images has met."""
    commit_here: Callable[[], Awaitable[None]] | None = None
    """How this process commits what it serves itself.

    Not by fsync: killed in it, it would wait for an answer of its own, and so would the tasks.
    """

    async def commit(self) -> None:
        """Return when everything in the directory is durable. Raises: StoreError."""
        if self.commit_here is not None:
            await self.commit_here()
            return
        try:
            await trio.to_thread.run_sync(self._sync)
        except OSError as exc:
            raise StoreError(
                f"{self.kept_at}: the checkpoint is not durable: {exc.strerror}",
                os_errno=exc.errno,
            ) from exc

    def _sync(self) -> None:
        if not self.streamed:
            for path in self.path.iterdir():
                fd = os.open(path, os.O_RDONLY)
                try:
                    os.fsync(fd)
                finally:
                    os.close(fd)
        fd = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    def discard(self) -> OSError | None:
        """Leave nothing of a dump that failed. Returns what the store failed with, if it did."""
        if not self.streamed:
            shutil.rmtree(self.path, ignore_errors=True)
            return None
        failure = None
        try:
            os.setxattr(self.path, DISCARD_XATTR, b"")
        except OSError as exc:
            failure = exc
        with suppress(OSError):  # an earlier checkpoint, or the root of our own mount, stays
            self.path.rmdir()
        return failure


@asynccontextmanager
async def images_of_dump(
    directory: Place, name: str, parent: str | None, settings: MountSettings | None, pid: int
) -> AsyncIterator[Images]:
    """The directory to dump into: in a mount that is there, in one of our own, or plain.

    *parent*, if not None, is to be reachable from it as `../parent`.
    """
    if isinstance(directory, ObjectPath) and settings is not None:
        directory = directory.patient(settings.store_timeout_s)
        await trio.to_thread.run_sync(partial(directory_at(directory).check, writable=True))
    timeout_s = settings.store_timeout_s if settings is not None else 0
    await _look(timeout_s, directory_at(directory).exists)  # it answers
    if isinstance(directory, Path) and not directory.is_dir():
        raise UsageError(f"--dir {directory} is not a directory: mkdir -m 700 makes one")
    mount = mount_holding(directory)
    if mount is None and settings is not None and (of_store := mount_of_store(directory)):
        mount, directory = of_store, of_store.mountpoint
    path = directory / name
    if parent is not None:
        if settings is not None and settings.base is not None:
            raise UsageError("--parent and --base both leave out what an earlier dump has: use one")
        if not directory_at(directory / parent).exists():
            near = did_you_mean(parent, directory_at(directory).entries()[0])
            raise UsageError(f"--parent {parent}: there is none in {directory}{near}")
        await _look(timeout_s, partial(chain, directory / parent))
    if mount is not None and isinstance(path, Path):
        if settings is None:
            raise UsageError(f"--stream 0: {directory} is in a mount, which streams")
        server = mount.server_pid()
        if server in (pid, *tree.descendants(pid)):
            raise UsageError(f"refuse to dump process {pid}: it runs the mount's own server")
        await trio.to_thread.run_sync(_make_empty, path, path)
        if settings.base is not None:
            base, kept_at = settings.base, mount.store_path(path.absolute())
            await trio.to_thread.run_sync(_take_base, path, kept_at, base)
        below = os.fspath(path.relative_to(mount.mountpoint)).encode()
        root = mount.mountpoint
        yield Images(
            path,
            path,
            streamed=True,
            how_far=partial(_far_in_mount, path, str(path.relative_to(root))),
            call_off=lambda: os.setxattr(root, CALL_OFF_XATTR, below),
        )
    elif settings is None:
        if not isinstance(path, Path):
            raise UsageError(f"--stream 0 makes plain images: not in the object store {directory}")
        if not _made_directory(path) and any(path.iterdir()):
            raise UsageError(f"{path} is not empty: choose another --name")
        yield Images(path, path, streamed=False, how_far=partial(_far_of_plain, path))
    else:
        async with _own_mount(path, directory if parent else path, settings) as images:
            yield images


@asynccontextmanager
async def _own_mount(path: Place, root: Place, settings: MountSettings) -> AsyncIterator[Images]:
    """The checkpoint directory *path*, in *root* or *root* itself, mounted for this dump alone."""
    made = await _look(settings.store_timeout_s, partial(_made_directory, path))
    directories, others = await _look(settings.store_timeout_s, directory_at(path).entries)
    if not made and (directories or not all(map(is_shard_name, {*others} - {PAGES_NAME}))):
        raise UsageError(f"{path} holds other files: choose another --name")
    if settings.base is not None and not made and shard_paths(path):
        raise UsageError(f"--base {settings.base}: {path} is there already: choose another --name")
    mountpoint = _new_mountpoint()
    # Nothing is committed but by us: until the dump is whole, an earlier one stays what it was.
    own = replace(settings, store=root.resolve(), quiet_s=None)
    below = path_below(path, root)
    images_dir = mountpoint / below
    try:
        async with mounted(own, mountpoint) as filesystem:
            await trio.to_thread.run_sync(_make_empty, images_dir, path)
            if own.base is not None:
                await filesystem.take_base(ROOT, own.base)
            yield Images(
                images_dir,
                path,
                streamed=True,
                how_far=partial(_far_of_dump, filesystem, str(below)),
                call_off=lambda: trio.from_thread.run_sync(filesystem.call_off, str(below)),
                commit_here=partial(filesystem.commit, ROOT),
            )
    finally:
        with suppress(OSError):
            mountpoint.rmdir()
        if made:
            with trio.move_on_after(CLEAN_UP_S, shield=True):  # the store may be hanging
                await trio.to_thread.run_sync(_remove_if_uncommitted, path, abandon_on_cancel=True)


@asynccontextmanager
async def images_of_restore(
    path: Place, stream: int | None, defaults: Defaults, *, for_others: bool = False
) -> AsyncIterator[Images]:
    """The directory to restore from; *stream* is checked against the number of shards there.

    A mount of our own lets other users open images by a descriptor of it, when it is *for_others*;
    by its path nobody gets there but us.
    Raises: UsageError, CheckpointError, StoreError, MachineError.
    """
    if isinstance(path, ObjectPath):
        path = path.patient(defaults.store_timeout)
    mount = mount_holding(path)
    store_path = mount.store_path(path) if mount else path
    look = partial(_look, defaults.store_timeout)
    await look(partial(require_there, path))
    shards = len(await look(partial(shard_paths, store_path)))
    if stream is not None and stream != shards:
        has = f"has {shards} shards" if shards else "holds plain images, no shards"
        raise UsageError(f"--stream {stream}: {path} {has}")
    if shards and mount is None:
        path = path.resolve()
        with closing(await look(partial(open_checkpoint, path))) as opened:
            async with _mounted_to_restore(
                opened, replace(defaults, stream=shards), for_others
            ) as images:
                yield images
    elif isinstance(path, Path) and await look((path / INVENTORY).exists):
        await look(partial(chain, path.absolute()))
        yield Images(path, path, streamed=mount is not None)
    else:
        raise no_checkpoint(path, f"no img-0 and no {INVENTORY}")


@asynccontextmanager
async def _mounted_to_restore(
    opened: Opened, defaults: Defaults, for_others: bool
) -> AsyncIterator[Images]:
    """What is *opened*, and what it builds on, in a mount of our own."""
    require_complete(opened)
    path = opened.directory
    whole_chain = await _look(defaults.store_timeout, partial(chain, path, opened.contents))
    root = _common(whole_chain)
    settings = defaults.mount_settings(
        root,
        read_only=True,
        allow_other=for_others,
        root_mode=0o711 if for_others else 0o700,
    )
    private = mountpoint = _new_mountpoint()
    try:
        if for_others:
            mountpoint = private / "images"
            mountpoint.mkdir()
        async with mounted(settings, mountpoint) as filesystem:
            filesystem.checkpoints.adopt(opened)
            yield Images(
                mountpoint / path_below(path, root),
                path,
                streamed=True,
                how_far=partial(_far_of_restore, filesystem.reader),
                total_bytes=sum(image.length for image in opened.contents.images.values()),
                damage=lambda: filesystem.checkpoints.damage,
            )
    finally:
        with suppress(OSError):
            mountpoint.rmdir()
            private.rmdir()


# How far it is.


async def _far_of_plain(path: Path) -> Far:
    return Far(_bytes_in(path))


async def _far_of_restore(reader: Reader) -> Far:
    read = sorted(reader.shard_bytes)
    return Far(
        reader.read_bytes,
        shards=tuple(Shard(reader.shard_bytes[k], reader.shard_s[k]) for k in read),
    )


async def _far_of_dump(filesystem: Filesystem, name: str) -> Far:
    return _far(filesystem.figures(), name)


async def _far_in_mount(path: Path, name: str) -> Far:
    """Where another process serves it. That may hang, and be killed: none of it is our business."""
    with suppress(CedanaFsError):
        return _far(await trio.to_thread.run_sync(read_figures, path, abandon_on_cancel=True), name)
    return Far()


def _far(figures: MountFigures, name: str) -> Far:
    found = next((each for each in figures.checkpoints if each.path == name), None)
    if found is None:
        return Far(queue_fill=figures.write.queue_fill)
    shards = tuple(Shard(s.stored_bytes, s.compress_s + s.write_s) for s in found.shards)
    return Far(
        found.image_bytes,
        found.landed_bytes,
        found.stored_bytes,
        figures.write.queue_fill,
        shards,
    )


def remove_mounted(path: Path) -> None:
    """Remove a checkpoint by its directory in a mount. Blocks. Raises: StoreError."""
    try:
        shutil.rmtree(path)
    except OSError as exc:
        raise StoreError(f"cannot remove {path}: {exc.strerror}", os_errno=exc.errno) from exc


async def _look(timeout_s: float, job: Callable[[], T]) -> T:
    """What *job* finds before anything is mounted or frozen. Raises: StoreError if it hangs."""
    return await trio.to_thread.run_sync(patiently, job, timeout_s)


# Blocking helpers: they run on threads where the path may be in a mount that we serve.


def _common(paths: Sequence[Place]) -> Place:
    """The deepest directory in which all of *paths* are."""
    first = paths[0]
    above: list[Place] = [first, *first.parents]
    return next(each for each in above if all(each in (path, *path.parents) for path in paths))


def _made_directory(path: Place) -> bool:
    """Make *path*, or find that it is a directory already."""
    place = directory_at(path)
    try:
        place.make()
    except FileExistsError:
        if not place.exists():
            raise UsageError(f"{path} is not a directory: choose another --name") from None
        return False
    except OSError as exc:
        raise StoreError(f"cannot make {path}: {exc.strerror}", os_errno=exc.errno) from exc
    return True


def _new_mountpoint() -> Path:
    base = _RUNTIME_DIR if os.access(_RUNTIME_DIR, os.W_OK) else None
    return Path(tempfile.mkdtemp(prefix="cedanafs-", dir=base))


def _take_base(path: Path, kept_at: Place, name: str) -> None:
    """Have the server of *path* take the base. The kernel says little about why it does not."""
    try:
        os.setxattr(path, BASE_XATTR, os.fsencode(name))
    except OSError as exc:
        with suppress(OSError):
            path.rmdir()
        _, opened = take_base(kept_at, name)
        opened.close()
        raise StoreError(
            f"{path}: --base {name}: {exc.strerror}: choose another --name", os_errno=exc.errno
        ) from exc


def _make_empty(path: Path, kept_at: Place) -> None:
    """Make the directory, or take an earlier dump's images out of it, but for its inventory.

    CRIU replaces the inventory last; until then the earlier dump stays the committed one.
    """
    try:
        path.mkdir(mode=0o700, exist_ok=True)
        for entry in path.iterdir():
            if entry.name != INVENTORY:
                entry.unlink()
    except OSError as exc:
        raise StoreError(
            f"cannot write into {kept_at}: {exc.strerror}", os_errno=exc.errno
        ) from exc


def _remove_if_uncommitted(path: Place) -> None:
    with suppress(OSError, CedanaFsError):
        opened = open_checkpoint(path) if shard_paths(path) else None
        if opened is not None:
            opened.close()
        if opened is None or opened.commit == 0:
            remove_shards(path)
            directory_at(path).remove()


def _bytes_in(path: Path) -> int:
    with suppress(OSError):
        return sum(entry.stat().st_size for entry in path.iterdir())
    return 0
