"""Shared anonymous memory of a parent and its child, and a memfd: contents, and still shared."""

import hashlib
import mmap
import os
import struct
import time

import _program

SIZE = _program.PARAMS.get("size_mib", 4) << 20
HEADER = 4096  # the child's counter, then the echo of the parent's
COUNTERS = struct.Struct("<QQ")

shared = mmap.mmap(-1, SIZE)  # MAP_SHARED
shared[HEADER:] = os.urandom(SIZE - HEADER)
memfd = os.memfd_create("cedanafs-workload")
os.write(memfd, os.urandom(SIZE))
mine = mmap.mmap(-1, mmap.PAGESIZE)  # the parent's counter, read by the child


def child(parent: int) -> None:
    ticks = 0
    while os.getppid() == parent:
        ticks += 1
        COUNTERS.pack_into(shared, 0, ticks, struct.unpack_from("<Q", mine)[0])
        time.sleep(0.005)
    os._exit(0)


root = os.getpid()
if os.fork() == 0:
    child(root)

ticks = 0


def tick() -> None:
    global ticks
    ticks += 1
    struct.pack_into("<Q", mine, 0, ticks)


def report() -> dict[str, object]:
    child_ticks, echoed = COUNTERS.unpack_from(shared, 0)
    return {
        "digest": hashlib.sha256(shared[HEADER:]).hexdigest(),
        "memfd_digest": hashlib.sha256(os.pread(memfd, SIZE, 0)).hexdigest(),
        "child_ticks": child_ticks,
        "echoed": echoed,
    }


_program.run(report, tick)
