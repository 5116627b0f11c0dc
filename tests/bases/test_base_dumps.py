"""Real processes dumped onto a base, in mounts of their own and in one that is there."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from host import Host, StartWorkload


def stored(checkpoint: Path) -> int:
    return sum(path.stat().st_size for path in checkpoint.glob("img-*"))


def test_dump_onto_a_base_restore_flatten_remove(
    host: Host, store: Path, start: StartWorkload
) -> None:
    work = start("memory", size_mib=60)
    before = work.ask()
    dump = ("dump", "process", work.pid, "--dir", store)
    host.ok(*dump, "--name", "a", "--leave-running", "--page-hashes")
    host.ok(*dump, "--name", "b", "--base", "a", "--leave-running")
    host.ok(*dump, "--name", "c", "--base", "b")
    work.wait_gone()
    assert stored(store / "b") < stored(store / "a") / 10
    assert stored(store / "c") < stored(store / "a") / 10
    said = json.loads(host.ok("inspect", store / "c", "--json").stdout)
    assert said["base"] == "b"
    assert said["shared_bytes"] > 0.9 * said["raw_bytes"]
    host.ok("verify", store / "c")

    host.refused(2, "rm", store / "b", match="base of c")
    (store / "a").rename(host.base / "away")
    host.refused(3, "restore", "process", "--path", store / "c", match="base .*/a is missing")
    host.refused(3, "verify", store / "c", match="base .*/a is missing")
    host.refused(3, "repair", store / "c", match="base .*/a is missing")
    (host.base / "away").rename(store / "a")

    host.ok("restore", "process", "--path", store / "c")
    work.wait_ticking()
    assert work.ask()["digest"] == before["digest"]
    work.kill()
    work.wait_gone()

    host.ok("flatten", store / "c")
    host.ok("rm", store / "b")
    host.ok("rm", store / "a")
    assert [path.name for path in store.iterdir()] == ["c"]
    host.ok("verify", store / "c")
    host.ok("restore", "process", "--path", store / "c")
    work.wait_ticking()
    assert work.ask()["digest"] == before["digest"]


def test_a_mount_whose_dumps_refer_to_a_base(
    host: Host, store: Path, start: StartWorkload, criu_binary: str
) -> None:
    work = start("memory", size_mib=30)
    before = work.ask()
    host.ok("dump", "process", work.pid, "--dir", store, "--name", "a", "--leave-running")
    with host.mounted(store, "--base", "a") as mnt:
        (mnt / "by-criu").mkdir()
        host.stock(
            criu_binary, "dump", "-t", work.pid, "-D", mnt / "by-criu", "--leave-running", "-v0"
        )
        host.ok("commit", mnt / "by-criu")
        done = ("dump", "process", work.pid, "--dir", mnt, "--leave-running")
        host.ok(*done, "--name", "by-us", "--base", "a")
        host.refused(2, *done, "--name", "other", "--base", "..", match="base")
        host.refused(3, *done, "--name", "other", "--base", "none", match="no such directory")
        host.refused(2, "rm", mnt / "a", match="base of by-criu, by-us")
    for name in ("by-criu", "by-us"):
        assert stored(store / name) < stored(store / "a") / 5
        host.ok("verify", store / name)
    work.kill()
    work.wait_gone()
    shutil.rmtree(store / "by-us")
    host.ok("restore", "process", "--path", store / "by-criu")
    work.wait_ticking()
    assert work.ask()["digest"] == before["digest"]
