"""What list and inspect show of a store that is odd."""

from __future__ import annotations

import os
import random
from collections import Counter
from pathlib import Path

import pytest
from click.testing import CliRunner
from crafted import PAGE, dump_of, process
from writing import make_checkpoint

from cedanafs.cli.look import inspect, list_
from cedanafs.look import list_store
from cedanafs.shard.local import LocalShard


def test_names_give_a_terminal_no_commands(tmp_path: Path) -> None:
    names = ["\x1b[2Jgone.img", "two\nlines", os.fsdecode(b"\xff.img"), "schön.img"]
    make_checkpoint(tmp_path, dict.fromkeys(names, b""))
    shown = CliRunner().invoke(inspect, [str(tmp_path), "--images"])
    assert shown.exit_code == 0, shown.output
    for name in (r"\x1b[2Jgone.img", r"two\nlines", r"\udcff.img", "schön.img"):
        assert any(line.startswith(name) for line in shown.output.splitlines()), name


def test_a_store_as_deep_as_paths_go(tmp_path: Path) -> None:
    levels = [tmp_path]
    for _ in range(1_500):
        levels.append(levels[-1] / "d")
        levels[-1].mkdir()
    try:
        make_checkpoint(levels[-1], {"inventory.img": b"inventory"})
        assert [summary.path for summary in list_store(tmp_path)] == [str(levels[-1])]
        (levels[-1] / "img-0.zst").unlink()
    finally:
        for level in levels[:0:-1]:  # pytest's own removal calls itself for each
            level.rmdir()


def test_a_thousand_checkpoints_are_opened_once_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = random.Random(7).randbytes(1024 * PAGE)
    images = dump_of((1, 0), (2, 1)) | process(1, name="serve", data=data) | process(2)
    first = make_checkpoint(tmp_path / "0", images, shards=2)
    for number in range(1, 1000):
        (tmp_path / str(number)).mkdir()
        for shard in first.iterdir():
            (tmp_path / str(number) / shard.name).hardlink_to(shard)
    done: Counter[str] = Counter()
    opened, read_at = LocalShard.open, LocalShard.read_at

    def counted_open(path: Path, *, writable: bool = False) -> LocalShard:
        done["opens"] += 1
        return opened(path, writable=writable)

    def counted_read_at(self: LocalShard, offset: int, length: int) -> bytes:
        done["bytes"] += length
        return read_at(self, offset, length)

    monkeypatch.setattr(LocalShard, "open", counted_open)
    monkeypatch.setattr(LocalShard, "read_at", counted_read_at)
    found = list(list_store(tmp_path))
    assert [(each.state, each.process, each.processes) for each in found] == [
        ("complete", "serve", 2)
    ] * 1000
    assert done["opens"] == 2 * 1000
    assert done["bytes"] < 1000 * 200_000  # of 4 MiB each


def test_list_says_what_the_checkpoints_are_of(tmp_path: Path) -> None:
    make_checkpoint(tmp_path / "a", dump_of((1, 0), (2, 1)) | process(1, name="serve"))
    make_checkpoint(tmp_path / "b", {"inventory.img": b"no dump"})
    make_checkpoint(tmp_path / "c", dump_of((1, 0)) | process(1, name="\x1b[2J"))
    rows = CliRunner().invoke(list_, [str(tmp_path)]).stdout.splitlines()
    assert " serve +1 " in rows[1]
    assert rows[2].split()[4] == "-"
    assert "\\x1b[2J" in rows[3]
