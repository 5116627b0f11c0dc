"""Every `sh` block of docs/drivers.md does what it says. Only /mnt and /srv are the test's own."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from container import Container
from host import Done, Host, is_mounted
from podman import Podman

PAGE = Path(__file__).parents[2] / "docs/drivers.md"
BLOCKS = {
    section: re.findall(r"^```sh\n(.*?)^```$", text, re.M | re.S)
    for section, text in re.findall(r"^## (.*?)$(.*?)(?=^## |\Z)", PAGE.read_text(), re.M | re.S)
}


@pytest.fixture
def run_block(host: Host, criu_binary: str) -> Iterator[Callable[..., Done]]:
    """Runs a block in bash, where any command that fails ends it."""
    for name in ("srv/checkpoints", "mnt/ckpt"):
        (host.base / name).mkdir(mode=0o700, parents=True)
    (host.base / "etc/criu").mkdir(parents=True)

    def run(block: str, **environment: str) -> Done:
        text = re.sub(r"(?<= )/(?=(mnt|srv)/)", f"{host.base}/", block)
        ours = f"{Path(sys.executable).parent}:{Path(criu_binary).parent}"
        path = environment.pop("PATH", os.environ["PATH"])
        return host.stock(
            "bash", "-euxc", text, env={"PATH": f"{ours}:{path}:/usr/sbin:/sbin", **environment}
        )

    yield run
    if is_mounted(host.base / "mnt/ckpt"):
        host.shell("umount", "--lazy", host.base / "mnt/ckpt")


def test_there_are_blocks_for_each_use() -> None:
    counts = {section: len(blocks) for section, blocks in BLOCKS.items() if blocks}
    assert counts == {
        "Wait for the commit": 1,
        "runc": 2,
        "podman": 2,
        "Plain images, in and out": 1,
    }


@pytest.mark.parametrize(
    "block", [*BLOCKS["runc"], *BLOCKS["Plain images, in and out"]], ids=["ours", "runc", "plain"]
)
def test_runc(block: str, host: Host, criu_binary: str, run_block: Callable[..., Done]) -> None:
    with Container(host, criu_binary) as container:
        counted = container.count()
        run_block(block, ID=container.id, BUNDLE=str(container.bundle))
        container.wait_counting()
        assert container.count() > counted


def test_hook(host: Host, run_block: Callable[..., Done]) -> None:
    """In a directory of the test's: /etc/criu is everybody's."""
    (block,) = BLOCKS["Wait for the commit"]
    where = host.base / "etc/criu"
    done = run_block(re.sub(r"\bhook (install|show)\b", rf"\g<0> --config-dir {where}", block))
    assert f"criu: {where}/default.conf: action-script /" in done.stdout


@pytest.mark.parametrize("block", BLOCKS["podman"], ids=["link", "export"])
def test_podman(block: str, host: Host, criu_binary: str, run_block: Callable[..., Done]) -> None:
    with Podman(host, criu_binary) as podman:
        counted = podman.count()
        with host.mounted(host.make("store"), at=host.base / "mnt/ckpt"):
            run_block(block, ID=podman.container, PATH=podman.path)
            podman.wait_counting()
            assert podman.count() > counted
