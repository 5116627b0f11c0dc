"""Eight threads beside the main one, each with a counter of its own."""

import threading
import time

import _program

THREADS = 8
counters = [0] * THREADS


def count(i: int) -> None:
    while True:
        counters[i] += 1
        time.sleep(0.005)


for i in range(THREADS):
    threading.Thread(target=count, args=(i,), daemon=True).start()


def report() -> dict[str, object]:
    return {"counters": list(counters), "threads": threading.active_count()}


_program.run(report)
