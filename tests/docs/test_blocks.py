"""Every block of commands in the documentation is run, here or by the test that is named.

A page's blocks are run in order by one shell, with what the page takes for granted around them.
Only /mnt, /srv and /var/cache are the test's own.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from host import Host, StartWorkload, is_mounted
from pages import PAGES, ROOT, Block, blocks_of, reaped
from s3 import Bucket, Server

DATA = Path(__file__).parents[1] / "data/foreign"
KILL = "kill -9 $PID; while kill -0 $PID; do sleep 0.01; done"

STORIES: dict[str, Sequence[str | int]] = {
    "incremental.md": [0, KILL, "cedanafs restore process --path /srv/checkpoints/tuesday"],
    "interoperation.md": [
        f"mkdir /srv/others; cp -r {DATA}/cedana-4-lz4 /srv/others/web",
        0, 1,
        "cedanafs verify /srv/others/streamer; cedanafs verify /srv/others/cedana",
    ],
    "lazy.md": ["cedanafs dump process $PID --name job1", 0],
    "looking.md": [
        "cedanafs dump process $PID --dir STORE --name monday --leave-running",
        "cedanafs dump process $PID --dir STORE --name tuesday --leave-running --base monday",
        "cedanafs dump process $PID --dir STORE --name web --leave-running",
        "cedanafs convert STORE/web STORE/shop-tuesday; mkdir OTHER",
        0, 1, 2, 3, 4, 5, 6, 7,
        "test -s shop.html; cedanafs verify OTHER/monday",
        "cedanafs compact STORE/web --yes; cedanafs verify STORE/web",
        "cedanafs prune STORE --keep-last 2 --yes; test ! -e STORE/monday",
    ],
    "object-stores.md": [0, "ls -l /mnt/ckpt/web; cedanafs umount /mnt/ckpt"],
    "options.md": [0, "cedanafs restore process --path /srv/checkpoints/dump-process-*"],
    "tuning.md": ["mkdir /mnt/far", 0, KILL, "mkdir -p -m 700 /var/cache/cedanafs", 1],
}  # fmt: skip
"""By page: numbers of its blocks, and lines of the test's own before, between and after them."""

PAGES_OF_OTHERS = {"drivers.md": "test_drivers_page.py", "quickstart.md": "test_quickstart.py"}
"""Which run each fenced block of these pages."""

NOT_HERE = {
    ("benchmarks.md", "make bench"): "tests/docs/test_benchmarks.py: hours; there a small one",
    ("drivers.md", "mkdir /mnt/ckpt/job1\ncrun"): "tests/drivers/test_crun.py",
    ("install.md", "git clone"): "CI: make test sets up a clean checkout in the same way",
    ("install.md", "cedanafs check [--full]"): "a synopsis; tests/mount/test_check.py",
    ("install.md", 'eval "$(cedanafs completion'): "tests/fit/test_completion.py, in the shells",
    ("install.md", "apt install ./dist"): "tests/fit/test_deb.py, in a copy of the machine",
    ("install.md", "python3 -m venv"): "CI: what make does, by hand",
    ("lazy.md", "criu lazy-pages"): "tests/mount/test_lazy.py, which waits between the two",
    ("stores.md", "s3fs BUCKET"): "tests/docs/test_readme.py: the README has it with real names",
    (
        "system.md",
        "for name in mount.cedanafs",
    ): "tests/mount/test_mount_helper.py, in a /sbin",
    ("watching.md", "cedanafs dump process"): "tests/watch/test_events.py",
    ("watching.md", "cedanafs stat /mnt/ckpt"): "tests/watch/test_stat.py: --watch goes on",
    ("watching.md", "cedanafs mount /srv"): "tests/watch/test_metrics.py: curl may not be there",
    ("system.md", "STORE=/srv"): "tests/fit/test_service.py: there is no systemd to talk to",
}


@pytest.mark.parametrize("page", PAGES)
def test_every_block_is_run(page: str) -> None:
    steps = [step for step in STORIES.get(page, []) if isinstance(step, int)]
    assert steps == sorted(steps)
    left = {
        block.text
        for number, block in enumerate(_here(page))
        if number not in steps and not (page in PAGES_OF_OTHERS and block.language)
    }
    assert not left, f"run it in STORIES, or name the test that does in NOT_HERE: {left}"
    for other, begin in NOT_HERE:
        assert page != other or any(each.text.startswith(begin) for each in blocks_of(page)), begin


def test_a_newcomer_can_run_them_all() -> None:
    """`make newcomer` picks tests that `make test`, and so CI, runs anyway."""
    makefile = (ROOT / "Makefile").read_text().replace("\\\n", "")
    (paths,) = re.findall(r"^NEWCOMER := (.*)$", makefile, re.M)
    assert "tests/docs" in paths.split()
    for path in paths.split():
        assert (ROOT / path).exists(), path


def test_blocks_are_found() -> None:
    assert [len(_here(page)) for page in ("looking.md", "quickstart.md", "drivers.md")] == [8, 4, 6]


@pytest.mark.parametrize("page", STORIES)
def test_it_does_what_it_says(
    page: str, host: Host, start: StartWorkload, bucket: Bucket, criu_binary: str
) -> None:
    for name in ("srv/checkpoints", "mnt/ckpt"):
        (host.base / name).mkdir(mode=0o700, parents=True)
    blocks = _here(page)
    text = "\n".join(blocks[step].text if isinstance(step, int) else step for step in STORIES[page])
    text = re.sub(r"(?<=[ =])/(?=(mnt|srv|var/cache)/)", f"{host.base}/", text)
    text = re.sub(r"\bSTORE\b", f"{host.base}/srv/checkpoints", text)
    text = re.sub(r"\bOTHER\b", f"{host.base}/srv/other", text)
    text = text.replace("s3://bucket/", f"{bucket.url}/")
    text = text.replace("checkpointctl cedanafs", "checkpointctl-cedanafs")  # which that runs
    programs = f"{Path(sys.executable).parent}:{Path(criu_binary).parent}"
    environment = {
        "PATH": f"{programs}:/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin",
        "CEDANAFS_CHECKPOINT_DIR": f"{host.base}/srv/checkpoints",
        **bucket.environment,
    }
    work = start("memory", size_mib=16)
    before = work.ask()
    try:
        with reaped(work):
            environment["PID"] = str(work.pid)
            host.stock("bash", "-euxc", text, env=environment, cwd=host.base)
        work.wait_ticking()
        assert work.ask()["digest"] == before["digest"]
    finally:
        if is_mounted(host.base / "mnt/ckpt"):
            host.shell("umount", "--lazy", host.base / "mnt/ckpt")


@pytest.fixture
def bucket(s3_servers: dict[str, Server]) -> Bucket:
    return s3_servers["moto"].make_bucket()


def _here(page: str) -> list[Block]:
    """The blocks of *page* that no test elsewhere runs."""
    return [
        block
        for block in blocks_of(page)
        if not any(page == each and block.text.startswith(begin) for each, begin in NOT_HERE)
    ]
