"""Lanes: order within one, the budget, and the back-pressure it makes."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator

import pytest

from cedanafs.shard.lanes import Lanes

PATIENCE_S = 10.0


@pytest.fixture
def lanes() -> Iterator[Lanes]:
    with Lanes(2, budget_bytes=100) as lanes:
        yield lanes


def land(lanes: Lanes, shard: int, length: int, job: Callable[[], None]) -> None:
    """Have *job* done where data is compressed, of which nothing comes."""

    def append(_: object) -> None:
        raise AssertionError("there is nothing to append")

    lanes.land(shard, length, job, append)


def gate(lanes: Lanes, shard: int) -> threading.Event:
    """Hold the shard's lane until the event is set; returns when it is held."""
    held, opened = threading.Event(), threading.Event()

    def wait() -> None:
        held.set()
        opened.wait(PATIENCE_S)

    land(lanes, shard, 0, wait)
    assert held.wait(PATIENCE_S)
    return opened


def test_jobs_of_one_shard_run_in_order(lanes: Lanes) -> None:
    done: list[int] = []
    opened = gate(lanes, 0)
    for n in range(50):
        land(lanes, 0, 0, lambda n=n: done.append(n))
        lanes.submit(0, lambda n=n: done.append(n))
    last = lanes.submit(0, lambda: list(done))
    opened.set()
    assert last.result(PATIENCE_S) == [n for n in range(50) for _ in range(2)]


def test_a_shard_keeps_its_lane_and_others_go_on(lanes: Lanes) -> None:
    opened = gate(lanes, 0)
    assert lanes.submit(1, threading.get_ident).result(PATIENCE_S) != threading.get_ident()
    behind = lanes.submit(2, lambda: "lane 0")  # modulo the number of lanes
    assert not behind.done()
    opened.set()
    assert behind.result(PATIENCE_S) == "lane 0"


def test_the_budget_is_what_may_be_taken(lanes: Lanes) -> None:
    assert lanes.try_reserve(60)
    assert not lanes.try_reserve(41)
    assert lanes.try_reserve(40)
    assert lanes.in_use_bytes == 100
    lanes.release(100)
    assert lanes.in_use_bytes == 0


def test_more_than_the_budget_is_given_when_nothing_is_in_use(lanes: Lanes) -> None:
    assert lanes.try_reserve(101)
    assert not lanes.try_reserve(1)
    lanes.release(101)
    assert lanes.try_reserve(1000)
    lanes.release(1000)


def test_who_found_no_room_is_told_when_bytes_have_landed(lanes: Lanes) -> None:
    told = threading.Event()
    opened = gate(lanes, 0)
    assert lanes.try_reserve(90)
    land(lanes, 0, 90, lambda: None)
    lanes.on_progress = lambda: told.set() if lanes.try_reserve(20) else None
    assert not lanes.try_reserve(20)
    opened.set()
    assert told.wait(PATIENCE_S)


def test_many_writers_never_exceed_the_budget(lanes: Lanes) -> None:
    seen: list[int] = []

    def write(k: int) -> None:
        for _ in range(100):
            while not lanes.try_reserve(30):
                time.sleep(0.0001)
            land(lanes, k, 30, lambda: seen.append(lanes.in_use_bytes))

    writers = [threading.Thread(target=write, args=[k]) for k in range(4)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(PATIENCE_S)
    for shard in (0, 1):
        lanes.submit(shard, lambda: None).result(PATIENCE_S)
    assert len(seen) == 400
    assert max(seen) <= 100
    assert lanes.in_use_bytes == 0


def test_a_full_queue_has_no_room_and_others_have(lanes: Lanes) -> None:
    opened = gate(lanes, 0)
    assert lanes.has_room(0, 2)
    assert lanes.try_reserve(50)
    land(lanes, 0, 50, lambda: None)
    assert not lanes.has_room(0, 2)
    assert lanes.has_room(1, 2)
    opened.set()
    lanes.submit(0, lambda: None).result(PATIENCE_S)
    assert lanes.has_room(0, 2)


def test_what_fails_gives_its_bytes_back_and_the_lane_lives_on(lanes: Lanes) -> None:
    def fail() -> None:
        raise KeyError("on purpose")

    with pytest.raises(KeyError):
        lanes.submit(0, fail).result(PATIENCE_S)
    assert lanes.submit(0, lambda: 1).result(PATIENCE_S) == 1


def test_leaving_runs_what_is_queued() -> None:
    done: list[int] = []
    with Lanes(1, budget_bytes=10) as lanes:
        land(lanes, 0, 0, lambda: time.sleep(0.01))
        for n in range(5):
            land(lanes, 0, 0, lambda n=n: done.append(n))
    assert done == [0, 1, 2, 3, 4]
