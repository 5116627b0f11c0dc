"""Names and inodes: directories of the store, image files of their checkpoints.

Synchronous, and metadata only. An inode number is never given twice; a node is forgotten when
the kernel has given back every lookup of it and nothing needs it.
"""

from __future__ import annotations

import itertools
import os
import stat
import time
from dataclasses import dataclass
from typing import Final, NewType

import trio

from cedanafs.errors import StoreError
from cedanafs.fs.figures import STAT_FILE
from cedanafs.shard.checkpoint import Checkpoint
from cedanafs.shard.contents import Image
from cedanafs.shard.log import Log
from cedanafs.shard.place import Place

Inode = NewType("Inode", int)
ROOT: Final = Inode(1)


@dataclass(frozen=True, slots=True)
class Changes:
    """What setattr is to change; None leaves as it is."""

    size: int | None = None
    mode: int | None = None
    uid: int | None = None
    gid: int | None = None
    mtime_ns: int | None = None


class _Unrecorded:
    """What has no record in a checkpoint: its attributes are as asked while the mount lives."""

    def __init__(self, inode: Inode, mode: int) -> None:
        self.inode = inode
        self.lookups = 0
        self.mode = mode
        self.uid = 0
        self.gid = 0
        self.mtime_ns = time.time_ns()

    def change(self, changes: Changes) -> None:
        self.mode = self.mode if changes.mode is None else stat.S_IMODE(changes.mode)
        self.uid = self.uid if changes.uid is None else changes.uid
        self.gid = self.gid if changes.gid is None else changes.gid
        self.mtime_ns = self.mtime_ns if changes.mtime_ns is None else changes.mtime_ns


class Directory(_Unrecorded):
    """A directory of the store, where it stays 0700, and its checkpoint once that is loaded."""

    def __init__(self, inode: Inode, path: Place, parent: Directory | None) -> None:
        super().__init__(inode, 0o700)
        self.path = path
        self.parent = parent
        self.subdirectories: dict[str, Directory] | None = None  # None: not listed yet
        self.files: dict[str, File] = {}  # those with an inode, by name
        self.sockets: dict[str, Socket] = {}
        self.checkpoint: Checkpoint | None = None  # None: not loaded, or at rest
        self.base: str | None = None  # what its checkpoint, when it is made, is to refer to
        self.open_files = 0
        self.open_writers = 0
        self.last_change = 0.0  # trio's clock, seconds
        self.quiet_watch = False  # a task waits to commit it
        self.refused: StoreError | None = None  # why it could not be opened for writing
        self.found_durable = False  # what was there before us has been fsynced
        self.dump_ends = False  # inventory.img was written, and CRIU flushes what is left
        # A dump over an earlier one is under way: its pages are new, its inventory is old.
        self.half_replaced = False
        # Held while a thread works on the checkpoint (load, commit, …): everyone else waits.
        self.busy = trio.Lock()

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def log(self) -> Log | None:
        """The log of its checkpoint, while that is open for writing."""
        return self.checkpoint.log if self.checkpoint is not None else None

    @property
    def at_hand(self) -> bool:
        """Whether its checkpoint is loaded, and no thread works on it."""
        return self.checkpoint is not None and not self.busy.locked()

    def being_written(self) -> list[str]:
        """Images that somebody has open to write, not only to append: CRIU's log is none."""
        return [name for name, file in self.files.items() if file.writers]

    def attributes(self) -> Attributes:
        links = 2 + len(self.subdirectories or ())
        return Attributes(
            self.inode, stat.S_IFDIR | self.mode, links, self.uid, self.gid, 0, self.mtime_ns
        )


class File:
    """An image file or symbolic link that the kernel knows of.

    `image` is what it holds; None while the checkpoint is at rest, `name` then finds it again.
    A file that was unlinked while open keeps its image and has no directory entry.
    """

    def __init__(self, inode: Inode, directory: Directory, name: str) -> None:
        self.inode = inode
        self.directory = directory
        self.name = name
        self.lookups = 0
        self.image: Image | None = None
        self.handles = 0
        self.writers = 0  # handles of these that write, but for
        self.appenders = 0  # those that append, whose writes the kernel caches
        self.stale = True  # the kernel's cache may have what this is no more
        self.unlinked = False

    def attributes(self, image: Image) -> Attributes:
        kind = stat.S_IFREG if image.symlink_to is None else stat.S_IFLNK
        size = image.length if image.symlink_to is None else len(os.fsencode(image.symlink_to))
        return Attributes(
            self.inode,
            kind | image.mode,
            0 if self.unlinked else 1,
            image.uid,
            image.gid,
            size,
            image.mtime_ns,
        )


class Socket(_Unrecorded):
    """The name of a unix socket that some program has bound in a directory of the mount.

    It is nothing of the checkpoint: the store never sees it, and it ends with the mount.
    """

    def __init__(self, inode: Inode, directory: Directory, name: str) -> None:
        super().__init__(inode, 0o700)
        self.directory = directory
        self.name = name

    def attributes(self) -> Attributes:
        kind = stat.S_IFSOCK
        return Attributes(self.inode, kind | self.mode, 1, self.uid, self.gid, 0, self.mtime_ns)


class StatFile(_Unrecorded):
    """What tells of the mount itself, for its owner to read; see `figures`. Always there."""

    def __init__(self, inode: Inode, directory: Directory) -> None:
        super().__init__(inode, 0o400)
        self.directory = directory
        self.name = STAT_FILE

    def attributes(self) -> Attributes:
        kind = stat.S_IFREG
        return Attributes(self.inode, kind | self.mode, 1, self.uid, self.gid, 0, self.mtime_ns)


Node = Directory | File | Socket | StatFile


@dataclass(frozen=True, slots=True)
class Attributes:
    """What stat(2) shows. `size` in bytes; times are one: when the content changed."""

    inode: Inode
    mode: int
    links: int
    uid: int
    gid: int
    size: int
    mtime_ns: int


class Namespace:
    """The inodes in use."""

    def __init__(self, root: Place, root_mode: int = 0o700) -> None:
        self._numbers = itertools.count(ROOT)
        self._nodes: dict[Inode, Node] = {}
        self.root = self.add_directory(root, None)
        self.root.mode = root_mode
        inode = Inode(next(self._numbers))
        self.stat_file = self._nodes[inode] = StatFile(inode, self.root)
        self.stat_file.uid, self.stat_file.gid = os.geteuid(), os.getegid()

    def __getitem__(self, inode: int) -> Node:
        """Raises: KeyError when there is no such inode (any more)."""
        return self._nodes[Inode(inode)]

    def add_directory(self, path: Place, parent: Directory | None) -> Directory:
        inode = Inode(next(self._numbers))
        node = self._nodes[inode] = Directory(inode, path, parent)
        return node

    def file(self, directory: Directory, name: str) -> File:
        """The node of *name* in *directory*, which has such an image."""
        node = directory.files.get(name)
        if node is None:
            inode = Inode(next(self._numbers))
            node = directory.files[name] = File(inode, directory, name)
            self._nodes[inode] = node
        return node

    def detach(self, directory: Directory, name: str) -> None:
        """*name* is no longer in *directory*; the node lives on while the kernel needs it."""
        file = directory.files.pop(name, None)
        if file is not None:
            file.unlinked = True
            self.drop_if_unused(file)

    def add_socket(self, directory: Directory, name: str) -> Socket:
        inode = Inode(next(self._numbers))
        node = self._nodes[inode] = directory.sockets[name] = Socket(inode, directory, name)
        return node

    def remove_socket(self, directory: Directory, name: str) -> None:
        self.drop_if_unused(directory.sockets.pop(name))

    def forget(self, inode: int, lookups: int) -> None:
        """The kernel gives *lookups* lookups back."""
        node = self._nodes.get(Inode(inode))
        if node is not None:
            node.lookups -= lookups
            self.drop_if_unused(node)

    def drop_if_unused(self, node: Node) -> None:
        # Directories stay: there are few, and what is known of them is dear on a remote store.
        if isinstance(node, File) and node.lookups <= 0 and node.handles == 0:
            self._nodes.pop(node.inode, None)
            if node.directory.files.get(node.name) is node:
                del node.directory.files[node.name]
        elif isinstance(node, Socket) and node.lookups <= 0:
            bound = node.directory.sockets.get(node.name) is node
            if not bound:
                self._nodes.pop(node.inode, None)

    def remove(self, directory: Directory) -> None:
        """*directory* is gone from the store."""
        self._nodes.pop(directory.inode, None)

    def directories(self) -> list[Directory]:
        return [node for node in self._nodes.values() if isinstance(node, Directory)]

    def below(self, top: Directory) -> list[Directory]:
        """*top* and every known directory below it."""
        return [d for d in self.directories() if d is top or top.path in d.path.parents]
