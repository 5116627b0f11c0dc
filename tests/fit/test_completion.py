"""Completion in the real shells, at a terminal where there is no other way to ask."""

from __future__ import annotations

import os
import pty
import re
import select
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

BIN = Path(sys.executable).parent
PATH = f"{BIN}:{os.environ['PATH']}"
PROMPT = "ready> "

TERMINALS = {
    "bash": ["bash", "--norc", "--noprofile", "-i"],
    "zsh": ["zsh", "--no-rcs", "-i"],
}
SET_UP = {
    "bash": 'bind "set bell-style none"; eval "$(cedanafs completion bash)"',
    "zsh": 'autoload -Uz compinit; compinit -u -D; eval "$(cedanafs completion zsh)"',
}


class Terminal:
    """A shell that believes that it talks to a person."""

    def __init__(self, command: Sequence[str], home: Path) -> None:
        self._fd, theirs = pty.openpty()
        environment = {
            "PATH": PATH, "HOME": str(home), "PS1": PROMPT, "PROMPT": PROMPT,
            "TERM": "dumb", "COLUMNS": "200", "LANG": "C.UTF-8",
            "PYTHONPATH": os.environ.get("PYTHONPATH", ""),
        }  # fmt: skip
        self._shell = subprocess.Popen(
            command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment,
            cwd=home, start_new_session=True,
        )  # fmt: skip
        os.close(theirs)
        self._seen = ""

    def type(self, text: str) -> None:
        self._seen = ""
        os.write(self._fd, text.encode())

    def shows(self, pattern: str, timeout_s: float = 60) -> None:
        """Wait until what came since the last `type` has *pattern*."""
        deadline = time.monotonic() + timeout_s
        while not re.search(pattern, self._seen):
            ready, _, _ = select.select([self._fd], [], [], deadline - time.monotonic())
            assert ready, f"no {pattern!r} in {self._seen!r}"
            self._seen += os.read(self._fd, 4096).decode(errors="replace")

    def close(self) -> None:
        self._shell.kill()
        self._shell.wait()
        os.close(self._fd)


@pytest.mark.parametrize("shell", TERMINALS)
def test_at_a_terminal(shell: str, tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    terminal = Terminal(TERMINALS[shell], tmp_path)
    try:
        terminal.shows(PROMPT)
        terminal.type(SET_UP[shell] + "; echo set up: $?\n")
        terminal.shows(r"set up: 0\s[^$]*ready> ")
        terminal.type("cedanafs umo\t")
        terminal.shows("cedanafs umount ")
        terminal.type("\x15cedanafs mount --memory-l\t")
        terminal.shows("--memory-limit")
        terminal.type("\x15cedanafs completion fi\t")
        terminal.shows("completion fish")
        terminal.type("\x15cedanafs list check\t")
        terminal.shows("list checkpoints/")
    finally:
        terminal.close()


def test_fish(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    for typed, wanted in (
        ("cedanafs umo", ["umount"]),
        ("cedanafs mount --memory-l", ["--memory-limit"]),
        ("cedanafs completion f", ["fish"]),
        ("cedanafs list che", ["checkpoints/"]),
    ):
        script = f"cedanafs completion fish | source; complete --do-complete '{typed}'"
        done = subprocess.run(
            ["fish", "--no-config", "--command", script],
            env={**os.environ, "PATH": PATH, "XDG_CONFIG_HOME": str(tmp_path)},
            cwd=tmp_path, capture_output=True, text=True, check=True, timeout=60,
        )  # fmt: skip
        assert [line.split("\t")[0] for line in done.stdout.splitlines()] == wanted, done
