"""docs/options.md has every option of dump process and restore process, each with its test."""

from __future__ import annotations

import re
from pathlib import Path

import click
import pytest
from test_promises import PROOF

from cedanafs.cli.process import dump_process, restore_process

TEXT = (Path(__file__).parents[2] / "docs/options.md").read_text()
ROWS = [line for line in re.findall(r"^\| .*", TEXT, re.MULTILINE) if "tested by" not in line]


@pytest.mark.parametrize("command", [dump_process, restore_process], ids=["dump", "restore"])
def test_every_option_is_in_the_table(command: click.Command) -> None:
    ours = " ".join(row.split("|")[4] for row in ROWS)
    options = [each for each in command.params if isinstance(each, click.Option)]
    assert len(options) > 15
    for option in options:
        assert set(option.opts) & set(re.findall(r"--?[a-z-]+", ours)), option.opts


def test_every_row_names_its_test() -> None:
    assert len(ROWS) > 25
    for row in ROWS:
        assert PROOF.search(row.split(" | ")[-1]), row
