"""The figures of a running mount: from the file in its root, and as `cedanafs stat` has them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from host import Host, poll

MIB = 1 << 20


def figures(mnt: Path) -> dict[str, Any]:
    value = json.loads((mnt / ".cedanafs-stat").read_text())
    assert isinstance(value, dict)
    return value


def test_what_is_written_and_read_is_counted(host: Host, store: Path) -> None:
    data = os.urandom(2 * MIB) + bytes(2 * MIB)
    with host.mounted(store, "--stream", 3) as mnt:
        (mnt / "web").mkdir()
        with open(mnt / "web/pages-1.img", "wb") as image:
            image.write(data)
            image.flush()
            poll(lambda: figures(mnt)["write"]["landed_bytes"] == 4 * MIB, "its frames")
            (mine,) = figures(mnt)["checkpoints"]
            assert mine["path"] == "web"
            assert (mine["images"], mine["writers"], mine["durable"]) == (1, 1, False)
            assert "being written" in host.ok("stat", mnt).stdout
            reader = open(mnt / "web/pages-1.img", "rb")  # noqa: SIM115 - keeps it from its rest
        with reader:
            host.ok("commit", mnt / "web")
            now = json.loads(host.ok("stat", "--json", mnt / "web").stdout)
            (mine,) = now["checkpoints"]
            assert (mine["writers"], mine["durable"], mine["image_bytes"]) == (0, True, 4 * MIB)
            assert sum(shard["frames"] for shard in mine["shards"]) >= 4
            assert 2 * MIB < now["write"]["stored_bytes"] < 3 * MIB
            assert (now["commits"], now["failed_commits"]) == (1, 0)
            assert now["write"]["queued_bytes"] == 0
            # It is sealed when it was quiet for a moment.
            poll(
                lambda: (
                    [s["stored_bytes"] for s in figures(mnt)["checkpoints"][0]["shards"]]
                    == [(store / f"web/img-{k}.zst").stat().st_size for k in range(3)]
                ),
                "its shards",
            )

        before = now["read"]
        assert (mnt / "web/pages-1.img").read_bytes() == data
        read = figures(mnt)["read"]
        assert read["given_bytes"] - before["given_bytes"] >= len(data)
        assert read["hits"] + read["misses"] > before["hits"] + before["misses"]
        assert figures(mnt)["requests"]["write"] >= 4
        assert figures(mnt)["memory_bytes"] > MIB
        shown = host.ok("stat", mnt).stdout
        assert "ratio" in shown
        assert str(store) in shown


def test_the_file_is_for_its_owner_to_read_and_in_no_listing(host: Host, store: Path) -> None:
    with host.mounted(store, "--allow-other") as mnt:
        os.chmod(mnt, 0o755)
        assert os.listdir(mnt) == []
        file = mnt / ".cedanafs-stat"
        assert file.stat().st_mode & 0o777 == 0o400
        changes: list[Callable[[], object]] = [
            lambda: file.write_text("x"), lambda: os.truncate(file, 0), file.unlink,
            lambda: file.chmod(0o644), lambda: file.rename(mnt / "x"), file.mkdir,
        ]  # fmt: skip
        for change in changes:
            with pytest.raises(OSError):  # noqa: PT011 - whichever the kernel chooses
                change()
        other = subprocess.run(
            [sys.executable, "-c", f"import os; os.setuid(65534); open({str(file)!r})"],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert "PermissionError" in other.stderr
        assert json.loads(file.read_text())["store"] == str(store)
    with host.mounted(store, "--read-only") as mnt:
        assert figures(mnt)["read_only"]


def test_no_mount(host: Host, store: Path) -> None:
    host.refused(2, "stat", store, match="is no mount of cedanafs")
    host.refused(2, "stat", "--watch", store, match="is no number of seconds")


def test_watched_until_it_is_unmounted(host: Host, store: Path) -> None:
    with host.mounted(store) as mnt:
        with host.started("stat", mnt, "--json", "--watch", "0.1") as watching:
            assert watching.stdout is not None
            lines = [json.loads(watching.stdout.readline()) for _ in range(3)]
            assert lines[0]["uptime_s"] < lines[2]["uptime_s"]
            host.ok("umount", mnt)
            _, said = watching.communicate(timeout=60)
        assert watching.returncode == 0, said
        assert said == f"{mnt}: unmounted\n"
