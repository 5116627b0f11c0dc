"""The filesystem in our own types: what each request means. No pyfuse3, so it runs unmounted.

Errors are OSError for what a caller may get wrong (ENOENT, EEXIST, …) and CedanaFsError for
what the store or a checkpoint got wrong; `cedanafs.fs.errnos` makes errnos of both.
"""

from __future__ import annotations

import errno
import json
import os
import stat
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, nullcontext
from dataclasses import asdict, dataclass

import trio

from cedanafs.config import MountSettings
from cedanafs.errors import CedanaFsError
from cedanafs.fs.checkpoints import Checkpoints
from cedanafs.fs.directories import Directories
from cedanafs.fs.figures import STAT_FILE, MountFigures, figures_of
from cedanafs.fs.handles import FileHandle, Snapshot
from cedanafs.fs.namespace import (
    Attributes,
    Changes,
    Directory,
    File,
    Namespace,
    Node,
    Socket,
    StatFile,
)
from cedanafs.fs.patience import Patience
from cedanafs.shard.audit import INVENTORY
from cedanafs.shard.contents import MAX_FILE_LEN, MAX_IMAGES, Contents, Image, is_image_name
from cedanafs.shard.frame_cache import FrameCache
from cedanafs.shard.lanes import Lanes
from cedanafs.shard.log import Log
from cedanafs.shard.reader import Reader
from cedanafs.shard.spill import Spill
from cedanafs.shard.store import directory_at


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks: owner of what is created."""

    uid: int
    gid: int


class Filesystem:
    """A store as a tree of directories and image files. Use `open_filesystem`."""

    def __init__(
        self, settings: MountSettings, lanes: Lanes, reader: Reader, nursery: trio.Nursery
    ) -> None:
        self.settings = settings
        self.names = Namespace(settings.store, settings.root_mode)
        self._patience = Patience(lanes, reader, settings.store_timeout_s, nursery)
        self.checkpoints = Checkpoints(settings, self.names, lanes, self._patience, nursery)
        self.directories = Directories(self.names, self.checkpoints, self._patience)
        self.lanes = lanes
        self.reader = reader
        self.requests: Counter[str] = Counter()  # by kind, as they come
        self.given_bytes = 0  # to readers
        self._begun_at = time.monotonic()

    # Names.

    async def lookup(self, parent: int, name: str) -> Node | None:
        """The node called *name*, or None where there is none. Counts as one lookup of it."""
        directory = self._directory(parent)
        if name == "..":
            return directory.parent or directory
        if name == ".":
            return directory
        if name == STAT_FILE and directory is self.names.root:
            return self.names.stat_file
        checkpoint = await self.checkpoints.load(directory)
        node: Node | None = None
        if name in checkpoint.contents.images and is_image_name(name):
            node = self.names.file(directory, name)
        else:
            node = (await self.directories.below(directory)).get(name)
            node = node or directory.sockets.get(name)
        if node is not None:
            node.lookups += 1
        return node

    async def attributes(self, node: Node) -> Attributes:
        if not isinstance(node, File):
            return node.attributes()
        return node.attributes(await self.checkpoints.image(node))

    async def list_directory(self, inode: int) -> list[Node]:
        """Everything in the directory, in the order of names."""
        directory = self._directory(inode)
        checkpoint = await self.checkpoints.load(directory)
        nodes: dict[str, Node] = {**await self.directories.below(directory), **directory.sockets}
        for name in checkpoint.contents.images:
            if is_image_name(name):
                nodes[name] = self.names.file(directory, name)
        return [nodes[name] for name in sorted(nodes)]

    async def make_directory(self, parent: int, name: str, mode: int, caller: Caller) -> Directory:
        directory = await self._parent_of_new(parent, name)
        made = await self.directories.make(directory, name)
        made.mode, made.uid, made.gid = stat.S_IMODE(mode), caller.uid, caller.gid
        made.lookups += 1
        return made

    async def make_socket(self, parent: int, name: str, mode: int, caller: Caller) -> Socket:
        """The name of a socket that is being bound; gone with the mount, never in the store."""
        directory = await self._parent_of_new(parent, name)
        _refuse_our_names(name)
        made = self.names.add_socket(directory, name)
        made.mode, made.uid, made.gid = stat.S_IMODE(mode), caller.uid, caller.gid
        made.lookups += 1
        return made

    async def remove_directory(self, parent: int, name: str) -> None:
        directory = self._directory(parent)
        doomed = (await self.directories.below(directory)).get(name)
        if doomed is None:
            missing = name not in (await self.checkpoints.load(directory)).contents.images
            raise OSError(errno.ENOENT if missing else errno.ENOTDIR, "no directory", name)
        self._refuse_if_read_only()
        await self.directories.remove(doomed)

    async def unlink(self, parent: int, name: str) -> None:
        if name in (directory := self._directory(parent)).sockets:
            self.names.remove_socket(directory, name)
            return
        directory, image = await self._existing_image(parent, name)
        file = directory.files.get(name)
        log = directory.log
        if log is not None and log.failure is not None:
            log.forget(image)  # what failed must be removable
        else:
            log = await self.checkpoints.writable(directory)
            self.checkpoints.note_replacement(directory, image)
            log.unlink(image, still_open=file is not None and file.handles > 0)
        self.names.detach(directory, name)
        self.checkpoints.watch(directory)

    async def rename(
        self, old_parent: int, old: str, new_parent: int, new: str, *, replace: bool
    ) -> None:
        source, target = self._directory(old_parent), self._directory(new_parent)
        if old in source.sockets or new in target.sockets:
            raise OSError(errno.EPERM, "a socket keeps its name", old)
        if old in await self.directories.below(source):
            self._refuse_if_read_only()
            await self.directories.rename(source, old, target, new, replace=replace)
            return
        directory, image = await self._existing_image(old_parent, old)
        if target is not directory:
            raise OSError(errno.EXDEV, "another checkpoint", new)
        if not is_image_name(new):
            raise OSError(errno.EINVAL, "not a name for an image file", new)
        if new in await self.directories.below(target):
            raise OSError(errno.EISDIR, "a directory", new)
        log = await self.checkpoints.writable(directory)
        if old == new:
            return
        if new in log.contents.images:
            if not replace:
                raise OSError(errno.EEXIST, "exists", new)
            await self.unlink(new_parent, new)
            log = await self.checkpoints.writable(directory)
        log.rename(image, new)
        file = directory.files.pop(old, None)
        if file is not None:
            file.name = new
            directory.files[new] = file
        self.checkpoints.watch(directory)

    async def symlink(self, parent: int, name: str, target: str, caller: Caller) -> File:
        directory = await self._parent_of_new(parent, name)
        log = await self.checkpoints.writable(directory)
        self._refuse_new_image(log.contents, name)
        log.symlink(name, target, uid=caller.uid, gid=caller.gid)
        self.checkpoints.watch(directory)
        file = self.names.file(directory, name)
        file.lookups += 1
        return file

    async def readlink(self, inode: int) -> str:
        image = await self.checkpoints.image(self._file(inode))
        if image.symlink_to is None:
            raise OSError(errno.EINVAL, "not a symbolic link", image.name)
        return image.symlink_to

    # Files.

    async def create(
        self, parent: int, name: str, mode: int, flags: int, caller: Caller
    ) -> FileHandle:
        """A new file, open. Counts as one lookup of it."""
        directory = self._directory(parent)
        checkpoint = await self.checkpoints.load(directory)
        if name in checkpoint.contents.images:
            if flags & os.O_EXCL:
                raise OSError(errno.EEXIST, "exists", name)
            file = self.names.file(directory, name)
        else:
            await self._parent_of_new(parent, name)
            self._refuse_new_image(checkpoint.contents, name)
            log = await self.checkpoints.writable(directory)
            log.create_image(name, mode=stat.S_IMODE(mode), uid=caller.uid, gid=caller.gid)
            file = self.names.file(directory, name)
        handle = await self._open(file, flags)
        file.lookups += 1
        return handle

    async def open(self, inode: int, flags: int) -> FileHandle | Snapshot:
        if inode == self.names.stat_file.inode:
            if flags & (os.O_ACCMODE | os.O_TRUNC) != os.O_RDONLY:
                raise OSError(errno.EACCES, "only to be read", STAT_FILE)
            content = json.dumps(asdict(self.figures())) + "\n"
            return Snapshot(self.names.stat_file, content.encode())
        return await self._open(self._file(inode), flags)

    async def _open(self, file: File, flags: int) -> FileHandle:
        directory = file.directory
        if file.unlinked and not file.handles:
            raise OSError(errno.ESTALE, "gone", file.name)
        writes = flags & os.O_ACCMODE != os.O_RDONLY or bool(flags & os.O_TRUNC)
        if writes:
            self._refuse_if_read_only()
            await self.checkpoints.writable(directory)
        image = await self.checkpoints.image(file)
        handle = FileHandle(
            file,
            image,
            self.checkpoints,
            self.reader,
            writes=writes,
            appends=writes and bool(flags & os.O_APPEND),
        )
        if flags & os.O_TRUNC and (image.length or image.unfinished):
            log, image = await self.checkpoints.writable_image(file)
            self._truncate(log, directory, image, 0)
        return handle

    async def release(self, handle: FileHandle | Snapshot) -> None:
        if isinstance(handle, Snapshot):
            return
        file, directory = handle.file, handle.file.directory
        try:
            if file.handles == 1 and file.unlinked and not self.settings.read_only:
                # Still open meanwhile: the checkpoint must not come to rest between the two.
                log = await self.checkpoints.writable(directory)
                if log.contents.images.get(handle.image.name) is handle.image:
                    log.unlink(handle.image, still_open=False)
        finally:
            handle.close()
            self.names.drop_if_unused(file)
        if not directory.being_written():
            directory.dump_ends = False
        if handle.writes and directory.open_writers == 0:
            if file.name == INVENTORY:
                directory.half_replaced = False
            self.checkpoints.watch(directory)

    async def set_attributes(self, inode: int, changes: Changes) -> Attributes:
        node = self.names[inode]
        self._refuse_if_read_only()
        if isinstance(node, StatFile):
            raise OSError(errno.EPERM, "it stays as it is", STAT_FILE)
        if not isinstance(node, File):
            node.change(changes)
            return node.attributes()
        log, image = await self.checkpoints.writable_image(node)
        if changes.size is not None:
            self._truncate(log, node.directory, image, changes.size)
        for name in ("mode", "uid", "gid", "mtime_ns"):
            value = getattr(changes, name)
            if value is not None:
                if name == "mode":
                    value = stat.S_IMODE(value)
                elif name == "mtime_ns":  # before 1970 has no place in a record
                    value = max(value, 0)
                setattr(image, name, value)
                log.touch(image)
        self.checkpoints.watch(node.directory)
        return node.attributes(image)

    # The whole.

    async def commit(self, inode: int) -> None:
        """Return when everything written into the directory and below it so far is durable."""
        for directory in self.names.below(self._directory(inode)):
            await self.checkpoints.commit(directory)
            await self.checkpoints.make_found_durable(directory)

    async def seal(self) -> None:
        """Commit and seal everything, as before an unmount. Raises: the first failure."""
        failures = await self.checkpoints.finish()
        if failures:
            raise failures[0]

    async def take_base(self, inode: int, name: str) -> None:
        """`Checkpoints.take_base`, of the directory's."""
        self._refuse_if_read_only()
        await self.checkpoints.take_base(self._directory(inode), name)

    async def discard(self, inode: int) -> None:
        """`Checkpoints.discard`, of the directory's.

        What the kernel remembers of its files is answered ESTALE, so that it looks them up anew.
        """
        self._refuse_if_read_only()
        await self.checkpoints.discard(self._directory(inode))

    def call_off(self, path: str) -> None:
        """`Checkpoints.call_off` of what is below *path*, as seen from the root."""
        self.checkpoints.call_off(self.settings.store / path)

    def appended_files(self, inode: int) -> list[int]:
        """Files in and below the directory that are open to append: the kernel caches writes."""
        return [
            file.inode
            for directory in self.names.below(self._directory(inode))
            for file in directory.files.values()
            if file.appenders
        ]

    def figures(self) -> MountFigures:
        """Of now, and since the mount began."""
        return figures_of(self, time.monotonic() - self._begun_at)

    async def store_space(self) -> os.statvfs_result:
        return await self._patience.on_thread(None, directory_at(self.settings.store).space)

    # Helpers.

    def _directory(self, inode: int) -> Directory:
        node = self.names[inode]
        if not isinstance(node, Directory):
            raise NotADirectoryError(errno.ENOTDIR, "not a directory", node.name)
        return node

    def _file(self, inode: int) -> File:
        node = self.names[inode]
        if not isinstance(node, File):
            raise IsADirectoryError(errno.EISDIR, "a directory", node.name)
        return node

    async def _existing_image(self, parent: int, name: str) -> tuple[Directory, Image]:
        directory = self._directory(parent)
        checkpoint = await self.checkpoints.load(directory)
        image = checkpoint.contents.images.get(name)
        if image is None:
            is_directory = name in await self.directories.below(directory)
            raise OSError(errno.EISDIR if is_directory else errno.ENOENT, "no such image", name)
        self._refuse_if_read_only()
        return directory, image

    async def _parent_of_new(self, parent: int, name: str) -> Directory:
        directory = self._directory(parent)
        self._refuse_if_read_only()
        checkpoint = await self.checkpoints.load(directory)
        taken = {**directory.sockets, **await self.directories.below(directory)}
        if name in checkpoint.contents.images or name in taken:
            raise OSError(errno.EEXIST, "exists", name)
        if len(os.fsencode(name)) > 255:
            raise OSError(errno.ENAMETOOLONG, "name too long", name)
        return directory

    def _refuse_new_image(self, contents: Contents, name: str) -> None:
        _refuse_our_names(name)
        if len(contents.images) >= MAX_IMAGES:
            raise OSError(errno.ENOSPC, "no checkpoint has more files", name)

    def _refuse_if_read_only(self) -> None:
        if self.settings.read_only:
            raise OSError(errno.EROFS, "mounted read-only")

    def _truncate(self, log: Log, directory: Directory, image: Image, size: int) -> None:
        if size > MAX_FILE_LEN:
            raise OSError(errno.EFBIG, "too large", image.name)
        if size < image.length:  # a copy of a file that ends in a hole makes it longer
            self.checkpoints.note_replacement(directory, image)
        log.truncate(image, size)


def _refuse_our_names(name: str) -> None:
    if not is_image_name(name):
        raise OSError(errno.EPERM, "names in .cedanafs belong to cedanafs", name)


@asynccontextmanager
async def open_filesystem(settings: MountSettings) -> AsyncIterator[Filesystem]:
    """The filesystem of a store, and the threads it needs; commits and seals at the end.

    Raises on leaving: the first failure to make something durable.
    """
    frame_cache = None
    if settings.cache_dir is not None:
        frame_cache = FrameCache(settings.cache_dir, settings.cache_size)
    spilling = nullcontext() if settings.spill is None else Spill(settings.spill)
    with (
        spilling as spill,
        Lanes(
            settings.shards,
            budget_bytes=settings.write_budget,
            upload_bytes=settings.upload_bytes,
            spill=spill,
        ) as lanes,
        Reader(
            threads=max(2, settings.shards),
            cache_bytes=settings.cache_bytes,
            frame_cache=frame_cache,
        ) as reader,
    ):
        failures: list[CedanaFsError] = []
        async with trio.open_nursery() as nursery:
            filesystem = Filesystem(settings, lanes, reader, nursery)
            try:
                yield filesystem
            finally:
                with trio.CancelScope(shield=True):
                    failures = await filesystem.checkpoints.finish()
                nursery.cancel_scope.cancel()
        if failures:
            raise failures[0]
