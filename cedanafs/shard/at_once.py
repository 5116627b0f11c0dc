"""The same for each shard of a checkpoint, at the same time: the store may be far away."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from functools import partial
from typing import Final, TypeVar

from cedanafs.shard.workers import Workers, settle

S = TypeVar("S")
T = TypeVar("T")

_IDLE: Final[list[Workers]] = []
"""Threads with nothing to do: to start some takes longer than to open a local checkpoint."""

os.register_at_fork(after_in_child=_IDLE.clear)


def on_each(job: Callable[[S], T], items: Sequence[S]) -> list[T]:
    """What *job* returns for each of *items*, on as many threads. Blocks.

    Raises: the first failure, in the order of *items*, when all have ended.
    """
    futures: list[Future[T]] = [Future() for _ in items]
    hands = [_thread() for _ in items[1:]]
    for hand, item, future in zip(hands, items[1:], futures[1:], strict=True):
        hand.put(partial(settle, future, partial(job, item)))
    if items:
        settle(futures[0], partial(job, items[0]))
    failures = [future.exception() for future in futures]
    _IDLE.extend(hands)
    for failure in failures:
        if failure is not None:
            raise failure
    return [future.result() for future in futures]


def _thread() -> Workers:
    try:
        return _IDLE.pop()
    except IndexError:
        return Workers(1, name="cedanafs-shard")
