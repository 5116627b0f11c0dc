"""The man pages that `make man` writes, as man(1) shows them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from cedanafs import cli

SCRIPT = Path(__file__).parents[2] / "scripts/man-pages"


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("man") / "pages"
    subprocess.run([sys.executable, SCRIPT, directory], check=True)
    return directory


def shown(page: Path) -> str:
    """As a person reads it, without a hyphen at a line's end; man finds nothing to warn of."""
    done = subprocess.run(
        ["man", "--warnings=all", "--nh", "--nj", "-l", page],
        env={**os.environ, "MANWIDTH": "100", "LANG": "C.UTF-8"},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    # groff 1.22 warns of a long title that it cuts, in the header alone.
    assert not [line for line in done.stderr.splitlines() if "can't break line" not in line]
    return re.sub(r".\x08", "", done.stdout)


def commands(command: click.Command, name: str) -> Iterator[tuple[str, click.Command]]:
    yield name, command
    if isinstance(command, click.Group):
        for each in command.commands.values():
            yield from commands(each, f"{name}-{each.name}")


ALL = dict(commands(cli.cedanafs, "cedanafs"))


def test_a_page_for_each_command(pages: Path) -> None:
    assert {path.stem for path in pages.glob("*.1")} == set(ALL)
    assert {path.name for path in pages.glob("*.8")} == {"mount.cedanafs.8", "umount.cedanafs.8"}


@pytest.mark.parametrize("name", ALL)
def test_it_says_what_help_says(pages: Path, name: str) -> None:
    text = shown(pages / f"{name}.1")
    words = " ".join(text.split())
    assert f"NAME {name} - " in words
    assert " ".join((ALL[name].help or "").split()) in words
    for option in ALL[name].params:
        if isinstance(option, click.Option) and not option.hidden:
            assert all(re.search(rf"(?<!\S){re.escape(each)}\b", text) for each in option.opts)
    if isinstance(group := ALL[name], click.Group):
        for each in group.commands:
            assert f"See {name}-{each}(1)" in words


def test_helpers_of_mount(pages: Path) -> None:
    assert "mount.cedanafs(8)" in shown(pages / "mount.cedanafs.8").lower()
    assert "umount.cedanafs(8)" in shown(pages / "umount.cedanafs.8").lower()
