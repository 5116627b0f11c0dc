"""The fuzz tests, for as long as one likes: `python tests/fuzz/soak.py --minutes 30`.

What fails is said, with how to see it again, and its shards are kept below --keep.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory

from exercising import exercise
from hostile import forge
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from limits import peak_mib
from mutating import SAMPLES, damaged, forged

SLOW_S = 5.0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=5)
    parser.add_argument("--keep", type=Path, default=Path("fuzz-failures"))
    chosen = parser.parse_args()
    until = time.monotonic() + 60 * chosen.minutes
    tally: Counter[str] = Counter()
    failures = 0

    def check(make: Callable[[Path], object]) -> None:
        nonlocal failures
        with TemporaryDirectory() as scratch:
            store = Path(scratch) / "store"
            make(store)
            before = Path(scratch) / "before"
            subprocess.run(["cp", "-a", store, before], check=True)  # holes stay holes
            began = time.process_time()
            try:
                outcome = exercise(store, Path(scratch))
                tally["done" if not outcome.refused else "refused"] += 1
                assert time.process_time() - began < SLOW_S, "too slow"
            except Exception:
                failures += 1
                kept = chosen.keep / f"{time.time_ns()}"
                kept.parent.mkdir(exist_ok=True, parents=True)
                subprocess.run(["cp", "-a", before, kept], check=True)
                traceback.print_exc()
                print(f"kept in {kept}", file=sys.stderr)

    def generated(examples: int) -> Callable[[], None]:
        @settings(
            max_examples=examples,
            database=None,
            deadline=None,
            phases=(Phase.generate,),
            suppress_health_check=list(HealthCheck),
        )
        @given(data=st.data())
        def run(data: st.DataObject) -> None:
            check(lambda store: forge(data.draw, store))

        return run

    random = Random()
    while time.monotonic() < until:
        generated(100)()
        for _ in range(100):
            if time.monotonic() < until:
                sample = random.choice(SAMPLES)
                change = random.choice((damaged, forged, forged))
                check(lambda store: change(random, sample, store))  # noqa: B023 - called at once
        print(f"{dict(tally)}, {failures} failures, {peak_mib()} MiB at most", file=sys.stderr)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
