"""What list and inspect show of a store that is odd."""

from __future__ import annotations

import os
from pathlib import Path

from click.testing import CliRunner
from writing import make_checkpoint

from cedanafs.cli.look import inspect
from cedanafs.look import list_store


def test_names_give_a_terminal_no_commands(tmp_path: Path) -> None:
    names = ["\x1b[2Jgone.img", "two\nlines", os.fsdecode(b"\xff.img"), "schön.img"]
    make_checkpoint(tmp_path, dict.fromkeys(names, b""))
    shown = CliRunner().invoke(inspect, [str(tmp_path)])
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
