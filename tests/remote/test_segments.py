"""Checkpoints in an object store: segments, the order of a commit, crashes, replaced objects."""

from __future__ import annotations

import os
import re
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fault_proxy import HttpFault, Proxy, fault_proxy
from host import Host
from s3 import Bucket, Server, s3fs_mount
from stream_parser import files_of
from writing import STOCK_TOOLS, make_checkpoint, read_checkpoint, writing

from cedanafs.errors import (
    CheckpointIncomplete,
    CheckpointMissing,
    CorruptShard,
    StoreBusy,
    StoreError,
)
from cedanafs.look import list_store
from cedanafs.shard import leftovers
from cedanafs.shard.audit import verify
from cedanafs.shard.bases import remove
from cedanafs.shard.bucket import bucket_at
from cedanafs.shard.chain import chain
from cedanafs.shard.checkpoint import Checkpoint
from cedanafs.shard.opening import open_checkpoint
from cedanafs.shard.place import ObjectPath, place_of
from cedanafs.shard.segments import segment_of
from cedanafs.shard.store import shard_paths

FIRST = {"inventory.img": b"first", "pages-1.img": os.urandom(20 << 20)}
"""More than one part of an upload on each of two shards."""


def body(bucket: Bucket, key: str) -> bytes:
    data: bytes = bucket.client().get_object(Bucket=bucket.name, Key=key)["Body"].read()
    return data


def delete(bucket: Bucket, key: str) -> None:
    bucket.client().delete_object(Bucket=bucket.name, Key=key)


def put(bucket: Bucket, key: str, data: bytes) -> None:
    bucket.client().put_object(Bucket=bucket.name, Key=key, Body=data)


def names(bucket: Bucket) -> list[str]:
    return sorted(key.rpartition("/")[2] for key in bucket.sizes())


def three_commits(objects: ObjectPath) -> dict[str, bytes]:
    """Of two shards, with a seal; what they hold."""
    with writing(objects, shards=2) as writer:
        for name, data in FIRST.items():
            writer.create(name, data)
        writer.commit()
        writer.create("late", b"more")
        writer.commit(seal=True)
    return {**FIRST, "late": b"more"}


def test_a_commit_is_a_segment_of_each_shard(objects: ObjectPath, moto_bucket: Bucket) -> None:
    content = three_commits(objects)
    ends = ["", ".00001", ".00002"]
    assert names(moto_bucket) == [f"img-{k}.zst{end}" for k in (0, 1) for end in ends]
    assert moto_bucket.unfinished_uploads() == []
    assert read_checkpoint(objects) == content
    assert verify(objects).damages == ()
    (found,) = list_store(objects.parent)
    assert (found.state, found.sealed, found.path) == ("complete", True, str(objects))


@pytest.mark.parametrize("codec", ["none", "lz4", "zstd", "gzip"])
def test_segments_one_after_the_other_are_what_stock_tools_read(
    objects: ObjectPath, moto_bucket: Bucket, codec: str
) -> None:
    make_checkpoint(objects, {"a": b"x" * 5000, "b": os.urandom(6 << 20)}, shards=2, codec=codec)
    shards = []
    for path in shard_paths(objects):
        keys = sorted(
            key for key in moto_bucket.sizes() if key.split("/")[-1].startswith(path.name)
        )
        assert len(keys) == 2
        stored = b"".join(body(moto_bucket, key) for key in keys)
        shards.append(
            subprocess.run(STOCK_TOOLS[codec], input=stored, capture_output=True, check=True).stdout
        )
    found = {name: data for name, data in files_of(shards).items() if name[0] != "."}
    assert found == read_checkpoint(objects)


def test_nothing_is_there_before_the_commit_nor_without_it(
    objects: ObjectPath, moto_bucket: Bucket
) -> None:
    with writing(objects, shards=2) as writer:
        writer.create("pages-1.img", FIRST["pages-1.img"])
        writer.log.flush()
        deadline = time.monotonic() + 30
        while len(moto_bucket.unfinished_uploads()) < 2:
            assert time.monotonic() < deadline, "no upload runs while it is written"
        assert moto_bucket.sizes() == {}
    assert moto_bucket.sizes() == {}
    assert moto_bucket.unfinished_uploads() == []
    with pytest.raises(CheckpointMissing):
        open_checkpoint(objects)


def test_the_first_shard_is_completed_last(
    objects: ObjectPath, moto_bucket: Bucket, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
    patient = objects.patient(21)  # another client than that of other tests
    with writing(patient, shards=3) as writer:
        writer.create("pages-1.img", os.urandom(30 << 20))
        writer.create("inventory.img", b"i")
        writer.commit()
        writer.create("late", b"more")
        writer.commit(seal=True)
    ends = [
        target.split("?")[0].rpartition("/")[2]
        for method, target, _ in proxy.seen().targets
        if (method == "POST" and "uploads" not in target) or (method == "PUT" and "?" not in target)
    ]
    assert len(ends) == 9
    for commit in range(3):
        assert "img-0" in ends[commit * 3 + 2], ends


@pytest.fixture
def proxy(s3_servers: dict[str, Server]) -> Iterator[Proxy]:
    with fault_proxy(s3_servers["moto"].port) as proxy:
        yield proxy


@pytest.mark.parametrize("commits", [0, 1, 2])
def test_a_crash_between_completions_leaves_the_commit_before(
    objects: ObjectPath, moto_bucket: Bucket, commits: int
) -> None:
    """The other shards have the next segment, the first has not."""
    content = three_commits(objects)
    for number in range(commits, 3):
        delete(moto_bucket, f"{objects.key}/img-0.zst" + (f".{number:05}" if number else ""))
        if number > commits:
            delete(moto_bucket, f"{objects.key}/img-1.zst.{number:05}")
    if commits == 0:
        with pytest.raises(CheckpointMissing):
            open_checkpoint(objects)
        assert list(list_store(objects.parent)) == []
    else:
        held = content if commits == 2 else FIRST
        assert read_checkpoint(objects) == held
        assert verify(objects).damages == ()
    with writing(objects, shards=2) as writer:
        writer.create("new", b"new")
        writer.commit(seal=True)
    assert read_checkpoint(objects) == {**([{}, FIRST, content][commits]), "new": b"new"}
    assert verify(objects).damages == ()
    assert len(names(moto_bucket)) == 2 * (commits + 2)


@pytest.mark.parametrize("gone", ["img-1.zst", "img-1.zst.00001", "img-1.zst.00002"])
def test_a_segment_that_is_gone_is_named(
    objects: ObjectPath, moto_bucket: Bucket, gone: str
) -> None:
    three_commits(objects)
    delete(moto_bucket, f"{objects.key}/{gone}")
    with pytest.raises((CheckpointIncomplete, CorruptShard), match=gone.replace(".", r"\.")):
        open_checkpoint(objects)


def test_the_first_shard_gone_after_more_commits_is_no_checkpoint_that_never_was(
    objects: ObjectPath, moto_bucket: Bucket
) -> None:
    three_commits(objects)
    delete(moto_bucket, f"{objects.key}/img-0.zst")
    with pytest.raises(CheckpointIncomplete, match=r"img-0\.zst"):
        open_checkpoint(objects)
    assert leftovers.leftovers(objects, 0) == []


def test_whoever_writes_on_cuts_the_seal_off(objects: ObjectPath, moto_bucket: Bucket) -> None:
    content = three_commits(objects)
    seals = {key: body(moto_bucket, key) for key in moto_bucket.sizes() if key.endswith("2")}
    with writing(objects, shards=2) as writer:
        assert len(names(moto_bucket)) == 4
        writer.create("pages-2.img", FIRST["pages-1.img"])
        writer.commit(seal=True)
        writer.create("after the seal", b"x")  # in the same mount
        writer.commit(seal=True)
    assert read_checkpoint(objects) == {
        **content, "pages-2.img": FIRST["pages-1.img"], "after the seal": b"x"
    }  # fmt: skip
    assert verify(objects).damages == ()
    assert all(body(moto_bucket, key) != old for key, old in seals.items())


@pytest.mark.parametrize("how", ["replaced", "deleted", "cut"])
def test_what_is_replaced_between_two_reads_is_an_error(
    objects: ObjectPath, moto_bucket: Bucket, how: str
) -> None:
    three_commits(objects)
    opened = open_checkpoint(objects)
    try:
        key = f"{objects.key}/img-1.zst"
        before = body(moto_bucket, key)
        opened.files[1].read_at(100, 100)
        if how == "deleted":
            delete(moto_bucket, key)
        else:
            put(moto_bucket, key, os.urandom(len(before)) if how == "replaced" else before[:-1])
        with pytest.raises(StoreError, match=r"img-1\.zst was replaced or removed"):
            opened.files[1].read_at(100, 100)
    finally:
        opened.close()


def test_what_another_wrote_meanwhile_is_not_overwritten(
    objects: ObjectPath, moto_bucket: Bucket
) -> None:
    """No lock reaches to another machine: who comes second is told."""
    for pages in (b"small", FIRST["pages-1.img"]):
        place = objects.parent / f"job-{len(pages)}"
        with writing(place, shards=2) as writer:
            writer.create("a", pages)
            put(moto_bucket, f"{place.key}/img-1.zst", b"another's")
            with pytest.raises(StoreBusy, match="another server is writing"):
                writer.commit()
        assert body(moto_bucket, f"{place.key}/img-1.zst") == b"another's"
        assert f"{place.key}/img-0.zst" not in moto_bucket.sizes()


def test_a_completion_whose_answer_is_lost_is_a_commit(
    objects: ObjectPath, moto_bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cedanafs.shard.bucket import Bucket as Connection

    send = Connection.create_of

    def send_and_lose(self: Connection, key: str, pieces: Any, **how: int) -> None:
        send(self, key, pieces, **how)
        raise OSError("connection reset")

    monkeypatch.setattr(Connection, "create_of", send_and_lose)
    with writing(objects, shards=2) as writer:
        writer.create("pages-1.img", FIRST["pages-1.img"])
        writer.commit()
    assert read_checkpoint(objects) == {"pages-1.img": FIRST["pages-1.img"]}


@pytest.mark.parametrize("kind", ["status", "reset"])
def test_failures_that_pass_are_survived(
    objects: ObjectPath, proxy: Proxy, monkeypatch: pytest.MonkeyPatch, kind: Any
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
    patient = objects.patient(22 if kind == "status" else 23)
    proxy.fail(HttpFault(kind, status=503, method="PUT", times=3))
    content = three_commits(patient)
    assert proxy.seen().hits == 3
    proxy.fail(HttpFault(kind, status=500, method="GET", times=3))
    assert read_checkpoint(patient) == content


def test_a_listing_counts_while_it_is_no_older_than_its_answer(
    objects: ObjectPath, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
    bucket = bucket_at(objects.patient(24))
    bucket.head("store/x")  # connected
    proxy.fail(HttpFault("delay", method="GET", delay_s=0.3))
    proxy.forget()
    assert bucket.listing("store") == bucket.listing("store") == ([], [])
    assert len(proxy.seen().targets) == 1
    bucket.create("store/x", b"what we change is seen at once")
    assert [found.key for found in bucket.listing("store")[1]] == ["store/x"]
    time.sleep(0.5)
    bucket.listing("store")
    assert len([method for method, _, _ in proxy.seen().targets if method == "GET"]) == 3


@pytest.mark.parametrize("kind", ["status", "refuse", "stall"])
def test_a_store_that_fails_for_good_fails_the_commit_in_time(
    objects: ObjectPath,
    moto_bucket: Bucket,
    proxy: Proxy,
    monkeypatch: pytest.MonkeyPatch,
    kind: Any,
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
    hasty = objects.patient({"status": 5.0, "refuse": 5.1, "stall": 5.2}[kind])
    with writing(hasty, shards=2) as writer:
        writer.create("pages-1.img", b"small")
        proxy.fail(HttpFault(kind, status=503, method="" if kind == "refuse" else "PUT"))
        with pytest.raises(StoreError, match=r"answers 503 SlowDown|does not answer"):
            writer.commit()
        proxy.heal()
    assert moto_bucket.unfinished_uploads() == []
    assert not any("img-0" in key for key in moto_bucket.sizes())


def test_a_store_that_knows_no_conditions_is_asked_before(
    objects: ObjectPath, moto_bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_CONDITIONAL_PUT", "disabled")
    make_checkpoint(objects, {"a": b"a"}, seal=False)
    assert read_checkpoint(objects) == {"a": b"a"}
    with writing(objects) as writer:
        writer.create("b", b"b")
        put(moto_bucket, f"{objects.key}/img-0.zst.00001", b"another's")
        with pytest.raises(StoreBusy, match="another server is writing"):
            writer.commit()


def test_a_chain_of_checkpoints_is_found(objects: ObjectPath) -> None:
    make_checkpoint(objects.parent / "1", {"a": b"a"})
    with writing(objects.parent / "2") as writer:
        writer.log.symlink("parent", "../1", uid=0, gid=0)
        writer.commit()
    assert chain(objects.parent / "2") == [objects.parent / "2", objects.parent / "1"]
    remove(objects.parent / "1", even_if_used=False)
    with pytest.raises(CheckpointMissing, match=r"its parent \.\./1 is missing"):
        chain(objects.parent / "2")


def test_prune_finds_what_crashes_have_left(objects: ObjectPath, moto_bucket: Bucket) -> None:
    content = three_commits(objects)
    client = moto_bucket.client()
    for key in (f"{objects.parent.key}/crashed/img-3.zst", "elsewhere/img-0", f"{objects.key}/x"):
        client.create_multipart_upload(Bucket=moto_bucket.name, Key=key)
    put(moto_bucket, f"{objects.key}/img-1.zst.00003", b"torn")
    put(moto_bucket, f"{objects.parent.key}/never/img-1.zst", b"torn")
    put(moto_bucket, f"{objects.parent.key}/never/notes.txt", b"somebody's")
    old = leftovers.leftovers(objects.parent, 3600)
    assert [each for each in old if each.upload is None] == []  # moto says 2010 of all uploads
    found = leftovers.leftovers(objects.parent, 0)
    assert sorted((each.key.rpartition("store/")[2], each.upload is None) for each in found) == [
        ("crashed/img-3.zst", False), ("job/img-1.zst.00003", True), ("never/img-1.zst", True)
    ]  # fmt: skip
    leftovers.remove(objects.parent, found)
    assert leftovers.leftovers(objects.parent, 0) == []
    assert sorted(moto_bucket.unfinished_uploads()) == ["elsewhere/img-0", f"{objects.key}/x"]
    assert f"{objects.parent.key}/never/notes.txt" in moto_bucket.sizes()
    assert read_checkpoint(objects) == content


def test_rm_removes_the_first_shard_first(
    objects: ObjectPath, moto_bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    three_commits(objects)
    from cedanafs.shard.bucket import Bucket as Connection

    deleted: list[list[str]] = []
    really = Connection.delete
    monkeypatch.setattr(
        Connection, "delete", lambda self, keys: (deleted.append(keys), really(self, keys))
    )
    remove(objects, even_if_used=False)
    assert deleted[0] == [f"{objects.key}/img-0.zst"]
    assert moto_bucket.sizes() == {}


def test_segments_in_a_directory_are_read_there(
    objects: ObjectPath, moto_bucket: Bucket, tmp_path: Path
) -> None:
    content = three_commits(objects)
    for key in moto_bucket.sizes():
        (tmp_path / key.rpartition("/")[2]).write_bytes(body(moto_bucket, key))
    assert read_checkpoint(tmp_path) == content
    with writing(tmp_path, shards=2) as writer:
        writer.create("here", b"too")
        writer.commit(seal=True)
    content["here"] = b"too"
    assert read_checkpoint(tmp_path) == content
    assert verify(tmp_path).damages == ()
    last = sorted(tmp_path.glob("img-1.zst.*"))
    gap = last[1].read_bytes()
    last[1].unlink()
    with pytest.raises(CheckpointIncomplete, match=rf"{re.escape(last[1].name)} is missing"):
        open_checkpoint(tmp_path)
    last[1].write_bytes(gap)
    last[-1].unlink()
    with pytest.raises(CorruptShard, match=r"img-1.zst at offset .* other shards hold commit"):
        open_checkpoint(tmp_path)


def test_segments_in_a_directory_may_be_joined(
    objects: ObjectPath, moto_bucket: Bucket, tmp_path: Path
) -> None:
    content = three_commits(objects)
    for key in sorted(moto_bucket.sizes()):
        name, _ = segment_of(key.rpartition("/")[2])
        with (tmp_path / name).open("ab") as shard:
            shard.write(body(moto_bucket, key))
    assert read_checkpoint(tmp_path) == content


def test_what_s3fs_has_written_the_bucket_holds(
    host: Host, objects: ObjectPath, moto_bucket: Bucket
) -> None:
    with s3fs_mount(host, moto_bucket) as mounted:
        (mounted / objects.parent.key).mkdir()
        content = three_commits(mounted / objects.key)
        assert read_checkpoint(mounted / objects.key) == content
    assert read_checkpoint(objects) == content
    with writing(objects, shards=2) as writer:
        writer.create("by s3", b"too")
        writer.commit(seal=True)
    with s3fs_mount(host, moto_bucket) as mounted:
        assert read_checkpoint(mounted / objects.key) == content | {"by s3": b"too"}
        assert verify(mounted / objects.key).damages == ()
        remove(mounted / objects.key, even_if_used=False)
    assert [key for key in moto_bucket.sizes() if "img-" in key] == []


def test_one_object_per_shard_put_there_by_others_is_read(
    objects: ObjectPath, moto_bucket: Bucket, tmp_path: Path
) -> None:
    make_checkpoint(tmp_path / "job", FIRST, shards=2)
    for path in shard_paths(tmp_path / "job"):
        put(moto_bucket, f"{objects.key}/{path.name}", Path(str(path)).read_bytes())
    assert read_checkpoint(objects) == FIRST
    checkpoint = Checkpoint.load(objects)  # its seal lies within an object
    checkpoint.close()


def test_places() -> None:
    place = place_of("s3://bucket/a/b/")
    assert str(place) == "s3://bucket/a/b"
    assert str(place / "img-0.zst") == "s3://bucket/a/b/img-0.zst"
    assert [str(each) for each in place.parents] == ["s3://bucket/a", "s3://bucket"]
    assert str(place_of("gs://bucket") / "x") == "gs://bucket/x"
    assert place_of("s3:/no/url") == Path("s3:/no/url")
