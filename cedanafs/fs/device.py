"""/dev/fuse, read here: what is data is answered past libfuse, all else is handed to it.

pyfuse3 takes a new piece of memory for each write and copies what the kernel has copied already,
holding the interpreter lock for both. Here a write is received into memory that is used again and
again, and goes to the compressor from there. libfuse has one end of a socket where it had the
device: it gets every other request as the kernel sent it, and answers as ever.

Source: linux/fuse.h, protocol 7; the layouts of these few requests have not changed since 7.9.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import socket
import struct
from collections.abc import Awaitable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

import pyfuse3
import trio

from cedanafs.fs.buffers import BUFFER_BYTES, Buffers
from cedanafs.shard.codec import Bytes

logger = logging.getLogger(__name__)

DEVICE: Final = "/dev/fuse"

_REQUEST: Final = struct.Struct("<IIQQIIIHH")  # length, opcode, unique, inode, uid, gid, pid, -, -
_DATA: Final = struct.Struct("<QQIIQII")  # handle, offset, size, flags, lock owner, flags, -
_FORGOTTEN: Final = struct.Struct("<QQ")  # inode, lookups
_LOOKUPS: Final = struct.Struct("<Q")
_COUNT: Final = struct.Struct("<II")  # of those that follow, -
_ANSWER: Final = struct.Struct("<IiQ")  # length, -errno, unique
_WRITTEN: Final = struct.Struct("<II")  # size, -
_SIZE: Final = struct.Struct("<I")
_LISTING_AT: Final = _REQUEST.size + 16  # what a READDIR may be answered with
_MAX_WRITE_AT: Final = _ANSWER.size + 20  # in the answer to INIT
_INODE_RANGE: Final = struct.Struct("<Qqq")  # inode, offset, length

_FORGET, _READ, _WRITE, _READDIR, _INTERRUPT, _BATCH_FORGET, _READDIRPLUS = (
    2, 15, 16, 28, 36, 42, 44,
)  # fmt: skip
_INVALIDATE_INODE: Final = 2

AT_ONCE: Final = 8
"""Requests that are received one after the other, where so many are there, before other tasks have
their turn: a tree of processes was restored in 0.93x."""

HEAD_BYTES: Final = _REQUEST.size + _DATA.size
"""What comes before the data of a write, which so begins where a buffer does."""

LISTING_BYTES: Final = 64 << 10
"""What a READDIR is answered with at the most; no other answer of libfuse's is longer."""

SOCKET_BYTES: Final = 16 << 20
"""Room for that for each of the 99 requests that pyfuse3 handles at a time: libfuse would wait for
room, holding the one thread that makes some."""


class Data(Protocol):
    """Who answers. Raises: FUSEError."""

    def read_pieces(
        self, fh: pyfuse3.FileHandleT, off: int, size: int, /
    ) -> Awaitable[Sequence[Bytes]]: ...

    def read_waits(self, fh: pyfuse3.FileHandleT, off: int, size: int, /) -> bool:
        """Whether `read_pieces` may have to wait for something."""

    def write(self, fh: pyfuse3.FileHandleT, off: int, buf: Bytes, /) -> Awaitable[int]: ...

    def write_waits(self, fh: pyfuse3.FileHandleT, size: int, /) -> bool:
        """Whether `write` may have to."""

    def forget(self, inode_list: list[tuple[pyfuse3.InodeT, int]], /) -> Awaitable[None]: ...


class Device:
    """The device of the one mount that pyfuse3 has in this process."""

    def __init__(self, buffers: Buffers) -> None:
        self._buffers = buffers
        self._taken: _Taken | None = None

    @contextlib.contextmanager
    def taken(self) -> Iterator[None]:
        """Around `serve`, when pyfuse3 has mounted: libfuse has the device again afterwards."""
        fd = _libfuse_fd()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with ours, theirs:
            if not (_has_room(ours) and _has_room(theirs)):
                logger.info("no CAP_NET_ADMIN: libfuse reads %s, and copies each write", DEVICE)
                yield
                return
            ours.setblocking(False)
            taken = os.dup(fd)
            os.set_blocking(taken, False)
            os.dup2(theirs.fileno(), fd, inheritable=False)
            self._taken = _Taken(taken, ours)
            try:
                yield
            finally:
                self._taken = None
                os.dup2(taken, fd, inheritable=False)  # it looks there whether it is mounted
                os.close(taken)

    async def serve(self, data: Data) -> None:
        """Answer, until the filesystem is unmounted."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(pyfuse3.main)
            if self._taken is not None:
                await _Traffic(self._taken, data, self._buffers).serve()
                pyfuse3.terminate()

    def invalidate(self, inode: int) -> None:
        """Have the kernel send what it still caches of a file. Blocks until that is answered.

        Raises: FileNotFoundError when the kernel knows no such file.
        """
        if self._taken is None:
            pyfuse3.invalidate_inode(pyfuse3.InodeT(inode))
        else:
            length = _ANSWER.size + _INODE_RANGE.size
            notice = _ANSWER.pack(length, _INVALIDATE_INODE, 0)
            os.write(self._taken.fd, notice + _INODE_RANGE.pack(inode, 0, 0))


@dataclass(frozen=True, slots=True)
class _Taken:
    fd: int
    """The device, which does not block."""
    libfuse: socket.socket
    """The other end of what libfuse has in its place."""


class _Traffic:
    """What comes from the device and goes to it, until there is no filesystem behind it."""

    def __init__(self, taken: _Taken, data: Data, buffers: Buffers) -> None:
        self._fd = taken.fd
        self._libfuse = taken.libfuse
        self._data = data
        self._buffers = buffers

    async def serve(self) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._pass_answers)
            await self._receive(nursery)
            nursery.cancel_scope.cancel()

    async def _receive(self, nursery: trio.Nursery) -> None:
        head = bytearray(HEAD_BYTES)
        while True:
            await trio.lowlevel.wait_readable(self._fd)
            for _ in range(AT_ONCE):
                try:
                    length = os.readv(self._fd, (head, self._buffers.next))
                except OSError as exc:
                    if exc.errno in (errno.ENODEV, errno.ECONNABORTED):
                        return
                    if exc.errno not in (errno.EAGAIN, errno.ENOENT):  # taken back meanwhile
                        raise
                    break
                # One after the other: they are begun in the order of their coming.
                await self._begin(nursery, head, length)

    async def _begin(self, nursery: trio.Nursery, head: bytearray, length: int) -> None:
        """The request of *length* bytes that is in *head* and in the next buffer."""
        _, opcode, unique, inode, *_ = _REQUEST.unpack_from(head)
        if opcode == _WRITE:
            handle, offset, size, *_ = _DATA.unpack_from(head, _REQUEST.size)
            data = self._buffers.taken(size)
            # A task for each takes longer than most of what it does: froze 0.95x without.
            if self._data.write_waits(handle, size):
                nursery.start_soon(self._write, unique, handle, offset, data)
            else:
                await self._write(unique, handle, offset, data)
        elif opcode == _READ:
            handle, offset, size, *_ = _DATA.unpack_from(head, _REQUEST.size)
            if self._data.read_waits(handle, offset, size):
                nursery.start_soon(self._read, unique, handle, offset, size)
            else:
                await self._read(unique, handle, offset, size)
        elif opcode == _FORGET:
            (lookups,) = _LOOKUPS.unpack_from(head, _REQUEST.size)
            await self._data.forget([(pyfuse3.InodeT(inode), lookups)])
        else:
            rest = self._buffers.next[: max(length - HEAD_BYTES, 0)]
            request = bytearray(head[:length]) + rest
            if opcode == _BATCH_FORGET:
                await self._data.forget(_forgotten(request))
            elif opcode != _INTERRUPT:  # nobody here is interrupted
                if opcode in (_READDIR, _READDIRPLUS):
                    _limit(request, _LISTING_AT, LISTING_BYTES)
                await self._hand_over(request)

    async def _hand_over(self, request: bytearray) -> None:
        while True:
            try:
                self._libfuse.send(request)
            except BlockingIOError:
                await trio.lowlevel.wait_writable(self._libfuse)
            else:
                return

    async def _pass_answers(self) -> None:
        room = memoryview(bytearray(2 * LISTING_BYTES))
        begun = False
        while True:
            try:
                length = self._libfuse.recv_into(room)
            except BlockingIOError:
                await trio.lowlevel.wait_readable(self._libfuse)
                continue
            if not begun:  # to INIT
                begun = True
                _limit(room[:length], _MAX_WRITE_AT, BUFFER_BYTES)
            self._answer(room[:length])

    async def _write(
        self, unique: int, handle: pyfuse3.FileHandleT, offset: int, data: Bytes
    ) -> None:
        try:
            written = await self._data.write(handle, offset, data)
        except pyfuse3.FUSEError as exc:
            self._refuse(unique, exc)
        else:
            length = _ANSWER.size + _WRITTEN.size
            self._answer(_ANSWER.pack(length, 0, unique), _WRITTEN.pack(written, 0))

    async def _read(self, unique: int, handle: pyfuse3.FileHandleT, offset: int, size: int) -> None:
        try:
            pieces = await self._data.read_pieces(handle, offset, size)
        except pyfuse3.FUSEError as exc:
            self._refuse(unique, exc)
        else:
            length = _ANSWER.size + sum(map(len, pieces))
            self._answer(_ANSWER.pack(length, 0, unique), *pieces)

    def _refuse(self, unique: int, exc: pyfuse3.FUSEError) -> None:
        self._answer(_ANSWER.pack(_ANSWER.size, -exc.errno, unique))

    def _answer(self, *pieces: Bytes) -> None:
        try:
            os.writev(self._fd, pieces)
        except OSError as exc:
            # Who asked was killed meanwhile, or the filesystem unmounted: nobody waits for it.
            if exc.errno not in (errno.ENOENT, errno.ENODEV, errno.ECONNABORTED):
                raise


def _libfuse_fd() -> int:
    """libfuse's file descriptor of the device; pyfuse3 has one mount in a process."""
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):
            if os.readlink(f"/proc/self/fd/{name}") == DEVICE:
                return int(name)
    raise AssertionError("pyfuse3 has mounted something")


def _has_room(end: socket.socket) -> bool:
    so_sndbufforce = 32  # asm-generic/socket.h; past net.core.wmem_max, with CAP_NET_ADMIN
    with contextlib.suppress(PermissionError):
        end.setsockopt(socket.SOL_SOCKET, so_sndbufforce, SOCKET_BYTES)
    return end.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) >= SOCKET_BYTES


def _limit(message: memoryview | bytearray, at: int, most: int) -> None:
    """Make the number at *at* in *message* no more than *most*."""
    (number,) = _SIZE.unpack_from(message, at)
    _SIZE.pack_into(message, at, min(number, most))


def _forgotten(request: bytearray) -> list[tuple[pyfuse3.InodeT, int]]:
    count, _ = _COUNT.unpack_from(request, _REQUEST.size)
    begin = _REQUEST.size + _COUNT.size
    some = request[begin : begin + count * _FORGOTTEN.size]
    return [(pyfuse3.InodeT(inode), n) for inode, n in _FORGOTTEN.iter_unpack(some)]
