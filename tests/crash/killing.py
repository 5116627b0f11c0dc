"""Writers that are killed, and what they leave. Run as a program, it is the writer."""

from __future__ import annotations

import hashlib
import os
import random
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from story import Story
from writing import read_checkpoint, writing

from cedanafs.shard.audit import verify
from cedanafs.shard.store import shard_paths


def digest(content: Mapping[str, bytes]) -> str:
    total = hashlib.sha256()
    for name, data in sorted(content.items()):
        total.update(f"{name} {len(data)} ".encode() + data)
    return total.hexdigest()


class _Telling(Story):
    """Says which content it commits, and when that is done."""

    def begun(self) -> None:
        print(digest(self.content), flush=True)

    def acknowledged(self) -> None:
        print("done", flush=True)


def write_until_killed(directory: Path, shards: int, codec: str, seed: str) -> None:
    rng = random.Random(seed)
    while True:
        content = read_checkpoint(directory) if shard_paths(directory) else {}
        with writing(directory, shards=shards, codec=codec) as writer:
            story = _Telling(writer, content)
            for _ in range(rng.randint(1, 20)):
                for _ in range(rng.randint(0, 6)):
                    story.anything(rng, most=1_500_000)
                story.commit(seal=rng.random() < 0.3)


def kill_writer(directory: Path, *, shards: int, codec: str, rng: random.Random) -> int:
    """Start a writer and kill it soon; check what it left. Returns how often it committed."""
    before = digest(read_checkpoint(directory)) if shard_paths(directory) else digest({})
    command = [sys.executable, __file__, str(directory), str(shards), codec, str(rng.random())]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as writer:
        assert writer.stdout is not None
        said = [writer.stdout.readline()]
        time.sleep(rng.random() * 0.3)
        assert writer.poll() is None, "the writer failed"
        writer.kill()
        said += writer.stdout.readlines()
    acknowledged, allowed = before, {before}
    for line in said:
        if line == "done\n":
            allowed = {acknowledged}
        elif line.endswith("\n"):
            acknowledged = line.strip()
            allowed.add(acknowledged)
    found = read_checkpoint(directory)
    assert digest(found) in allowed
    assert verify(directory).damages == ()
    return said.count("done\n")


def checkpoint_for(root: Path, number: int, rng: random.Random) -> tuple[Path, int, str]:
    """A directory to kill a few writers in; how many shards, and which codec."""
    directory = root / f"checkpoint-{number}"
    directory.mkdir()
    return directory, rng.choice([1, 2, 4]), rng.choice(["none", "lz4", "zstd", "gzip", "zlib"])


if __name__ == "__main__":
    write_until_killed(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4])
