"""Writers killed at any moment: what they committed is there."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

from killing import checkpoint_for, kill_writer

KILLS = 30


def test_a_killed_writer_has_lost_no_commit(tmp_path: Path) -> None:
    rng = random.Random()  # a kill comes at a random moment anyway
    commits = 0
    for number in range(KILLS // 5):
        directory, shards, codec = checkpoint_for(tmp_path, number, rng)
        for _ in range(5):
            commits += kill_writer(directory, shards=shards, codec=codec, rng=rng)
        shutil.rmtree(directory)
    print(commits, "commits")
    assert commits > KILLS
