"""The site builds without a warning, and its pages say what the code does."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import cedanafs

ROOT = Path(__file__).parents[2]
MESSAGES = re.findall(r"^\| `(.*?)` \|", (ROOT / "docs/troubleshooting.md").read_text(), re.M)
SOURCES = re.sub(
    r'"\s*f?"', "", "\n".join(path.read_text() for path in (ROOT / "cedanafs").rglob("*.py"))
)
"""With a message in one piece however many lines it takes."""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("site") / "site"
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", directory],
        cwd=ROOT, capture_output=True, text=True, check=False,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr
    return directory


def test_every_page_is_in_it(site: Path) -> None:
    pages = {path.stem for path in (ROOT / "docs").glob("*.md")} - {"index"}
    assert {path.parent.name for path in site.glob("*/index.html")} >= pages
    assert "cedanafs" in (site / "index.html").read_text()
    assert "decompress" in (site / "search/search_index.json").read_text()


def test_every_public_name_is_documented(site: Path) -> None:
    page = (site / "api/index.html").read_text()
    for name in cedanafs.__all__:
        assert re.search(rf'id="cedanafs\.\w+\.{name}"', page), name


def test_nothing_is_fetched_from_others(site: Path) -> None:
    for page in site.rglob("*.html"):
        links = re.findall(
            r'<(?:script|link|img)[^>]+(?:src|href)="(https?:[^"]+)"', page.read_text()
        )
        assert not links, page


@pytest.mark.parametrize("message", MESSAGES)
def test_messages_are_those_of_the_code(message: str) -> None:
    pattern = ".*".join(re.escape(part.strip()) for part in message.split("…"))
    assert re.search(pattern, SOURCES), message


def test_messages_are_many() -> None:
    assert len(MESSAGES) > 20
