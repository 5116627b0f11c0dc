"""A store where each fsync sends a file as a whole, as s3fs does, and what a crash leaves."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import pytest
from writing import read_checkpoint, writing

from cedanafs.errors import CheckpointError
from cedanafs.shard import directory
from cedanafs.shard.codec import Bytes
from cedanafs.shard.local import LocalShard
from cedanafs.shard.opening import open_checkpoint
from cedanafs.shard.row import Row

NAMES = [f"img-{k}.zst" for k in range(3)]


class Sent:
    """What the store has after each request: of a file all that it had at its last fsync."""

    def __init__(self, store: Path) -> None:
        self.states = [dict.fromkeys(NAMES, b"")]  # s3fs makes an empty object first
        self.images: list[dict[str, bytes]] = [{}]
        self.committed_at = [0]
        self.written: list[tuple[int, dict[str, bytes]]] = []  # after how many commits, and what
        self._store = store
        self._lock = threading.Lock()

    def ours(self, file: LocalShard) -> bool:
        return file.path.parent == self._store

    def created(self, file: LocalShard) -> None:
        with self._lock:
            if file.name not in NAMES:
                self.states.append({**self.states[-1], file.name: b""})

    def synced(self, file: LocalShard) -> None:
        with self._lock:
            self.states.append({**self.states[-1], file.name: file.path.read_bytes()})

    def removed(self) -> None:
        with self._lock:
            there = os.listdir(self._store)
            self.states.append({n: c for n, c in self.states[-1].items() if n in there})

    def appended(self) -> None:
        with self._lock:
            now = {path.name: path.read_bytes() for path in self._store.iterdir()}
            self.written.append((len(self.images) - 1, now))

    def committed(self, **more: bytes) -> None:
        self.images.append(self.images[-1] | more)
        self.committed_at.append(len(self.states) - 1)


@pytest.fixture
def sent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Sent:
    """A dump's commits, and those of who goes on twice."""
    record = Sent(tmp_path / "c")
    create, write_at, truncate = LocalShard.create, LocalShard.write_at, Row.truncate

    def created(path: Path) -> LocalShard:
        file = create(path)
        if record.ours(file):
            record.created(file)
        return file

    def synced(file: LocalShard) -> None:
        if record.ours(file):
            record.synced(file)

    def appended(file: LocalShard, offset: int, buffers: Sequence[Bytes]) -> None:
        write_at(file, offset, buffers)
        if record.ours(file):
            record.appended()

    def truncated(row: Row, length: int) -> None:
        truncate(row, length)
        if row.path.parent == tmp_path / "c":
            record.removed()

    monkeypatch.setattr(directory, "_sends_whole_files", lambda _: True)
    monkeypatch.setattr(LocalShard, "create", created)
    monkeypatch.setattr(LocalShard, "sync", synced)
    monkeypatch.setattr(LocalShard, "write_at", appended)
    monkeypatch.setattr(Row, "truncate", truncated)
    with writing(tmp_path / "c", shards=len(NAMES)) as writer:
        writer.create("a", b"a" * 5000)
        writer.commit()
        record.committed(a=b"a" * 5000)
        writer.create("b", b"b" * 5000)
        writer.commit(seal=True)
        record.committed(b=b"b" * 5000)
        writer.create("c", b"c")  # the seal is cut off
        writer.commit(seal=True)
        record.committed(c=b"c")
    with writing(tmp_path / "c", shards=len(NAMES)) as writer:
        writer.create("d", b"d")
        writer.commit()
        record.committed(d=b"d")
    return record


def written(place: Path, shards: dict[str, bytes]) -> Path:
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    for name, content in shards.items():
        (place / name).write_bytes(content)
    return place


def test_a_commit_sends_what_is_new_and_the_first_shard_last(sent: Sent) -> None:
    first, second = sent.committed_at[1:3]
    changed = [
        name
        for before, after in pairwise(sent.states[first : second + 1])
        for name in after
        if after[name] and after[name] != before.get(name)
    ]
    content, seal = changed[: len(NAMES)], changed[len(NAMES) :]
    for names, number in ((content, 1), (seal, 2)):
        assert sorted(names) == [f"{name}.{number:05}" for name in NAMES]
        assert names[-1].startswith(NAMES[0])


def test_a_crash_between_any_two_leaves_a_commit(sent: Sent, tmp_path: Path) -> None:
    for at, state in enumerate(sent.states):
        number = max(n for n, done_at in enumerate(sent.committed_at) if done_at <= at)
        place = written(tmp_path / "crashed", state)
        found = read_checkpoint(place)
        assert found == sent.images[number] or (
            found in sent.images[number : number + 2] and at not in sent.committed_at
        )
        with writing(place, shards=len(NAMES)) as writer:
            writer.create("more", b"more")
            writer.commit()
        assert read_checkpoint(place) == found | {"more": b"more"}


def test_a_killed_writer_leaves_a_commit(sent: Sent, tmp_path: Path) -> None:
    """s3fs lives on, and sends what was written so far when the kernel closes the files."""
    for number, state in sent.written:
        found = read_checkpoint(written(tmp_path / "killed", state))
        assert found in sent.images[number : number + 2]


def test_what_the_first_shard_has_all_must_have(sent: Sent, tmp_path: Path) -> None:
    before, after = (sent.states[at] for at in sent.committed_at[:2])
    for name in NAMES[1:]:
        place = written(tmp_path / "damaged", {**after, name: before[name]})
        with pytest.raises(CheckpointError, match=name):
            open_checkpoint(place).close()
