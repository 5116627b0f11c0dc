"""The blocks of commands on the pages of the documentation, as a reader would type them."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path
from typing import Final, NamedTuple

from workloads import Workload

ROOT: Final = Path(__file__).parents[2]
PAGES: Final = sorted(path.name for path in (ROOT / "docs").glob("*.md"))

_PROGRAMS: Final = re.compile(
    r"^(\$ )?(\.venv/bin/)?(cedanafs|checkpointctl|criu|crun|make|python3?|pip|apt|git|ln"
    r"|s3fs|systemctl|eval|for|mkdir|sync|kill|source)\b(?! *=)",
    re.M,
)


class Block(NamedTuple):
    """`language` is empty where it is indented."""

    language: str
    text: str


def blocks_of(page: str) -> list[Block]:
    """Fenced blocks in a language that can be run, and indented ones that hold a command.

    Where lines begin with `$ ` the others are what is printed.
    """
    text = (ROOT / "docs" / page).read_text()
    found = []
    for fenced, lines in groupby(_lines(text), key=lambda line: line[0]):
        block = "".join(f"{line}\n" for _, line in lines)
        language = fenced.partition(" ")[0]
        if language in ("sh", "bash", "python"):
            found.append(Block(language, block))
        elif language == "indented" and _PROGRAMS.search(block):
            typed = re.findall(r"^\$ (.*\n)", block, re.M)
            found.append(Block("", "".join(typed) if typed else block.rstrip("\n") + "\n"))
    return found


def _lines(text: str) -> Iterator[tuple[str, str]]:
    """Each line, behind what it is part of: a language and a number, or nothing."""
    fence, number, indented = "", 0, False
    for line in text.splitlines():
        if line.startswith("```"):
            fence, number = "" if fence else line.removeprefix("```") or "none", number + 1
        elif fence:
            yield f"{fence} {number}", line
        elif line.startswith("    ") or (indented and not line):
            indented = True
            yield f"indented {number}", line.removeprefix("    ")
        else:
            indented, number = False, number + 1


@contextmanager
def reaped(work: Workload) -> Iterator[None]:
    """Its parent sees to it that its pid is free once it has been dumped."""
    over = threading.Event()

    def reap() -> None:
        while not over.wait(0.002):
            work.alive()

    thread = threading.Thread(target=reap)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
