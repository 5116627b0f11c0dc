"""compact: the same images in less room, or everything as it was."""

from __future__ import annotations

import json
import os
import random
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from writing import make_checkpoint, read_checkpoint, writing

from cedanafs.cli import cedanafs
from cedanafs.errors import CedanaFsError, CheckpointError, StoreBusy, StoreError, UsageError
from cedanafs.look import inspect, list_store
from cedanafs.shard import compacting
from cedanafs.shard.audit import verify
from cedanafs.shard.bases import users_of
from cedanafs.shard.compacting import Room, compact, survey
from cedanafs.shard.directory import LocalDirectory
from cedanafs.shard.local import LocalShard
from cedanafs.shard.place import ObjectPath
from cedanafs.shard.store import PAGES_NAME

DATA = Path(__file__).parents[1] / "data/foreign"
NOISE = random.Random(5).randbytes(3 << 20)


def run(*arguments: object) -> Result:
    return CliRunner().invoke(cedanafs, [str(each) for each in arguments])


def overwritten(directory: Path, *, codec: str = "zstd") -> Path:
    """A checkpoint that was dumped into twice, of which two thirds are of no use any more."""
    make_checkpoint(directory, {"pages-1.img": NOISE, "gone.img": NOISE}, shards=3, codec=codec)
    with writing(directory) as writer:
        writer.log.unlink(writer.images["gone.img"], still_open=False)
        writer.write(writer.images["pages-1.img"], 0, NOISE[::-1])
        writer.commit()
        writer.log.truncate(writer.create("late.img", b"late"), 1 << 20)
        writer.create("inventory.img", b"inventory")
        writer.log.symlink("parent", "../before", uid=1, gid=2)
        writer.commit(seal=True)
    return directory


def files_in(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


@pytest.mark.parametrize("codec", ["none", "lz4", "zstd:3", "gzip", "zlib"])
def test_the_same_in_less(codec: str, tmp_path: Path) -> None:
    job = overwritten(tmp_path / "job", codec=codec)
    job.chmod(0o750)
    images, before, about = read_checkpoint(job), inspect(job), survey(job)
    made = compact(job)
    after = inspect(job)
    assert made == Room(before.stored_bytes, after.stored_bytes)
    assert after.stored_bytes < before.stored_bytes / 2
    assert abs(about.after_bytes - made.after_bytes) < 16_384
    assert read_checkpoint(job) == images
    assert after.images == before.images
    for name in ("codec", "shards", "created_ns", "committed_ns", "state", "sealed"):
        assert getattr(after, name) == getattr(before, name), name
    assert after.checkpoint != before.checkpoint
    assert not verify(job).damages
    assert (job.stat().st_mode & 0o777, os.listdir(tmp_path)) == (0o750, ["job"])
    assert compact(job) == Room(made.after_bytes, made.after_bytes)
    with writing(job) as writer:  # it is written to as ever
        writer.create("more.img", b"more")
        writer.commit(seal=True)
    assert read_checkpoint(job) == images | {"more.img": b"more"}


def test_it_is_shown_first(tmp_path: Path) -> None:
    job = overwritten(tmp_path / "job")
    there = files_in(job)
    shown = run("compact", job)
    assert "job: 9.0 MiB, of which about 6.0 MiB are not needed any more: --yes" in shown.stdout
    said = json.loads(run("compact", job, "--json").stdout)
    assert said["done"] is False
    assert files_in(job) == there
    done = run("compact", job, "--yes")
    assert "job: 9.0 MiB before, 3.0 MiB now" in done.stdout, done
    assert files_in(job) != there
    again = run("compact", job, "--yes")
    assert (again.exit_code, "nothing to compact" in again.stdout) == (0, True)


def test_with_a_base_it_keeps_it(tmp_path: Path) -> None:
    make_checkpoint(tmp_path / "base", {"pages-1.img": NOISE, "inventory.img": b"i"})
    job = tmp_path / "job"
    with writing(job, base="base") as writer:
        image = writer.create("pages-1.img", NOISE)
        writer.create("inventory.img", b"j")
        writer.commit()
        writer.write(image, 0, NOISE[: 1 << 20][::-1])
        writer.commit()
        writer.write(image, 0, NOISE[4096 : 4096 + (1 << 20)])
        writer.commit(seal=True)
    images, before = read_checkpoint(job), inspect(job)
    made = compact(job)
    assert made.after_bytes < made.before_bytes
    assert (read_checkpoint(job), inspect(job).base) == (images, "base")
    assert inspect(job).shared_bytes >= before.shared_bytes > 0
    for look_or_do in (survey, compact):
        with pytest.raises(UsageError, match="base of job: compact it after them, or flatten"):
            look_or_do(tmp_path / "base")
    assert users_of(tmp_path / "base") == ["job"]


@pytest.mark.parametrize("step", ["convert", "_own_alike", "_exchange"])
def test_what_fails_on_the_way_changes_nothing(
    step: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the next one removes what is left of it."""
    job = overwritten(tmp_path / "job")
    there = files_in(job)

    def failing(*_: object, **__: object) -> None:
        if step == "_own_alike":  # as when it is killed there
            assert (tmp_path / ".job.cedanafs-copy").is_dir()
        raise StoreError("the disk is gone")

    with monkeypatch.context() as patch:
        patch.setattr(compacting, step, failing)
        with pytest.raises(StoreError, match="the disk is gone"):
            compact(job)
    assert files_in(job) == there
    assert [each.path for each in list_store(tmp_path)] == [str(job)]
    compact(job)
    assert os.listdir(tmp_path) == ["job"]


def test_killed_when_the_new_ones_are_in_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = overwritten(tmp_path / "job")
    images = read_checkpoint(job)
    exchange = LocalDirectory.exchange

    def killed(self: LocalDirectory, other: Path) -> None:
        exchange(self, other)
        if self.path == job:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(LocalDirectory, "exchange", killed)
        with pytest.raises(KeyboardInterrupt):
            compact(job)
    assert read_checkpoint(job) == images
    assert [each.path for each in list_store(tmp_path)] == [str(job)]
    compact(job)
    assert os.listdir(tmp_path) == ["job"]


def test_who_was_about_to_write_is_told(tmp_path: Path) -> None:
    """It has the old shards open, which nobody would ever see again."""
    job = overwritten(tmp_path / "job")
    shard = LocalShard.open(job / "img-0.zst", writable=True)
    try:
        compact(job)
        with pytest.raises(StoreBusy, match=r"img-0.zst: was removed or replaced just now"):
            shard.lock()
    finally:
        shard.close()


def test_what_is_written_just_now_is_left_alone(tmp_path: Path) -> None:
    job = overwritten(tmp_path / "job")
    with writing(job) as writer:
        writer.create("new.img", b"new")
        writer.commit()
        with pytest.raises(StoreBusy):
            compact(job)
    assert read_checkpoint(job)["new.img"] == b"new"


def test_refused(tmp_path: Path) -> None:
    def refused(kind: type[CedanaFsError], match: str, job: Path) -> None:
        there = files_in(job)
        with pytest.raises(kind, match=match):
            compact(job)
        assert files_in(job) == there

    job = overwritten(tmp_path / "job")
    (job / "notes.txt").write_text("mine")
    refused(UsageError, "notes.txt lies beside its shards", job)
    (job / "notes.txt").rename(job / PAGES_NAME)
    shard = job / "img-1.zst"
    data = bytearray(shard.read_bytes())
    data[len(data) * 2 // 3] ^= 1  # of pages-1.img as it was written last
    shard.write_bytes(data)
    refused(CheckpointError, r"'pages-1.img' at offset", job)
    foreign = shutil.copytree(DATA / "streamer-4-lz4", tmp_path / "foreign")
    refused(UsageError, "written by another streamer", foreign)
    with writing(tmp_path / "torn") as writer:
        writer.create("a.img", b"a")
    refused(CheckpointError, "no commit of it is complete", tmp_path / "torn")
    with pytest.raises(UsageError, match="s3://bucket/job: in an object store nothing can be"):
        survey(ObjectPath("s3", "bucket", "job"))
    assert sorted(os.listdir(tmp_path)) == ["foreign", "job", "torn"]
