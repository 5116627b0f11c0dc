"""The same for each shard: here while it is quick, at the same time when it is not."""

from __future__ import annotations

import threading

import pytest

from cedanafs.shard import at_once
from cedanafs.shard.at_once import on_each


def test_what_is_quick_is_done_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(at_once, "FAR_S", 1e9)
    assert on_each(lambda _: threading.get_ident(), range(5)) == [threading.get_ident()] * 5


def test_all_behind_one_that_took_long_are_done_at_the_same_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(at_once, "FAR_S", -1.0)
    together = threading.Barrier(4, timeout=10)

    def job(n: int) -> int:
        if n:
            together.wait()
        return n * n

    for _ in range(3):  # with threads that are new, and with the same again
        assert on_each(job, range(5)) == [0, 1, 4, 9, 16]


def test_what_is_known_to_be_far_is_done_at_the_same_time() -> None:
    together = threading.Barrier(3, timeout=10)
    together_at = on_each(lambda _: together.wait(), range(3), far=True)
    assert sorted(together_at) == [0, 1, 2]


def test_the_first_failure_is_raised_when_all_have_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(at_once, "FAR_S", -1.0)
    ended: list[int] = []

    def job(n: int) -> None:
        ended.append(n)
        if n >= 2:
            raise KeyError(n)

    with pytest.raises(KeyError, match="2"):
        on_each(job, range(5))
    assert sorted(ended) == [0, 1, 2, 3, 4]
    assert on_each(job, []) == []
