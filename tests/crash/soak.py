"""Kill writers and fail the power for as long as you like: soak.py --minutes 60

Each round has a seed of its own, which is printed when it fails; --seed repeats one round.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
import traceback
from pathlib import Path
from tempfile import TemporaryDirectory

sys.path.insert(0, str(Path(__file__).parents[1]))

from killing import checkpoint_for, kill_writer
from story import Story
from test_power_loss import check_all, sampled, started, told


def kills(directory: Path, rng: random.Random) -> int:
    directory, shards, codec = checkpoint_for(directory, 0, rng)
    for _ in range(5):
        kill_writer(directory, shards=shards, codec=codec, rng=rng)
    return 5


def power_losses(directory: Path, rng: random.Random) -> int:
    """Two writers, the second of which may go on after a kill; the power fails at any moment."""
    directory, shards, codec = checkpoint_for(directory, 0, rng)

    def story(story: Story) -> None:
        for _ in range(rng.randint(1, 4)):
            for _ in range(rng.randint(1, 4)):
                story.anything(rng, most=5_000)
            story.commit(seal=rng.random() < 0.4)

    first = told(story, directory, started(), shards=shards, codec=codec)
    if rng.random() < 0.5:
        first = first.until(rng.randrange(len(first.operations) + 1))
    second = told(story, directory, first, shards=shards, codec=codec)
    return check_all(directory, sampled(second, rng, 10))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--seed", type=int)
    args = parser.parse_args()
    end = time.monotonic() + 60 * args.minutes
    done = {kills: 0, power_losses: 0}
    while True:
        seed = random.SystemRandom().getrandbits(32) if args.seed is None else args.seed
        rng = random.Random(seed)
        what = rng.choice(list(done))
        try:
            with TemporaryDirectory(prefix="cedanafs-soak-") as directory:
                done[what] += what(Path(directory), rng)
        except BaseException:
            traceback.print_exc()
            sys.exit(f"failed: {sys.argv[0]} --seed {seed}")
        print(
            f"\r{done[kills]} kills, {done[power_losses]} states after a power loss",
            end="",
            flush=True,
        )
        if args.seed is not None or time.monotonic() >= end:
            print()
            return


if __name__ == "__main__":
    main()
