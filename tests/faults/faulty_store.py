"""A store that fails when it is told to: a passthrough filesystem over a directory that does not.

    python tests/faults/faulty_store.py BACKING MOUNTPOINT

serves until its stdin ends. A line there is a JSON list of faults (`fault.Fault`): they replace
those before them, and whatever hangs goes on. An empty line changes nothing. Either is answered
with a line on stdout, `fault.Seen`. Not by an extended attribute: setting one waits for its
directory's lock, which a create that hangs holds.

Data goes past the page cache and names are not remembered, so that every operation of whoever
uses the store gets here, as it made it. What hangs does so as on a dead network filesystem: not
even SIGKILL gets a process out of it, only another line, or the end of this server.
"""

from __future__ import annotations

import errno
import functools
import json
import os
import sys
from collections import Counter
from collections.abc import Callable, Coroutine
from dataclasses import asdict
from typing import Any, ParamSpec, TypeVar

import pyfuse3
import trio
from fault import Armed, Fault, Seen
from pyfuse3 import EntryAttributes, FileInfo, FUSEError, StatvfsData

P = ParamSpec("P")
T = TypeVar("T")


def answers_errno(handler: Callable[P, Coroutine[Any, Any, T]]) -> Callable[P, Any]:
    """The backing directory's own errors are the store's."""

    @functools.wraps(handler)
    async def guarded(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return await handler(*args, **kwargs)
        except OSError as exc:
            raise FUSEError(exc.errno or errno.EIO) from exc

    return guarded


class Passthrough(pyfuse3.Operations):
    """An inode is an O_PATH descriptor of the backing file, which no rename or unlink harms."""

    def __init__(self, backing: str) -> None:
        super().__init__()
        self.seen = Seen()
        self._under_way: Counter[str] = Counter()
        self._armed: list[Armed] = []
        self._released = trio.Event()
        self._root = os.path.realpath(backing)
        self._fds: dict[int, int] = {pyfuse3.ROOT_INODE: os.open(backing, os.O_PATH)}
        self._lookups: Counter[int] = Counter()
        self._listings: dict[int, tuple[int, list[str]]] = {}

    def arm(self, faults: list[Fault]) -> None:
        self._armed = [Armed(fault) for fault in faults]
        self.seen.met.clear()
        self._released.set()
        self._released = trio.Event()

    async def _meet(self, operation: str, fd: int, name: bytes = b"", length: int = 0) -> int:
        """How many bytes to take of *length*, after what is to befall the operation."""
        counts, lengths, most = self.seen.operations, self.seen.lengths, self.seen.at_once
        counts[operation] = counts.get(operation, 0) + 1
        lengths[operation] = lengths.get(operation, 0) + length
        self._under_way[operation] += 1
        most[operation] = max(most.get(operation, 0), self._under_way[operation])
        try:
            return await self._befall(operation, fd, name, length)
        finally:
            self._under_way[operation] -= 1

    async def _befall(self, operation: str, fd: int, name: bytes, length: int) -> int:
        path = _path(fd)[len(self._root) :] + (f"/{os.fsdecode(name)}" if name else "")
        for armed in self._armed:
            unharmed = armed.let_through(operation, path, length)
            if unharmed is None:
                continue
            if unharmed:
                return unharmed
            self.seen.met.append(f"{operation} {path}")
            await trio.sleep(armed.fault.delay_s)
            if armed.fault.hang:
                self.seen.hanging += 1
                try:
                    await self._released.wait()
                finally:
                    self.seen.hanging -= 1
            if armed.fault.error:
                raise FUSEError(armed.fault.error)
            return min(length, armed.fault.short or length)
        return length

    # Names.

    def _entry(self, parent: int, name: bytes) -> EntryAttributes:
        fd = os.open(name, os.O_PATH | os.O_NOFOLLOW, dir_fd=self._fds[parent])
        inode = os.fstat(fd).st_ino
        if self._fds.setdefault(inode, fd) != fd:
            os.close(fd)
        self._lookups[inode] += 1
        return self._attributes(inode)

    def _attributes(self, inode: int) -> EntryAttributes:
        found, entry = os.fstat(self._fds[inode]), EntryAttributes()
        for name in ("mode", "nlink", "uid", "gid", "size", "blocks", "blksize", "mtime_ns"):
            setattr(entry, f"st_{name}", getattr(found, f"st_{name}"))
        entry.st_ino = inode
        entry.entry_timeout = entry.attr_timeout = 0
        return entry

    @answers_errno
    async def lookup(self, parent: int, name: bytes, ctx: object) -> EntryAttributes:
        await self._meet("lookup", self._fds[parent], name)
        return self._entry(parent, name)

    async def forget(self, inodes: list[tuple[int, int]]) -> None:
        for inode, count in inodes:
            self._lookups[inode] -= count
            if not self._lookups[inode]:
                del self._lookups[inode]
                os.close(self._fds.pop(inode))

    @answers_errno
    async def getattr(self, inode: int, ctx: object) -> EntryAttributes:
        await self._meet("getattr", self._fds[inode])
        return self._attributes(inode)

    @answers_errno
    async def setattr(
        self, inode: int, attr: EntryAttributes, fields: Any, fh: int | None, ctx: object
    ) -> EntryAttributes:
        await self._meet("truncate" if fields.update_size else "setattr", self._fds[inode])
        if fields.update_size:
            os.truncate(_path(self._fds[inode], link=True), attr.st_size)
        if fields.update_mode:
            os.chmod(_path(self._fds[inode], link=True), attr.st_mode & 0o7777)
        return self._attributes(inode)

    @answers_errno
    async def mkdir(self, parent: int, name: bytes, mode: int, ctx: object) -> EntryAttributes:
        await self._meet("mkdir", self._fds[parent], name)
        os.mkdir(name, mode, dir_fd=self._fds[parent])
        return self._entry(parent, name)

    @answers_errno
    async def unlink(self, parent: int, name: bytes, ctx: object) -> None:
        await self._meet("unlink", self._fds[parent], name)
        os.unlink(name, dir_fd=self._fds[parent])

    @answers_errno
    async def rmdir(self, parent: int, name: bytes, ctx: object) -> None:
        await self._meet("rmdir", self._fds[parent], name)
        os.rmdir(name, dir_fd=self._fds[parent])

    @answers_errno
    async def rename(
        self, parent: int, name: bytes, new_parent: int, new: bytes, flags: int, ctx: object
    ) -> None:
        old_fd, new_fd = self._fds[parent], self._fds[new_parent]
        await self._meet("rename", old_fd, name)
        os.rename(name, new, src_dir_fd=old_fd, dst_dir_fd=new_fd)

    @answers_errno
    async def opendir(self, inode: int, ctx: object) -> int:
        await self._meet("opendir", self._fds[inode])
        fd = os.open(_path(self._fds[inode], link=True), os.O_RDONLY | os.O_DIRECTORY)
        self._listings[fd] = inode, os.listdir(fd)
        return fd

    @answers_errno
    async def readdir(self, fd: int, start: int, token: pyfuse3.ReaddirToken) -> None:
        await self._meet("readdir", fd)
        inode, names = self._listings[fd]
        for at in range(start, len(names)):
            name = os.fsencode(names[at])
            entry = self._entry(inode, name)
            if not pyfuse3.readdir_reply(token, name, entry, at + 1):
                await self.forget([(entry.st_ino, 1)])
                break

    async def releasedir(self, fd: int) -> None:
        del self._listings[fd]
        os.close(fd)

    @answers_errno
    async def fsyncdir(self, fd: int, datasync: bool) -> None:
        await self._meet("fsyncdir", fd)
        os.fsync(fd)

    @answers_errno
    async def statfs(self, ctx: object) -> StatvfsData:
        root = self._fds[pyfuse3.ROOT_INODE]
        await self._meet("statfs", root)
        found, answer = os.statvfs(root), StatvfsData()
        for name in ("bsize", "frsize", "blocks", "bfree", "bavail", "files", "ffree", "favail"):
            setattr(answer, f"f_{name}", getattr(found, f"f_{name}"))
        return answer

    # Files.

    @answers_errno
    async def create(
        self, parent: int, name: bytes, mode: int, flags: int, ctx: object
    ) -> tuple[FileInfo, EntryAttributes]:
        await self._meet("create", self._fds[parent], name)
        fd = os.open(name, _plain(flags) | os.O_CREAT, mode, dir_fd=self._fds[parent])
        return FileInfo(fh=fd, direct_io=True), self._entry(parent, name)

    @answers_errno
    async def open(self, inode: int, flags: int, ctx: object) -> FileInfo:
        await self._meet("open", self._fds[inode])
        fd = os.open(_path(self._fds[inode], link=True), _plain(flags) & ~os.O_CREAT)
        return FileInfo(fh=fd, direct_io=True)

    @answers_errno
    async def read(self, fd: int, offset: int, length: int) -> bytes:
        return os.pread(fd, await self._meet("read", fd, length=length), offset)

    @answers_errno
    async def write(self, fd: int, offset: int, data: bytes) -> int:
        return os.pwrite(fd, data[: await self._meet("write", fd, length=len(data))], offset)

    @answers_errno
    async def flush(self, fd: int) -> None:
        await self._meet("flush", fd)

    @answers_errno
    async def fsync(self, fd: int, datasync: bool) -> None:
        await self._meet("fsync", fd)
        os.fsync(fd)

    async def release(self, fd: int) -> None:
        os.close(fd)


def _path(fd: int, *, link: bool = False) -> str:
    name = f"/proc/self/fd/{fd}"
    return name if link else os.readlink(name)


def _plain(flags: int) -> int:
    """*flags* for a descriptor that is only read and written at offsets."""
    return flags & ~(os.O_APPEND | os.O_DIRECT | os.O_NOFOLLOW)


async def _obey(store: Passthrough) -> None:
    async with trio.lowlevel.FdStream(os.dup(0)) as lines:
        text = b""
        print(json.dumps(asdict(store.seen)), flush=True)  # mounted
        async for some in lines:
            text += some
            while b"\n" in text:
                line, _, text = text.partition(b"\n")
                if line:
                    store.arm([Fault(**each) for each in json.loads(line)])
                print(json.dumps(asdict(store.seen)), flush=True)


async def _serve(backing: str, mountpoint: str) -> None:
    store = Passthrough(backing)
    options = {*pyfuse3.default_options, "fsname=faulty", "subtype=faulty", "default_permissions"}
    pyfuse3.init(store, mountpoint, options)
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(pyfuse3.main)
            await _obey(store)
            nursery.cancel_scope.cancel()
    finally:
        pyfuse3.close(unmount=True)


if __name__ == "__main__":
    trio.run(_serve, *sys.argv[1:])
