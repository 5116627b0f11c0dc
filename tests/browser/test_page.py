"""inspect --html in a real browser: what it makes of the page, and that it complains of nothing."""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path

import pytest
from crafted import PAGE, dump_of, image, process
from host import Host, StartWorkload
from writing import make_checkpoint

HOSTILE = b'<script>document.title=1;console.error("x")</script>"\'><img src=x onerror=alert(1)>'
BROWSER = (
    "chromium",
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--enable-logging=stderr",
    "--dump-dom",
)


@dataclass
class Rendered(HTMLParser):
    """The DOM that the browser made of a page."""

    dom: str
    complaints: list[str]
    tags: list[str] = field(default_factory=list)
    attributes: list[tuple[str, str]] = field(default_factory=list)
    texts: dict[str, list[str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__init__()
        self.feed(self.dom)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_data(self, data: str) -> None:
        if self.tags:
            self.texts.setdefault(self.tags[-1], []).append(data)

    def ids(self) -> set[str]:
        return {value for name, value in self.attributes if name == "id"}

    def all_text(self) -> str:
        return "".join(text for texts in self.texts.values() for text in texts)


def rendered(page: Path, tmp_path: Path) -> Rendered:
    done = subprocess.run(
        [*BROWSER, f"--user-data-dir={tmp_path / 'profile'}", page.as_uri()],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
        env={**os.environ, "HOME": str(tmp_path)},
    )
    complaints = [line for line in done.stderr.splitlines() if ":CONSOLE" in line]
    return Rendered(done.stdout, complaints)


def test_complaints_of_a_browser_are_seen(tmp_path: Path) -> None:
    page = tmp_path / "bad.html"
    page.write_text("<!DOCTYPE html><title>t</title><script>console.error('seen')</script>")
    (complaint,) = rendered(page, tmp_path).complaints
    assert "seen" in complaint


def test_a_real_dump(host: Host, store: Path, start: StartWorkload, tmp_path: Path) -> None:
    work = start("tree")
    path = host.ok("dump", "process", work.pid, "--dir", store).last_line
    page = tmp_path / "page.html"
    host.run("inspect", path, "--html", page)
    assert page.stat().st_mode & 0o777 == 0o600
    shown = rendered(page, tmp_path)
    assert shown.complaints == []
    assert shown.ids() == {"timeline", "processes", "memory", "shards", "more"}
    assert shown.tags.count("svg") == 1 + 5
    assert shown.tags.count("rect") > 5 * 3
    text = shown.all_text()
    for said in ("complete", "frozen", "tree.py", "└─", "img-3.zst", "[heap]", "pages-1.img"):
        assert said in text, said
    # Nothing of elsewhere, nothing that runs.
    assert not {"script", "link", "img", "iframe", "object"} & set(shown.tags)
    assert not {"src", "href", "srcset"} & {name for name, _ in shown.attributes}
    assert "url(" not in shown.dom
    assert "@import" not in shown.dom


def test_hostile_names(host: Host, tmp_path: Path) -> None:
    fown = {"uid": 0, "euid": 0, "signum": 0, "pid_type": 0, "pid": 0}
    name = os.fsdecode(HOSTILE) + "\u202e\x1b"
    regular = {"id": 1, "flags": 0, "pos": 7, "fown": fown, "name": name}
    images = (
        dump_of((1, 0), (2, 1))
        | process(1, command=HOSTILE + b"\xff\0", name="</title>", data=os.urandom(40 * PAGE))
        | process(2, name="<svg onload=alert(1)>")
        | {"files.img": image("FILES", {"type": "REG", "id": 1, "reg": regular})}
        | {"<b>.img": b"", 'x" onclick="alert(1).img': b""}
    )
    checkpoint = make_checkpoint(tmp_path / "<script>alert(1)<", images)
    page = tmp_path / "page.html"
    host.run("inspect", checkpoint, "--html", page)
    shown = rendered(page, tmp_path)
    assert shown.complaints == []
    assert not {"script", "img", "iframe"} & set(shown.tags)
    assert shown.tags.count("b") == shown.dom.count('class="tile"')
    assert not [name for name, _ in shown.attributes if name.startswith("on")]
    text = shown.all_text()
    assert "<script>document.title=1;console.error(" in text
    assert "\u202e" not in text
    assert "\x1b" not in text


def test_what_is_no_dump_has_a_page(host: Host, tmp_path: Path) -> None:
    checkpoint = make_checkpoint(tmp_path / "x", {"notes.txt": b"hello"})
    page = tmp_path / "page.html"
    host.run("inspect", checkpoint, "--html", page)
    shown = rendered(page, tmp_path)
    assert shown.complaints == []
    assert "pstree.img is missing" in shown.all_text()
    assert shown.ids() == {"shards", "more"}


@pytest.mark.parametrize("place", ["none/page.html", "."])
def test_a_page_that_cannot_be_written(host: Host, tmp_path: Path, place: str) -> None:
    checkpoint = make_checkpoint(tmp_path / "x", {"inventory.img": b""})
    host.refused(4, "inspect", checkpoint, "--html", tmp_path / place, match="cannot write")
