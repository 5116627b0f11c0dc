"""Checkpoints that build on others, by CRIU's `parent` link."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import trio
from host import Host, StartWorkload
from pycriu import images
from workloads import Workload

from cedanafs.criu.binary import has_feature

PAGE = os.sysconf("SC_PAGE_SIZE")
PE_PARENT, PE_PRESENT = 1 << 0, 1 << 2  # pagemap.proto


def can_track(criu_binary: str) -> bool:
    return trio.run(has_feature, criu_binary, "mem_dirty_track")


@pytest.mark.parametrize(
    "options",
    [["--pre-dump"], ["--track-mem"], ["--criu-opts", '{"track-mem": true}']],
)
def test_pre_dump_where_memory_cannot_be_tracked(
    host: Host, store: Path, start: StartWorkload, criu_binary: str, options: list[str]
) -> None:
    work = start("memory", size_mib=8)
    dump = ("dump", "process", work.pid, "--dir", store, "--name", "first", "--leave-running")
    if not can_track(criu_binary):
        host.refused(6, *dump, *options, match="CONFIG_MEM_SOFT_DIRTY.*dump without them")
        assert list(store.iterdir()) == []
        work.wait_ticking()
        return
    host.ok(*dump, *options)
    before = work.ask()
    second = ("dump", "process", work.pid, "--dir", store, "--name", "second", "--track-mem")
    host.ok(*second, "--parent", "first")
    work.wait_gone()
    stored = {each["path"]: each["raw_bytes"] for each in listed(host, store)}
    assert stored[str(store / "second")] < stored[str(store / "first")] / 2
    assert restored(host, store / "second", work) == before["digest"]


def test_a_chain_of_full_dumps(
    host: Host, store: Path, start: StartWorkload, criu_binary: str
) -> None:
    """Links by hand, as CRIU makes them only where memory is tracked; each dump is whole."""
    work = start("memory", size_mib=8)
    before = work.ask()
    for name in "abc":
        more = ["--leave-running"] if name != "c" else []
        host.ok("dump", "process", work.pid, "--dir", store, "--name", name, *more)
    work.wait_gone()
    with host.mounted(store) as mnt:
        (mnt / "b/parent").symlink_to("../a")
        (mnt / "c/parent").symlink_to("../b")
        assert (mnt / "c/parent/parent/inventory.img").read_bytes()
        log = host.base / "restore.log"
        host.stock(criu_binary, "restore", "-d", "-D", mnt / "c", "-W", host.base, "-v4", "-o", log)
        work.wait_ticking()
        assert work.ask()["digest"] == before["digest"]
    work.kill()
    work.wait_gone()
    assert [(each["parent"], each["state"]) for each in listed(host, store)] == [
        (None, "complete"), ("../a", "complete"), ("../b", "complete"),
    ]  # fmt: skip
    assert "builds on ../b" in host.ok("inspect", store / "c").stdout
    assert f"builds on {store / 'a'}" in host.ok("verify", store / "c").stdout
    assert restored(host, store / "c", work) == before["digest"]


def test_parent_where_memory_cannot_be_tracked(
    host: Host, store: Path, start: StartWorkload, criu_binary: str
) -> None:
    """As in a plain directory, but before anything is begun."""
    work = start("memory", size_mib=8)
    before = work.ask()
    dump = ("dump", "process", work.pid, "--dir", store, "--leave-running")
    host.ok(*dump, "--name", "a")
    if can_track(criu_binary):
        host.refused(5, *dump, "--name", "b", "--parent", "a", match="no parent inventory")
        return
    host.refused(6, *dump, "--name", "b", "--parent", "a", match="CONFIG_MEM_SOFT_DIRTY")
    assert [each.name for each in store.iterdir()] == ["a"]
    logs, plain = host.make("logs"), host.make("plain")
    for name, more, code in (("a", [], 0), ("b", ["--prev-images-dir", "../a"], 1)):
        (plain / name).mkdir()
        criu = (criu_binary, "dump", "-R", "-t", work.pid, "-D", plain / name, "-W", logs)
        assert host.shell(*criu, *more).code == code
    assert work.ask()["digest"] == before["digest"]


@pytest.mark.parametrize("parent", ["", "none", "../a", "x"])
def test_parent_that_cannot_be(host: Host, store: Path, start: StartWorkload, parent: str) -> None:
    work = start("threads")
    dump = ("dump", "process", work.pid, "--dir", store, "--name", "x")
    host.refused(2, *dump, "--parent", parent, match="--parent")
    assert list(store.iterdir()) == []


@pytest.fixture
def incremental(host: Host, store: Path, start: StartWorkload) -> tuple[Workload, str]:
    """A process, gone, in `full`, and in `more` as a kernel that tracks memory has it dumped: its
    large areas are in the parent. Also the digest of its memory."""
    work = start("memory", size_mib=8)
    digest: str = work.ask()["digest"]
    host.ok("dump", "process", work.pid, "--dir", store, "--name", "full")
    work.wait_gone()
    with host.mounted(store) as mnt:
        shutil.copytree(mnt / "full", mnt / "more")
        (mnt / "more/parent").symlink_to("../full")
        pages = mnt / "more/pages-1.img"
        pagemap = mnt / f"more/pagemap-{work.pid}.img"
        left = leave_to_parent(pagemap, pages.read_bytes())
        assert len(left) <= pages.stat().st_size - (6 << 20)
        pages.write_bytes(left)
        inventory = mnt / "more/inventory.img"  # last, or it is a dump that did not finish
        inventory.write_bytes(inventory.read_bytes())
    return work, digest


def leave_to_parent(pagemap: Path, pages: bytes) -> bytes:
    """Say in *pagemap* that the parent has the large areas; what is left of *pages*."""
    with pagemap.open("rb") as image:
        content = images.load(image)
    left, at = b"", 0
    for entry in content["entries"][1:]:
        length = entry["nr_pages"] * PAGE
        if length >= 1 << 20:
            entry["flags"] = PE_PARENT
            entry.pop("in_parent", None)
        else:
            assert entry["flags"] & PE_PRESENT
            left += pages[at : at + length]
        at += length
    assert at == len(pages)
    with pagemap.open("wb") as image:
        images.dump(content, image)
    return left


def test_pages_that_only_the_parent_has(
    host: Host, store: Path, incremental: tuple[Workload, str]
) -> None:
    work, digest = incremental
    raw = {Path(each["path"]).name: each["raw_bytes"] for each in listed(host, store)}
    assert raw["more"] < raw["full"] - (6 << 20)
    host.ok("verify", store / "more")
    assert restored(host, store / "more", work) == digest
    work.kill()
    work.wait_gone()
    with host.mounted(store) as mnt:
        assert restored(host, mnt / "more", work) == digest


def test_extracted_with_its_parent(
    host: Host, store: Path, incremental: tuple[Workload, str]
) -> None:
    work, digest = incremental
    plain = host.make("plain")
    done = host.run("extract", store / "more", plain / "more")
    assert done.code == 0, done
    assert f"build on others: extract ../full to {plain / 'full'}" in done.stderr
    host.refused(3, "restore", "process", "--path", plain / "more", match="../full is missing")
    host.ok("extract", store / "full", plain / "full")
    assert restored(host, plain / "more", work) == digest


def test_parent_that_is_gone(host: Host, store: Path, incremental: tuple[Workload, str]) -> None:
    work, digest = incremental
    (store / "full").rename(host.base / "away")
    missing = rf"its parent \.\./full is missing.*bring back {store / 'full'}"
    host.refused(3, "restore", "process", "--path", store / "more", match=missing)
    host.refused(3, "verify", store / "more", match=missing)
    (found,) = listed(host, store)
    assert (found["state"], found["problem"]) == ("incomplete", "its parent ../full is missing")
    with host.mounted(store) as mnt:
        host.refused(3, "restore", "process", "--path", mnt / "more", match=r"\.\./full is missing")
    (host.base / "away").rename(store / "full")
    assert restored(host, store / "more", work) == digest


@pytest.mark.parametrize("target", ["../more", "/etc", "../full/../full"])
def test_parent_link_that_leads_nowhere_good(
    host: Host, store: Path, incremental: tuple[Workload, str], target: str
) -> None:
    with host.mounted(store) as mnt:
        (mnt / "more/parent").unlink()
        (mnt / "more/parent").symlink_to(target)
        if target.endswith("full"):
            (mnt / "full/parent").symlink_to("../more")
    host.refused(3, "restore", "process", "--path", store / "more", match="its parent")


def listed(host: Host, store: Path) -> list[dict]:
    found: list[dict] = json.loads(host.run("list", "--json", store).stdout)
    return found


def restored(host: Host, checkpoint: Path, work: Workload) -> str:
    """The digest of what *work* has in memory, restored."""
    host.ok("restore", "process", "--path", checkpoint)
    work.wait_ticking()
    digest: str = work.ask()["digest"]
    return digest
