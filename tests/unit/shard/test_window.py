"""How many reads a store gets at once: as many as pay."""

from __future__ import annotations

from cedanafs.shard.window import FAR_READS, MAX_READS, SLOW_S, Window

MIB = 1 << 20


def settled(window: Window, *, rtt_s: float, bytes_per_s: float, length: int = MIB // 3) -> int:
    """How many reads are under way at a store of such a link, after some hundred of them."""
    for _ in range(400):
        # Those under way share the link; each takes the delay at least.
        window.note(length, max(rtt_s, window.reads * length / bytes_per_s), full=True)
    return window.reads


def test_a_local_store_gets_as_many_as_there_are_shards() -> None:
    assert settled(Window(4), rtt_s=0.0002, bytes_per_s=1e9) == 4


def test_bandwidth_times_delay_is_filled_and_not_many_times_over() -> None:
    for rtt_s, bytes_per_s in ((0.02, 1e8), (0.05, 1e8), (0.1, 5e7)):
        fitting = rtt_s * bytes_per_s / (MIB // 3)
        assert fitting <= settled(Window(4), rtt_s=rtt_s, bytes_per_s=bytes_per_s) <= 4 * fitting


def test_there_is_an_end_to_it() -> None:
    assert settled(Window(4), rtt_s=1, bytes_per_s=1e12) == MAX_READS
    assert settled(Window(200), rtt_s=1, bytes_per_s=1e12) == 200


def test_long_reads_are_not_taken_for_waiting_ones() -> None:
    window = Window(4)
    for length, took_s in ((500, 0.01), (MIB, 0.08)) * 20:
        window.note(length, took_s, full=True)
    assert window.reads > 30


def test_a_busy_machine_is_no_slow_store() -> None:
    window = Window(4)
    for n in range(1000):
        window.note(MIB, 0.0005 if n % 6 == 0 else 0.03, full=True)
        assert not window.slow


def test_who_asks_for_little_does_not_widen_it() -> None:
    window = Window(4)
    for _ in range(100):
        window.note(MIB, 0.02, full=False)
    assert not window.slow


def test_it_narrows_when_the_store_is_near_again() -> None:
    window = Window(4)
    settled(window, rtt_s=0.05, bytes_per_s=1e9)
    assert window.slow
    settled(window, rtt_s=SLOW_S / 10, bytes_per_s=1e11)
    assert not window.slow


def test_a_bucket_is_taken_for_far_until_it_was_read() -> None:
    window = Window(4)
    window.begin_far()
    assert window.slow
    assert window.reads == FAR_READS
    for _ in range(3):  # it is near
        window.note(MIB, SLOW_S / 10, full=True)
        window.begin_far()
    assert not window.slow


def test_all_that_are_under_way_take_one_away_together() -> None:
    window = Window(4)
    for _ in range(40):
        window.note(MIB, 0.03, full=True)
    begun = window.reads
    for _ in range(begun):  # what was asked for at once comes at once, and late
        window.note(MIB, 0.3, full=True)
    assert window.reads == begun - 1
    for _ in range(begun):
        window.note(MIB, 0.3, full=True)
    assert window.reads < begun - 1
