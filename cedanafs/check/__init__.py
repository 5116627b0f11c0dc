"""Is this machine ready, and is a store: one finding for each thing that has to be so.

Looks, runs `criu check`, mounts an empty store of its own for a moment, writes and removes a file
in the store; changes nothing else. What is wrong is said in the findings, not raised.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

from cedanafs.check import criu as of_criu
from cedanafs.check import fuse, limits, objects, stores
from cedanafs.check.findings import Finding, State
from cedanafs.shard.place import ObjectPath, Place

__all__ = ["Finding", "State", "machine", "store"]


async def machine(criu: str | None = None, *, full: bool = False) -> AsyncIterator[Finding]:
    """What dumps and restores need of this machine; *criu* as `find_criu` takes it.

    *full*: every feature of CRIU's that something may need, and a process of our own dumped and
    restored.
    """
    async for finding in fuse.findings():
        yield finding
    async for finding in of_criu.findings(criu, full=full):
        yield finding
    for limit in limits.findings():
        yield limit
    if full:
        yield Finding(
            "auto-dedup",
            State.WARNING,
            "CRIU's --auto-dedup punches holes, which a mount cannot",
            "leave --auto-dedup and `criu dedup` away",
        )


def store(place: Place, *, full: bool = False) -> Iterator[Finding]:
    """Whether checkpoints can be kept at *place*; *full* looks at all that is there already."""
    if isinstance(place, ObjectPath):
        return objects.findings(place)
    return stores.store(place, full=full)
