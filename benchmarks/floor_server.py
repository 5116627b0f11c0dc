"""A filesystem with as little in it as can be: what no mount of ours can be faster than.

    python -m benchmarks.floor_server MODE MOUNTPOINT STORE

One directory, until it is unmounted. Written with direct_io, and received and answered by the same
`fs.device`, as cedanafs does it. MODE is
`discard`: memory pages are thrown away, small images are kept, so a dump succeeds; `memory`:
everything is kept and served through the page cache; `memory-direct`: pages past it;
`bare-lz4`: memory pages are compressed by four threads into four files in STORE, and are durable
when an fsync of the directory returns: no index, no checksums, nothing to restore from;
`bare-copy`: the same, not even compressed.
"""

from __future__ import annotations

import errno
import os
import queue
import stat
import sys
import threading
from bisect import bisect_right
from collections.abc import Callable
from functools import partial
from pathlib import Path

import lz4.frame
import pyfuse3
import trio
from pyfuse3 import EntryAttributes, FileInfo, FUSEError

from cedanafs.fs.buffers import Buffers
from cedanafs.fs.device import Device
from cedanafs.fs.mount import tune_kernel

Buffer = bytes | memoryview
FOREVER_S = 3600.0
SHARDS = 4
QUEUED_WRITES = 96  # of 1 MiB: as much as cedanafs lets wait by default
PACKS: dict[str, Callable[[Buffer], Buffer]] = {
    "bare-lz4": partial(lz4.frame.compress, store_size=False),
    "bare-copy": lambda buffer: buffer,
}


class File:
    """What was written, buffer by buffer, as it came."""

    def __init__(self) -> None:
        self._buffers: list[bytes] = []
        self._starts: list[int] = []
        self.size = 0

    def append(self, buffer: bytes) -> None:
        self._starts.append(self.size)
        self._buffers.append(buffer)
        self.size += len(buffer)

    def read(self, offset: int, size: int) -> Buffer:
        at = bisect_right(self._starts, offset) - 1
        if at < 0 or offset >= self.size:
            return b""
        inner = offset - self._starts[at]
        first = memoryview(self._buffers[at])[inner : inner + size]
        if len(first) == size or at + 1 == len(self._buffers):
            return first
        parts: list[Buffer] = [first]
        missing = size - len(first)
        for buffer in self._buffers[at + 1 :]:
            if missing <= 0:
                break
            parts.append(buffer[:missing])
            missing -= len(parts[-1])
        return b"".join(parts)


class Shards:
    """Threads that pack what comes, each into a file of its own."""

    def __init__(self, store: str, pack: Callable[[Buffer], Buffer]) -> None:
        self._pack = pack
        self._queue: queue.Queue[Buffer] = queue.Queue(QUEUED_WRITES)
        self._fds = [
            os.open(f"{store}/img-{k}", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            for k in range(SHARDS)
        ]
        for fd in self._fds:
            threading.Thread(target=self._serve, args=(fd,), daemon=True).start()

    async def append(self, buffer: Buffer) -> None:
        try:
            self._queue.put_nowait(buffer)
        except queue.Full:
            await trio.to_thread.run_sync(self._queue.put, buffer)

    def full(self) -> bool:
        return self._queue.full()

    def commit(self) -> None:
        """Return when everything is durable."""
        self._queue.join()
        for fd in self._fds:
            os.fsync(fd)

    def _serve(self, fd: int) -> None:
        while True:
            os.write(fd, self._pack(self._queue.get()))
            self._queue.task_done()


class Floor(pyfuse3.Operations):
    """Inode 1 is the directory, the others are files; a handle is its file's inode."""

    def __init__(self, mode: str, store: str) -> None:
        super().__init__()
        self._keeps = mode.startswith("memory")
        pack = PACKS.get(mode)
        self._shards = Shards(store, pack) if pack else None
        self._direct = mode == "memory-direct"
        self._names: dict[bytes, int] = {}
        self._files: dict[int, File] = {}
        self._pages: set[int] = set()
        self._next = pyfuse3.ROOT_INODE + 1

    async def getattr(self, inode: int, ctx: object = None) -> EntryAttributes:
        entry = EntryAttributes()
        entry.st_ino = inode
        entry.attr_timeout = entry.entry_timeout = FOREVER_S
        file = self._files.get(inode)
        entry.st_mode = stat.S_IFREG | 0o600 if file else stat.S_IFDIR | 0o700
        entry.st_nlink = 1
        entry.st_size = file.size if file else 0
        return entry

    async def setattr(
        self, inode: int, attr: object, fields: object, fh: int | None, ctx: object
    ) -> EntryAttributes:
        return await self.getattr(inode)

    async def lookup(self, parent: int, name: bytes, ctx: object) -> EntryAttributes:
        if name == b".":
            return await self.getattr(pyfuse3.ROOT_INODE)
        if name not in self._names:
            raise FUSEError(errno.ENOENT)
        return await self.getattr(self._names[name])

    async def create(
        self, parent: int, name: bytes, mode: int, flags: int, ctx: object
    ) -> tuple[FileInfo, EntryAttributes]:
        inode = self._names[name] = self._next
        self._next += 1
        self._files[inode] = File()
        if name.startswith(b"pages-"):
            self._pages.add(inode)
        return FileInfo(fh=inode, direct_io=True), await self.getattr(inode)

    async def open(self, inode: int, flags: int, ctx: object) -> FileInfo:
        writes = bool(flags & (os.O_WRONLY | os.O_RDWR))
        # Small images are read in 4 KiB: they are better off cached in any case.
        return FileInfo(fh=inode, direct_io=writes or (self._direct and inode in self._pages))

    def write_waits(self, fh: int, size: int) -> bool:
        return self._shards is not None and self._shards.full()

    async def write(self, fh: int, offset: int, buffer: Buffer) -> int:
        if self._keeps or fh not in self._pages:
            self._files[fh].append(bytes(buffer))
        elif self._shards:
            await self._shards.append(buffer)
        return len(buffer)

    def read_waits(self, fh: int, offset: int, size: int) -> bool:
        return False

    async def read_pieces(self, fh: int, offset: int, size: int) -> list[Buffer]:
        return [await self.read(fh, offset, size)]

    async def read(self, fh: int, offset: int, size: int) -> Buffer:  # type: ignore[override]
        return self._files[fh].read(offset, size)

    async def unlink(self, parent: int, name: bytes, ctx: object) -> None:
        if name not in self._names:
            raise FUSEError(errno.ENOENT)
        del self._names[name]

    async def flush(self, fh: int) -> None:
        pass

    async def release(self, fh: int) -> None:
        pass

    async def forget(self, inodes: object) -> None:
        pass

    async def opendir(self, inode: int, ctx: object) -> int:
        return inode

    async def readdir(self, fh: int, start: int, token: object) -> None:
        pass

    async def fsyncdir(self, fh: int, datasync: bool) -> None:
        if self._shards:
            await trio.to_thread.run_sync(self._shards.commit)

    async def statfs(self, ctx: object) -> pyfuse3.StatvfsData:
        answer = pyfuse3.StatvfsData()
        answer.f_bsize = answer.f_frsize = 4096
        answer.f_blocks = answer.f_bfree = answer.f_bavail = 1 << 30
        answer.f_files = answer.f_ffree = answer.f_favail = 1 << 20
        return answer


def main() -> None:
    mode, mountpoint, store = sys.argv[1:]
    options = {*pyfuse3.default_options, "fsname=floor", "subtype=floor"}
    floor = Floor(mode, store)
    device = Device(Buffers(1 + QUEUED_WRITES))
    pyfuse3.init(floor, mountpoint, options)
    try:
        with device.taken():
            trio.run(serve, device, floor, mountpoint)
    finally:
        pyfuse3.close(unmount=True)


async def serve(device: Device, floor: Floor, mountpoint: str) -> None:
    """Says `ready` on stdout when the mount answers, tuned as a real one is."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(device.serve, floor)
        await trio.to_thread.run_sync(tune_kernel, Path(mountpoint))
        print("ready", flush=True)


if __name__ == "__main__":
    main()
