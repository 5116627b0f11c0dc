"""A process dumped into every kind of directory that can be had here, and restored from it."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from fault_proxy import HttpFault, fault_proxy
from host import Host, StartWorkload, poll
from s3 import Bucket, Server, rclone_mount, s3fs_mount
from scene import MIB, Scene
from writing import make_checkpoint, writing

from cedanafs.errors import UsageError
from cedanafs.look import inspect
from cedanafs.shard.compacting import compact

FUSE = Path("/sys/fs/fuse/connections")


@pytest.fixture
def bucket(s3_servers: dict[str, Server]) -> Bucket:
    """On moto, in which s3fs can make directories."""
    return s3_servers["moto"].make_bucket()


@contextmanager
def directory_on(kind: str, host: Host, bucket: Bucket) -> Iterator[Path]:
    """A store on a filesystem of that kind, of which nothing is in memory."""
    if kind == "s3fs":
        with s3fs_mount(host, bucket) as path:
            yield path
    elif kind == "rclone":
        with rclone_mount(host, bucket, "full") as path:
            yield path
    elif kind == "s3fs, read-only":
        with s3fs_mount(host, bucket, "ro") as path:
            yield path
    else:
        with host.small_disk("tmpfs", 200) as path:
            yield path


def test_tmpfs(host: Host, start: StartWorkload, bucket: Bucket) -> None:
    with directory_on("tmpfs", host, bucket) as store:
        scene = Scene(host, start, store)
        host.ok(*scene.dump())
        scene.assert_restores(store / "x")
        scene.assert_earlier_whole()


@pytest.mark.parametrize("back", ["s3fs", "s3fs, read-only", "rclone"])
def test_s3fs_and_back_by(back: str, host: Host, start: StartWorkload, bucket: Bucket) -> None:
    """Restored through another mount, which has seen nothing of the dump."""
    with directory_on("s3fs", host, bucket) as store:
        scene = Scene(host, start, store)
        host.ok(*scene.dump("--stream", "3"))
    with directory_on(back, host, bucket) as store:
        scene.assert_restores(store / "x")
        scene.assert_earlier_whole(store)
        states = [each["state"] for each in json.loads(host.ok("list", "--json", store).stdout)]
        assert states == ["complete"] * 2


def test_what_cannot_exchange_directories_is_not_compacted(host: Host, bucket: Bucket) -> None:
    """Which is found before anything is uploaded."""
    with directory_on("s3fs", host, bucket) as store:
        make_checkpoint(store / "job", {"inventory.img": bytes(MIB), "pages-1.img": b"old"})
        with writing(store / "job") as writer:
            writer.write(writer.images["inventory.img"], 0, os.urandom(MIB))
            writer.commit(seal=True)
        there = inspect(store / "job")
        with pytest.raises(UsageError, match=r"cannot exchange directories .* convert"):
            compact(store / "job")
        assert inspect(store / "job") == there
        assert os.listdir(store) == ["job"]


def test_shards_are_synced_side_by_side(host: Host, s3_servers: dict[str, Server]) -> None:
    """Each sync of s3fs waits for its upload; how many of them it does at a time is its own affair.

    A call about one file waits for the uploads of those that come before it in an order by random
    numbers, or by path with a cache. The first shard's is asked for when all others are there.
    """
    server = s3_servers["moto"]
    with fault_proxy(server.port) as proxy:
        bucket = server.make_bucket().through(proxy.endpoint)
        with (
            s3fs_mount(host, bucket) as store,
            host.mounted(store, "--compression", "none") as mnt,
        ):
            (mnt / "x").mkdir()
            waiting = FUSE / str(os.minor(store.stat().st_dev)) / "waiting"
            with (mnt / "x/pages-1.img").open("wb") as image:
                proxy.forget()  # empty objects
                proxy.fail(HttpFault("stall", method="PUT", where="/x/img-"))
                image.write(os.urandom(8 * MIB))
            with host.started_program("sync", mnt / "x") as commit:
                try:
                    poll(lambda: proxy.seen().stalled, "an upload")
                    poll(lambda: int(waiting.read_text()) == 3, "syncs at once")
                    assert "PUT" not in proxy.seen().requests
                finally:
                    proxy.heal()
                assert commit.wait(30) == 0
            sent = [where for how, where, _ in proxy.seen().targets if how == "PUT"]
            assert ["/x/img-0" in where for where in sent[:4]] == [False, False, False, True]
    # The directory; of each shard what was committed, and the end of the image.
    assert len(bucket.through(server.endpoint).sizes()) == 1 + 4 * 2


def test_s3fs_sends_each_byte_once(host: Host, s3_servers: dict[str, Server]) -> None:
    """What was sent once is never written to again, which would send all of it again."""
    server = s3_servers["moto"]
    content = {f"pages-{n}.img": os.urandom(MIB) for n in range(8)}
    with fault_proxy(server.port) as proxy:
        bucket = server.make_bucket().through(proxy.endpoint)
        with s3fs_mount(host, bucket) as store:
            (store / "x").mkdir()
            proxy.forget()
            with writing(store / "x", shards=2) as writer:
                for name, data in content.items():
                    writer.create(name, data)
                writer.commit()
                writer.create("stats-dump", b"s")
                writer.commit(seal=True)
            assert proxy.seen().sent_bytes < 8 * MIB * 1.1


def test_a_store_that_can_only_be_read(host: Host, store: Path, start: StartWorkload) -> None:
    scene = Scene(host, start, store)
    host.ok(*scene.dump())
    with host.read_only(store) as seen:
        host.ok("list", seen)
        host.refused(4, "mount", seen, host.make("mnt"), match="--read-only")
        with host.mounted(seen, "--read-only") as mnt:
            assert (mnt / "x/inventory.img").read_bytes()
        scene.assert_restores(seen / "x")
        scene.assert_earlier_whole(seen)
