"""Memory that writes are received into, used again when nobody holds any of it any more."""

from __future__ import annotations

import contextlib
import ctypes
import mmap
from collections import deque
from typing import Final

from cedanafs.shard.codec import Bytes

BUFFER_BYTES: Final = 1 << 20
"""What a request of the kernel's writes at the most."""

_LENT_BYTES: Final = BUFFER_BYTES // 2
"""Less than this is copied out of its buffer, rather than keep so much for so little."""


class _Loan(ctypes.c_char * BUFFER_BYTES):  # type: ignore[misc]
    """A buffer, for as long as anything refers to it: a view of it, or a slice of one.

    Python counts those; who compresses, keeps or drops them need not know of buffers.
    """

    free: deque[memoryview]
    buffer: memoryview

    def __del__(self) -> None:
        self.free.append(self.buffer)


class Buffers:
    """*count* of them: one to receive into, the others to be lent. Each begins with a page."""

    def __init__(self, count: int) -> None:
        arena = mmap.mmap(-1, count * BUFFER_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        with contextlib.suppress(OSError):  # a kernel without them
            # The kernel looks up each page that it copies to: froze the process for 0.92x.
            arena.madvise(mmap.MADV_HUGEPAGE)
        whole = memoryview(arena)
        starts = range(0, len(whole), BUFFER_BYTES)
        self._free = deque(whole[at : at + BUFFER_BYTES] for at in reversed(starts))
        self.next = self._free.pop()
        """What is received into next."""

    def taken(self, length: int) -> Bytes:
        """The first *length* bytes of `next`, to keep; `next` is another one if need be."""
        if length < _LENT_BYTES or not self._free:
            return bytes(self.next[:length])
        loan = _Loan.from_buffer(self.next)
        loan.free, loan.buffer = self._free, self.next
        self.next = self._free.pop()  # the one used last, which the processor may still have
        return memoryview(loan).cast("B")[:length].toreadonly()
