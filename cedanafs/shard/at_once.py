"""The same for each shard of a checkpoint, at the same time: the store may be far away."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Final, TypeVar

from cedanafs.shard.workers import Workers

S = TypeVar("S")
T = TypeVar("T")

_IDLE: Final[list[Workers]] = []
"""Threads with nothing to do: to start some takes longer than to open a local checkpoint."""

os.register_at_fork(after_in_child=_IDLE.clear)


FAR_S: Final = 0.002
"""What takes longer is worth a thread: handing it over takes a tenth of a millisecond."""


def on_each(job: Callable[[S], T], items: Sequence[S], *, far: bool = False) -> list[T]:
    """What *job* returns for each of *items*. Blocks.

    One after the other, as long as that is quick, as on a local store; as soon as it is not, or if
    they are known to be *far*, all others at the same time. Raises: the first failure, in the order
    of *items*, when all that were begun have ended.
    """
    results: list[T] = []
    for item in () if far else items:
        begun_s = time.monotonic()
        results.append(job(item))
        if time.monotonic() - begun_s > FAR_S:
            break
    left = items[len(results) :]
    hands = [_thread() for _ in left]
    futures = [hand.submit(partial(job, item)) for hand, item in zip(hands, left, strict=True)]
    failures = [future.exception() for future in futures]
    _IDLE.extend(hands)
    for failure in failures:
        if failure is not None:
            raise failure
    return results + [future.result() for future in futures]


def _thread() -> Workers:
    try:
        return _IDLE.pop()
    except IndexError:
        return Workers(1, name="cedanafs-shard")
