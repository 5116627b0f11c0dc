"""Buffers are received into again only when nothing refers to what they held."""

from __future__ import annotations

import gc

from cedanafs.fs.buffers import BUFFER_BYTES, Buffers


def receive(buffers: Buffers, content: int, length: int = BUFFER_BYTES) -> bytes | memoryview:
    buffers.next[:length] = bytes([content]) * length
    return buffers.taken(length)


def test_what_is_kept_is_not_written_over() -> None:
    buffers = Buffers(4)
    kept = [receive(buffers, n) for n in range(20)]
    for n, data in enumerate(kept):
        assert bytes(data) == bytes([n]) * BUFFER_BYTES
    assert all(isinstance(data, memoryview) for data in kept[:3])
    assert all(isinstance(data, bytes) for data in kept[3:])  # there are no more than four


def test_a_buffer_comes_back_with_the_last_slice_of_it() -> None:
    buffers = Buffers(2)
    first = receive(buffers, 1)
    part = memoryview(first)[100:200][10:20]
    del first
    gc.collect()
    for n in range(2, 8):
        receive(buffers, n)
    assert bytes(part) == b"\x01" * 10
    assert isinstance(receive(buffers, 8), bytes)
    del part
    assert isinstance(receive(buffers, 9), memoryview)


def test_a_buffer_is_used_again_and_again() -> None:
    buffers = Buffers(2)
    for n in range(50):
        assert isinstance(receive(buffers, n), memoryview)


def test_little_is_copied_out() -> None:
    buffers = Buffers(2)
    small = receive(buffers, 1, 4096)
    assert isinstance(small, bytes)
    receive(buffers, 2)
    assert small == b"\x01" * 4096


def test_nobody_writes_into_what_was_taken() -> None:
    assert memoryview(receive(Buffers(2), 1)).readonly
