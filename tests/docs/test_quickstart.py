"""Every block of docs/quickstart.md does what it says. Only /mnt and /srv are the test's own."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from container import Container
from host import Done, Host, StartWorkload, is_mounted
from pages import reaped

PAGE = (Path(__file__).parents[2] / "docs/quickstart.md").read_text()
BLOCKS = {
    section: re.findall(r"^```\w+\n(.*?)^```$", text, re.M | re.S)
    for section, text in re.findall(r"^## (.*?)$(.*?)(?=^## |\Z)", PAGE, re.M | re.S)
}


@pytest.fixture
def here(host: Host, criu_binary: str) -> Iterator[Callable[..., Done]]:
    """Runs a program text with the test's directories in the place of /mnt and /srv."""
    for name in ("srv/checkpoints", "mnt/ckpt"):
        (host.base / name).mkdir(mode=0o700, parents=True)
    programs = f"{Path(sys.executable).parent}:{Path(criu_binary).parent}"

    def run(*command: str, text: str, **environment: str) -> Done:
        text = re.sub(r"(?<=[ \"])/(?=(mnt|srv)/)", f"{host.base}/", text)
        path = f"{programs}:/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin"
        return host.stock(*command, text, env={"PATH": path, **environment})

    yield run
    if is_mounted(host.base / "mnt/ckpt"):
        host.shell("umount", "--lazy", host.base / "mnt/ckpt")


def test_there_are_blocks_for_each_use() -> None:
    counts = {section: len(blocks) for section, blocks in BLOCKS.items()}
    assert counts == {
        "A process": 1, "criu itself": 1, "runc": 1, "A program in Python": 1, "A bucket": 0,
    }  # fmt: skip


@pytest.mark.parametrize("section", ["A process", "criu itself"])
def test_process(section: str, start: StartWorkload, here: Callable[..., Done]) -> None:
    work = start("memory", size_mib=16)
    before = work.ask()
    with reaped(work):
        here("bash", "-euxc", text=BLOCKS[section][0], PID=str(work.pid))
    work.wait_ticking()
    assert work.ask()["digest"] == before["digest"]


def test_runc(host: Host, criu_binary: str, here: Callable[..., Done]) -> None:
    with Container(host, criu_binary) as container:
        counted = container.count()
        (block,) = BLOCKS["runc"]
        here("bash", "-euxc", text=block, ID=container.id, BUNDLE=str(container.bundle))
        container.wait_counting()
        assert container.count() > counted


def test_python(start: StartWorkload, here: Callable[..., Done]) -> None:
    work = start("memory", size_mib=16)
    before = work.ask()
    (block,) = BLOCKS["A program in Python"]
    with reaped(work):
        here(sys.executable, "-c", text=f"pid = {work.pid}\n{block}")
    work.wait_ticking()
    assert work.ask()["digest"] == before["digest"]
