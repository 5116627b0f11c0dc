"""Requests as the kernel sends them, through a socket in the device's place."""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pyfuse3
import pytest
import trio
import trio.testing

from cedanafs.fs.buffers import BUFFER_BYTES, Buffers
from cedanafs.fs.device import LISTING_BYTES, _Taken, _Traffic

LOOKUP, FORGET, READ, WRITE, INIT, READDIR, INTERRUPT, BATCH_FORGET = 1, 2, 15, 16, 26, 28, 36, 42
PATIENCE_S = 10.0


@dataclass
class Answers:
    """Keeps what it is asked, and answers what it was told to."""

    written: list[tuple[int, int, bytes]] = field(default_factory=list)
    was_read: list[tuple[int, int, int]] = field(default_factory=list)
    forgotten: list[tuple[int, int]] = field(default_factory=list)
    failure: pyfuse3.FUSEError | None = None
    waits: bool = False
    go_on: trio.Event = field(default_factory=trio.Event)

    def write_waits(self, fh: int, size: int) -> bool:
        return self.waits

    async def write(self, fh: int, off: int, buf: bytes | memoryview) -> int:
        if self.waits:
            await self.go_on.wait()
        if self.failure:
            raise self.failure
        self.written.append((fh, off, bytes(buf)))
        return len(buf)

    def read_waits(self, fh: int, off: int, size: int) -> bool:
        return self.waits

    async def read_pieces(self, fh: int, off: int, size: int) -> list[bytes]:
        self.was_read.append((fh, off, size))
        if self.waits:
            await self.go_on.wait()
        if self.failure:
            raise self.failure
        return [b"." * (size // 2), b"." * (size - size // 2)]

    async def forget(self, inode_list: Sequence[tuple[int, int]]) -> None:
        self.forgotten += inode_list


class Kernel:
    """The other sides of the device and of what libfuse has in its place."""

    def __init__(self, device: socket.socket, libfuse: socket.socket) -> None:
        self.device = trio.socket.from_stdlib_socket(device)
        self.libfuse = trio.socket.from_stdlib_socket(libfuse)

    async def ask(self, opcode: int, unique: int, body: bytes = b"", inode: int = 5) -> bytes:
        head = struct.pack("<IIQQIIIHH", 40 + len(body), opcode, unique, inode, 0, 0, 1, 0, 0)
        await self.device.send(head + body)
        return head + body

    async def answer(self) -> tuple[int, int, bytes]:
        """errno, unique, and the rest."""
        with trio.fail_after(PATIENCE_S):
            got = await self.device.recv(2 * BUFFER_BYTES)
        length, error, unique = struct.unpack_from("<IiQ", got)
        assert length == len(got)
        return -error, unique, got[16:]


@asynccontextmanager
async def traffic(data: Answers) -> AsyncIterator[Kernel]:
    device, kernel = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours, libfuse = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with device, ours:
        for end in (device, kernel):
            end.setsockopt(socket.SOL_SOCKET, 32, 4 * BUFFER_BYTES)  # SO_SNDBUFFORCE
        device.setblocking(False)
        ours.setblocking(False)
        sides = Kernel(kernel, libfuse)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_Traffic(_Taken(device.fileno(), ours), data, Buffers(3)).serve)
            yield sides
            nursery.cancel_scope.cancel()
        sides.device.close()
        sides.libfuse.close()


def a_write(offset: int, content: bytes) -> bytes:
    return struct.pack("<QQIIQII", 7, offset, len(content), 0, 0, 0, 0) + content


def a_read(offset: int, size: int) -> bytes:
    return struct.pack("<QQIIQII", 7, offset, size, 0, 0, 0, 0)


@pytest.mark.parametrize("length", [0, 1, 4096, BUFFER_BYTES // 2, BUFFER_BYTES])
def test_writes_are_taken_whole(length: int) -> None:
    async def asked() -> None:
        data = Answers()
        contents = [os.urandom(length) for _ in range(6)]
        async with traffic(data) as kernel:
            for n, content in enumerate(contents):
                await kernel.ask(WRITE, n, a_write(n * length, content))
                assert await kernel.answer() == (0, n, struct.pack("<II", length, 0))
        assert data.written == [(7, n * length, each) for n, each in enumerate(contents)]

    trio.run(asked)


def test_what_fails_is_answered_with_its_errno() -> None:
    async def asked() -> None:
        data = Answers(failure=pyfuse3.FUSEError(errno.ENOSPC))
        async with traffic(data) as kernel:
            await kernel.ask(WRITE, 3, a_write(0, b"some"))
            assert await kernel.answer() == (errno.ENOSPC, 3, b"")
            await kernel.ask(READ, 4, a_read(0, 9))
            assert await kernel.answer() == (errno.ENOSPC, 4, b"")

    trio.run(asked)


def test_reads_are_begun_in_the_order_of_their_coming() -> None:
    async def asked() -> None:
        data = Answers()
        async with traffic(data) as kernel:
            for n in range(50):
                await kernel.ask(READ, n, a_read(n * 4096, 10))
            answers = [await kernel.answer() for _ in range(50)]
        assert answers == [(0, n, b"." * 10) for n in range(50)]
        assert data.was_read == [(7, n * 4096, 10) for n in range(50)]

    trio.run(asked)


def test_what_waits_holds_nothing_up() -> None:
    async def asked() -> None:
        data = Answers(waits=True)
        async with traffic(data) as kernel:
            await kernel.ask(WRITE, 1, a_write(0, b"some"))
            await kernel.ask(READ, 2, a_read(0, 9))
            await trio.testing.wait_all_tasks_blocked()
            data.waits = False
            await kernel.ask(READ, 3, a_read(9, 9))
            assert (await kernel.answer())[1] == 3
            data.go_on.set()
            assert {(await kernel.answer())[1] for _ in range(2)} == {1, 2}
        assert data.written == [(7, 0, b"some")]

    trio.run(asked)


def test_what_is_forgotten_is_told_and_not_answered() -> None:
    async def asked() -> None:
        data = Answers()
        async with traffic(data) as kernel:
            await kernel.ask(FORGET, 0, struct.pack("<Q", 3), inode=9)
            some = [(n, n + 1) for n in range(20_000)]
            body = b"".join(struct.pack("<QQ", *each) for each in some)
            await kernel.ask(BATCH_FORGET, 0, struct.pack("<II", len(some), 0) + body)
            await kernel.ask(INTERRUPT, 1, struct.pack("<Q", 4))
            await kernel.ask(READ, 2, a_read(0, 1))
            assert (await kernel.answer())[1] == 2
        assert data.forgotten == [(9, 3), *some]

    trio.run(asked)


def test_all_else_is_libfuses() -> None:
    async def asked() -> None:
        async with traffic(Answers()) as kernel:
            for body in (b"a name\0", b"", b"x" * 40, b"y" * 41, os.urandom(70_000)):
                request = await kernel.ask(LOOKUP, 8, body)
                assert await kernel.libfuse.recv(BUFFER_BYTES) == request
                answer = struct.pack("<IiQ", 16 + len(body), 0, 8) + body
                await kernel.libfuse.send(answer if len(body) > 20 else answer + bytes(20))

    trio.run(asked)


def test_libfuse_is_asked_for_no_more_than_the_socket_takes() -> None:
    async def asked() -> None:
        async with traffic(Answers()) as kernel:
            await kernel.ask(INIT, 1, bytes(16))
            await kernel.libfuse.recv(BUFFER_BYTES)
            # major, minor, max_readahead, flags, max_background, congestion, max_write
            answer = struct.pack("<IIIIHHI", 7, 31, 1 << 17, 0, 0, 0, 4 * BUFFER_BYTES)
            await kernel.libfuse.send(struct.pack("<IiQ", 16 + len(answer), 0, 1) + answer)
            _, _, got = await kernel.answer()
            assert struct.unpack("<IIIIHHI", got)[-1] == BUFFER_BYTES
            await kernel.ask(READDIR, 2, a_read(0, BUFFER_BYTES))
            request = await kernel.libfuse.recv(BUFFER_BYTES)
            assert struct.unpack_from("<QQI", request, 40) == (7, 0, LISTING_BYTES)

    trio.run(asked)
