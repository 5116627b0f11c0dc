"""What the store is being asked just now, by whichever thread, and since when.

A store that hangs answers nothing, and nothing gets its thread back. Who waits with `fs/patience`
has no need of this.
"""

from __future__ import annotations

import contextlib
import errno
import threading
import time
from collections.abc import Callable, Iterator
from typing import Final, TypeVar

from cedanafs.errors import StoreError
from cedanafs.shard.workers import Workers

T = TypeVar("T")

_ASKED: Final[dict[int, tuple[str, float]]] = {}
"""By thread: what, and since when."""


@contextlib.contextmanager
def asking(what: str) -> Iterator[None]:
    """Around what the store has to answer."""
    thread = threading.get_ident()
    outer = _ASKED.get(thread)
    _ASKED[thread] = what, time.monotonic()
    try:
        yield
    finally:
        if outer is None:
            del _ASKED[thread]
        else:
            _ASKED[thread] = outer


def patiently(job: Callable[[], T], timeout_s: float) -> T:
    """What *job* returns, on another thread; however long, if each answer comes in *timeout_s*.

    0: as long as it takes. Raises: what *job* raises; StoreError, and the thread is left to itself.
    """
    if not timeout_s:
        return job()
    done = Workers(1, name="cedanafs-asking").submit(job)
    while True:
        with contextlib.suppress(TimeoutError):
            done.exception(min(timeout_s / 8, 1))
            return done.result()
        for what, since_s in list(_ASKED.values()):
            if time.monotonic() - since_s > timeout_s:
                raise StoreError(
                    f"cannot {what}: the store has not answered for {timeout_s:.0f} s "
                    "(--store-timeout)",
                    os_errno=errno.ETIMEDOUT,
                )
