"""prune and copy: what is kept and what goes; whole or not at all."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from writing import make_checkpoint, read_checkpoint, writing

from cedanafs.cli import cedanafs
from cedanafs.errors import StoreError
from cedanafs.keep import Rules, Verdict, remove_all, verdicts
from cedanafs.look import CheckpointSummary, list_store
from cedanafs.shard.local import LocalShard
from cedanafs.shard.transfer import copy

NOW_NS = int(time.mktime((2026, 11, 24, 12, 0, 0, 0, 0, -1)) * 1e9)
HOUR_NS = 3600 * 10**9
IMAGES = {"inventory.img": b"inventory", "pages-1.img": bytes(range(256)) * 20_000}


def run(*arguments: object) -> Result:
    return CliRunner().invoke(cedanafs, [str(each) for each in arguments])


def at(name: str, hours_ago: float, **more: Any) -> CheckpointSummary:
    committed = NOW_NS - int(hours_ago * HOUR_NS)
    return CheckpointSummary(f"/s/{name}", "complete", committed_ns=committed, **more)


def kept(found: list[Verdict]) -> str:
    return "".join(sorted(each.checkpoint.path[-1] for each in found if each.keep))


def test_rules() -> None:
    # Noon: e, d today; c, b yesterday; a the day before that.
    found = [at("a", 40), at("b", 26), at("c", 14), at("d", 3), at("e", 1)]
    for rules, expected in [
        (Rules(last=2), "de"),
        (Rules(last=0), ""),
        (Rules(daily=1), "e"),
        (Rules(daily=2), "ce"),
        (Rules(daily=9), "ace"),
        (Rules(last=2, daily=2), "cde"),
        (Rules(older_than_s=20 * 3600), "cde"),
        (Rules(last=1, older_than_s=20 * 3600), "cde"),
        (Rules(last=1, older_than_s=2 * 3600), "e"),
    ]:
        assert kept(verdicts(found, rules, now_ns=NOW_NS)) == expected, rules


def test_what_another_needs_is_kept_and_what_is_not_complete() -> None:
    found = [
        at("a", 50),
        at("b", 40, base="a"),
        at("c", 30, parent="../b"),
        at("d", 20),
        at("e", 10, base="d"),
        CheckpointSummary("/s/f", "damaged", "it is"),
        CheckpointSummary("/s/g", "incomplete", "it is", committed_ns=NOW_NS),
    ]
    said = {each.checkpoint.path[-1]: each for each in verdicts(found, Rules(last=1))}
    assert {name for name, each in said.items() if each.keep} == set("defg")
    assert said["d"].why == "base of e"
    found[4] = at("e", 10, base="c")
    said = {each.checkpoint.path[-1]: each for each in verdicts(found, Rules(last=1))}
    assert {name for name, each in said.items() if not each.keep} == {"d"}
    assert (said["b"].why, said["a"].why) == ("parent of c", "base of b")


def based(store: Path) -> None:
    make_checkpoint(store / "base", IMAGES)
    with writing(store / "user", base="base") as writer:
        for name, data in IMAGES.items():
            writer.create(name, data)
        writer.commit(seal=True)


def test_prune_shows_first_and_then_does_it(tmp_path: Path) -> None:
    make_checkpoint(tmp_path / "old", IMAGES)
    based(tmp_path)
    make_checkpoint(tmp_path / "web-1", IMAGES)
    assert run("prune", tmp_path).exception is not None
    shown = run("prune", tmp_path, "--keep-last", 1, "--name", "[!w]*")
    assert shown.exit_code == 0, shown
    assert [line.split()[:2] for line in shown.stdout.splitlines()[1:]] == [
        ["keep", "user"], ["keep", "base"], ["remove", "old"],
    ]  # fmt: skip
    assert "base of user" in shown.stdout
    assert "1 checkpoints" in shown.stderr
    said = json.loads(run("prune", tmp_path, "--keep-last", 1, "--json").stdout)
    assert [each["keep"] for each in said["checkpoints"]] == [True, False, False, False]
    assert len(list(list_store(tmp_path))) == 4
    assert run("prune", tmp_path, "--keep-last", 1, "--name", "[!w]*", "--yes").exit_code == 0
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["base", "user", "web-1"]
    assert run("prune", tmp_path, "--keep-last", 1, "--yes").exit_code == 0
    assert [entry.name for entry in tmp_path.iterdir()] == ["web-1"]


def test_what_changed_since_it_was_looked_at_stays(tmp_path: Path) -> None:
    make_checkpoint(tmp_path / "base", IMAGES)
    make_checkpoint(tmp_path / "again", IMAGES)
    found = verdicts(list(list_store(tmp_path)), Rules(last=0))
    with writing(tmp_path / "user", base="base") as writer:
        writer.create("inventory.img", b"inventory")
        writer.commit(seal=True)
    with writing(tmp_path / "again") as writer:
        writer.create("more.img", b"more")
        writer.commit(seal=True)
    said = sorted(map(str, remove_all(found)))
    assert len(said) == 2
    assert "was written to just now" in said[0]
    assert "base of user" in said[1]
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["again", "base", "user"]


@pytest.mark.parametrize("codec", ["none", "zstd", "gzip"])
def test_copy(tmp_path: Path, codec: str) -> None:
    source = make_checkpoint(tmp_path / "job", IMAGES, shards=3, codec=codec)
    with (source / f"img-1{'.zst' if codec == 'zstd' else '.gz' if codec == 'gzip' else ''}").open(
        "ab"
    ) as shard:
        shard.write(b"torn")
    (tmp_path / "other").mkdir()
    done = run("copy", source, tmp_path / "other")
    assert done.exit_code == 0, done
    assert done.stdout.splitlines()[-1] == str(tmp_path / "other/job")
    assert read_checkpoint(tmp_path / "other/job") == IMAGES
    ours, theirs = (next(list_store(path)) for path in (source, tmp_path / "other"))
    assert (theirs.checkpoint, theirs.commit) == (ours.checkpoint, ours.commit)
    assert (ours.torn_bytes, theirs.torn_bytes) == (4, 0)
    assert "there already" in str(run("copy", source, tmp_path / "other/job").exception)


def test_an_interrupted_copy_is_no_checkpoint_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = IMAGES | {"pages-2.img": bytes(range(251)) * 60_000}
    source = make_checkpoint(tmp_path / "job", images, shards=2, codec="none")
    target = tmp_path / "other/job"
    target.parent.mkdir()
    write_at = LocalShard.write_at
    written = 0

    def failing(self: LocalShard, offset: int, buffers: Any) -> None:
        nonlocal written
        written += sum(map(len, buffers))
        if written > limit:
            raise StoreError("no more")
        write_at(self, offset, buffers)

    monkeypatch.setattr(LocalShard, "write_at", failing)
    total = sum(shard.stat().st_size for shard in source.iterdir())
    limit, copied = total // 3, 0
    for _ in range(2):
        written = 0
        with pytest.raises(StoreError, match="no more"):
            copy(source, target)
        assert list(list_store(tmp_path / "other")) == []
        assert not target.exists()
        (left,) = target.parent.iterdir()
        now = sum(shard.stat().st_size for shard in left.iterdir())
        assert now > copied
        copied = now
    with next(left.iterdir()).open("r+b") as shard:  # the machine lost some of it
        shard.seek(1000)
        shard.write(b"\0" * 5000)
    written, limit = 0, total
    copy(source, target)
    assert read_checkpoint(target) == images
    assert [entry.name for entry in target.parent.iterdir()] == ["job"]


def test_what_is_damaged_or_lacks_its_base_is_not_copied(tmp_path: Path) -> None:
    based(tmp_path)
    (tmp_path / "other").mkdir()
    assert "copy that to" in str(run("copy", tmp_path / "user", tmp_path / "other").exception)
    assert run("copy", tmp_path / "base", tmp_path / "other").exit_code == 0
    assert run("copy", tmp_path / "user", tmp_path / "other").exit_code == 0
    assert read_checkpoint(tmp_path / "other/user") == IMAGES
    shard = tmp_path / "base/img-0.zst"
    data = bytearray(shard.read_bytes())
    data[len(data) // 3] ^= 1
    shard.write_bytes(data)
    assert "not copied: " in str(run("copy", tmp_path / "base", tmp_path / "new").exception)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["base", "other", "user"]


def test_one_that_is_being_written_is_not_copied(tmp_path: Path) -> None:
    with writing(tmp_path / "job") as writer:
        writer.create("inventory.img", b"inventory")
        writer.commit()
        assert "written" in str(run("copy", tmp_path / "job", tmp_path / "new").exception)
    assert not (tmp_path / "new").exists()
