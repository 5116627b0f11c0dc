"""pyfuse3's requests → one call of the filesystem → pyfuse3's answers. No decisions here."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Callable, Sequence

import pyfuse3
import trio
from pyfuse3 import (
    EntryAttributes,
    FileHandleT,
    FileInfo,
    FileNameT,
    FlagT,
    FUSEError,
    InodeT,
    ModeT,
    ReaddirToken,
    RequestContext,
    SetattrFields,
    StatvfsData,
    XAttrNameT,
)

from cedanafs.fs.errnos import answers_errno
from cedanafs.fs.filesystem import Caller, Filesystem
from cedanafs.fs.handles import FileHandle, Snapshot
from cedanafs.fs.mounts import BASE_XATTR, CALL_OFF_XATTR, DISCARD_XATTR, SEAL_XATTR
from cedanafs.fs.namespace import Attributes, Changes, Node
from cedanafs.shard.codec import Bytes

FOREVER_S = 3600.0
"""The mount is its store's only writer, so the kernel may remember names and attributes."""


class Operations(pyfuse3.Operations):
    """The FUSE adapter. A read-only mount's store may be written by another: names expire."""

    supports_dot_lookup = True
    # For files opened to append only, see `_file_info`: CRIU writes its log line by line, and a
    # dump with -v4 took 1.7 times as long with a request for each.
    enable_writeback_cache = True
    enable_acl = False

    def __init__(self, filesystem: Filesystem, invalidate: Callable[[int], None]) -> None:
        super().__init__()
        self._fs = filesystem
        self._invalidate = invalidate
        self._remember_s = 1.0 if filesystem.settings.read_only else FOREVER_S
        self.requests = filesystem.requests
        self._handles: dict[int, FileHandle | Snapshot] = {}
        self._listings: dict[int, tuple[InodeT, list[Node]]] = {}
        self._next_handle = 1

    # Names.

    @answers_errno
    async def lookup(
        self, parent_inode: InodeT, name: FileNameT, ctx: RequestContext
    ) -> EntryAttributes:
        node = await self._fs.lookup(parent_inode, os.fsdecode(name))
        if node is None:
            raise FUSEError(errno.ENOENT)
        return await self._entry(node)

    @answers_errno
    async def getattr(self, inode: InodeT, ctx: RequestContext) -> EntryAttributes:
        return await self._entry(self._fs.names[inode])

    @answers_errno
    async def setattr(
        self,
        inode: InodeT,
        attr: EntryAttributes,
        fields: SetattrFields,
        fh: FileHandleT | None,
        ctx: RequestContext,
    ) -> EntryAttributes:
        changes = Changes(
            size=attr.st_size if fields.update_size else None,
            mode=attr.st_mode if fields.update_mode else None,
            uid=attr.st_uid if fields.update_uid else None,
            gid=attr.st_gid if fields.update_gid else None,
            mtime_ns=attr.st_mtime_ns if fields.update_mtime else None,
        )
        return self._converted(await self._fs.set_attributes(inode, changes))

    async def forget(self, inode_list: Sequence[tuple[InodeT, int]]) -> None:
        for inode, lookups in inode_list:
            self._fs.names.forget(inode, lookups)

    @answers_errno
    async def mkdir(
        self, parent_inode: InodeT, name: FileNameT, mode: ModeT, ctx: RequestContext
    ) -> EntryAttributes:
        caller = Caller(ctx.uid, ctx.gid)
        node = await self._fs.make_directory(parent_inode, os.fsdecode(name), mode, caller)
        return self._converted(node.attributes())

    @answers_errno
    async def mknod(
        self, parent_inode: InodeT, name: FileNameT, mode: ModeT, rdev: int, ctx: RequestContext
    ) -> EntryAttributes:
        if not stat.S_ISSOCK(mode):
            raise FUSEError(errno.EPERM)
        caller = Caller(ctx.uid, ctx.gid)
        node = await self._fs.make_socket(parent_inode, os.fsdecode(name), mode, caller)
        return self._converted(node.attributes())

    @answers_errno
    async def rmdir(self, parent_inode: InodeT, name: FileNameT, ctx: RequestContext) -> None:
        await self._fs.remove_directory(parent_inode, os.fsdecode(name))

    @answers_errno
    async def unlink(self, parent_inode: InodeT, name: FileNameT, ctx: RequestContext) -> None:
        await self._fs.unlink(parent_inode, os.fsdecode(name))

    @answers_errno
    async def rename(
        self,
        parent_inode_old: InodeT,
        name_old: FileNameT,
        parent_inode_new: InodeT,
        name_new: FileNameT,
        flags: FlagT,
        ctx: RequestContext,
    ) -> None:
        if flags & ~pyfuse3.RENAME_NOREPLACE:
            raise FUSEError(errno.EINVAL)
        await self._fs.rename(
            parent_inode_old,
            os.fsdecode(name_old),
            parent_inode_new,
            os.fsdecode(name_new),
            replace=not flags,
        )

    @answers_errno
    async def symlink(
        self, parent_inode: InodeT, name: FileNameT, target: FileNameT, ctx: RequestContext
    ) -> EntryAttributes:
        caller = Caller(ctx.uid, ctx.gid)
        node = await self._fs.symlink(parent_inode, os.fsdecode(name), os.fsdecode(target), caller)
        return await self._entry(node)

    @answers_errno
    async def readlink(self, inode: InodeT, ctx: RequestContext) -> FileNameT:
        return FileNameT(os.fsencode(await self._fs.readlink(inode)))

    @answers_errno
    async def opendir(self, inode: InodeT, ctx: RequestContext) -> FileHandleT:
        handle = self._new_handle()
        self._listings[handle] = inode, await self._fs.list_directory(inode)
        return handle

    @answers_errno
    async def readdir(self, fh: FileHandleT, start_id: int, token: ReaddirToken) -> None:
        _, nodes = self._listings[fh]
        for at in range(start_id, len(nodes)):
            node = nodes[at]
            try:
                attributes = await self._entry(node)
            except OSError:  # removed since the directory was opened
                continue
            name = FileNameT(os.fsencode(node.name))
            if not pyfuse3.readdir_reply(token, name, attributes, at + 1):
                break
            node.lookups += 1

    @answers_errno
    async def releasedir(self, fh: FileHandleT) -> None:
        del self._listings[fh]

    # Files.

    @answers_errno
    async def create(
        self,
        parent_inode: InodeT,
        name: FileNameT,
        mode: ModeT,
        flags: FlagT,
        ctx: RequestContext,
    ) -> tuple[FileInfo, EntryAttributes]:
        caller = Caller(ctx.uid, ctx.gid)
        handle = await self._fs.create(parent_inode, os.fsdecode(name), mode, flags, caller)
        return self._file_info(handle), await self._entry(handle.file)

    @answers_errno
    async def open(self, inode: InodeT, flags: FlagT, ctx: RequestContext) -> FileInfo:
        return self._file_info(await self._fs.open(inode, flags))

    async def read(self, fh: FileHandleT, off: int, size: int) -> bytes:
        return b"".join(await self.read_pieces(fh, off, size))

    @answers_errno
    async def read_pieces(self, fh: FileHandleT, off: int, size: int) -> Sequence[Bytes]:
        pieces = await self._handles[fh].read(off, size)
        self._fs.given_bytes += sum(map(len, pieces))
        return pieces

    def read_waits(self, fh: FileHandleT, off: int, size: int) -> bool:
        return fh in self._handles and self._handles[fh].read_waits(off, size)

    @answers_errno
    async def write(self, fh: FileHandleT, off: int, buf: Bytes) -> int:
        return await self._handles[fh].write(off, buf)

    def write_waits(self, fh: FileHandleT, size: int) -> bool:
        return fh in self._handles and self._handles[fh].write_waits(size)

    @answers_errno
    async def flush(self, fh: FileHandleT) -> None:
        self._handles[fh].check()

    @answers_errno
    async def release(self, fh: FileHandleT) -> None:
        await self._fs.release(self._handles.pop(fh))

    @answers_errno
    async def fsync(self, fh: FileHandleT, datasync: bool) -> None:
        await self._fs.commit(self._handles[fh].file.directory.inode)

    @answers_errno
    async def fsyncdir(self, fh: FileHandleT, datasync: bool) -> None:
        inode, _ = self._listings[fh]
        await self._write_back(inode)
        await self._fs.commit(inode)

    # The whole.

    @answers_errno
    async def setxattr(
        self, inode: InodeT, name: XAttrNameT, value: bytes, ctx: RequestContext
    ) -> None:
        if os.fsdecode(name) == SEAL_XATTR and inode == pyfuse3.ROOT_INODE:
            await self._write_back(inode)
            await self._fs.seal()
        elif os.fsdecode(name) == CALL_OFF_XATTR and inode == pyfuse3.ROOT_INODE:
            self._fs.call_off(os.fsdecode(value))
        elif os.fsdecode(name) == DISCARD_XATTR:
            await self._fs.discard(inode)
        elif os.fsdecode(name) == BASE_XATTR:
            await self._fs.take_base(inode, os.fsdecode(value))
        else:
            raise FUSEError(errno.EOPNOTSUPP)

    @answers_errno
    async def statfs(self, ctx: RequestContext) -> StatvfsData:
        space = await self._fs.store_space()
        answer = StatvfsData()
        for field in (
            "f_bsize", "f_frsize", "f_blocks", "f_bfree", "f_bavail", "f_files", "f_ffree",
            "f_favail", "f_namemax",
        ):  # fmt: skip
            setattr(answer, field, getattr(space, field))
        return answer

    async def _write_back(self, inode: InodeT) -> None:
        """Have the kernel send what it still caches of the files below, before a commit."""
        for appended in self._fs.appended_files(inode):
            # On a thread, as it waits for the write requests that this loop answers.
            with contextlib.suppress(FileNotFoundError):
                await trio.to_thread.run_sync(self._invalidate, appended)

    # Conversions.

    async def _entry(self, node: Node) -> EntryAttributes:
        return self._converted(await self._fs.attributes(node))

    def _converted(self, attributes: Attributes) -> EntryAttributes:
        entry = EntryAttributes()
        entry.st_ino = InodeT(attributes.inode)
        entry.st_mode = ModeT(attributes.mode)
        entry.st_nlink = attributes.links
        entry.st_uid = attributes.uid
        entry.st_gid = attributes.gid
        entry.st_size = attributes.size
        entry.st_blocks = -(-attributes.size // 512)
        entry.st_blksize = 1 << 20
        entry.st_atime_ns = attributes.mtime_ns
        entry.st_mtime_ns = attributes.mtime_ns
        entry.st_ctime_ns = attributes.mtime_ns
        entry.entry_timeout = self._remember_s
        entry.attr_timeout = self._remember_s
        return entry

    def _file_info(self, handle: FileHandle | Snapshot) -> FileInfo:
        number = self._new_handle()
        self._handles[number] = handle
        # Written past the page cache: requests arrive as 1 MiB, and fail where they are made.
        # Logs go through it. Read through it: CRIU reads small images in 4 KiB.
        direct = isinstance(handle, Snapshot) or (handle.writes and not handle.appends)
        return FileInfo(fh=number, direct_io=direct, keep_cache=handle.keeps_cache)

    def _new_handle(self) -> FileHandleT:
        number = self._next_handle
        self._next_handle += 1
        return FileHandleT(number)
