"""Many: shards, checkpoints in a store, mounts that restore the same one. Requests, not seconds."""

from __future__ import annotations

import os
import shutil
import threading
from contextlib import ExitStack
from pathlib import Path

import pytest
from fault_proxy import fault_proxy
from host import Host, StartWorkload
from s3 import Server, s3fs_mount
from writing import make_checkpoint

from cedanafs.look import list_store
from cedanafs.shard import local

MANY = 1000


def test_a_thousand_checkpoints_are_listed_by_their_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = make_checkpoint(tmp_path / "one", {"inventory.img": b"x", "pages-1.img": bytes(1 << 20)})
    store = tmp_path / "store"
    for number in range(MANY):
        shutil.copytree(one, store / f"{number:04}")
    read = []
    read_at = local.LocalShard.read_at

    def counted(shard: local.LocalShard, offset: int, length: int) -> bytes:
        read.append(length)
        return read_at(shard, offset, length)

    monkeypatch.setattr(local.LocalShard, "read_at", counted)
    found = list(list_store(store))
    assert [each.state for each in found] == ["complete"] * MANY
    shards = found[0].shards * MANY
    assert shards <= len(read) <= 4 * shards
    assert sum(read) <= 70_000 * shards


def test_sixty_four_shards(host: Host, store: Path, start: StartWorkload) -> None:
    work = start("memory", size_mib=80)
    told = work.ask()["digest"]
    host.ok("dump", "process", work.pid, "--dir", store, "--name", "x", "--stream", "64")
    work.wait_gone()
    assert len(list((store / "x").glob("img-*.zst"))) == 64
    host.ok("verify", store / "x")
    host.ok("restore", "process", "--path", store / "x", "--stream", "64")
    work.wait_ticking()
    assert work.ask()["digest"] == told


def test_ten_mounts_read_the_same_checkpoint_at_once(
    host: Host, s3_servers: dict[str, Server]
) -> None:
    """Each on an s3fs of its own, as on ten machines; each fetches it once."""
    images = {"inventory.img": b"x", "pages-1.img": os.urandom(6 << 20)}
    server = s3_servers["moto"]
    bucket = server.make_bucket()
    with s3fs_mount(host, bucket) as mounted:
        make_checkpoint(mounted / "x", images)
    found: list[dict[str, bytes]] = []
    with fault_proxy(server.port) as proxy, ExitStack() as stack:
        mounts = []
        for _ in range(10):
            mounted = stack.enter_context(s3fs_mount(host, bucket.through(proxy.endpoint)))
            mounts.append(stack.enter_context(host.mounted(mounted, "--read-only")))

        def read(mount: Path) -> None:
            found.append({each.name: each.read_bytes() for each in (mount / "x").iterdir()})

        threads = [threading.Thread(target=read, args=(mount,)) for mount in mounts]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(120)
        assert found == [images] * 10
        assert proxy.seen().received_bytes < 10 * 1.1 * sum(bucket.sizes().values())
