"""extract: whatever is in the checkpoint, only the target changes, and nobody gains by it."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from forging import Forgery
from writing import make_checkpoint

from cedanafs.errors import CorruptShard, StoreError, UsageError
from cedanafs.shard import audit
from cedanafs.shard.audit import extract
from cedanafs.shard.records import BOOKKEEPING


@pytest.fixture
def yard(tmp_path: Path) -> Iterator[Path]:
    """A directory with a file that must not change; the target belongs beside it."""
    place = tmp_path / "yard"
    place.mkdir()
    canary = place / "canary"
    canary.write_text("untouched")
    before = canary.stat()
    yield place
    assert canary.stat() == before
    assert canary.read_text() == "untouched"
    assert {path.name for path in place.iterdir()} <= {"canary", "target", "elsewhere"}


def forged(tmp_path: Path, *records: tuple[dict[str, Any], bytes]) -> Path:
    forgery = Forgery(tmp_path / "store")
    forgery.frame(0, [forgery.record(payload, **said) for said, payload in records])
    forgery.commit(sealed=True)
    return tmp_path / "store"


def snapshot(directory: Path) -> dict[str, object]:
    return {
        path.name: os.readlink(path) if path.is_symlink() else path.read_bytes()
        for path in directory.iterdir()
    }


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "..",
        "../canary",
        "a/../../canary",
        "/canary",
        "a/b",
        "a\0b",
        "x" * 256,
        BOOKKEEPING,
    ],
)
@pytest.mark.parametrize("how", ["created", "renamed"])
def test_a_name_that_leads_elsewhere_is_refused(
    tmp_path: Path, yard: Path, name: str, how: str
) -> None:
    if how == "created":
        records = [({"filename": name}, b""), ({"file_data": 4}, b"evil")]
    else:
        records = [({"filename": "a"}, b""), ({"file_data": 4}, b"evil")]
        records.append(({"filename": "a", "rename_to": name}, b""))
    store = forged(tmp_path, *records)
    if name == BOOKKEEPING and how == "created":
        with pytest.raises(CorruptShard):  # it selects no file that could take the data
            extract(store, yard / "target")
    else:
        with pytest.raises(CorruptShard, match="no file name"):
            extract(store, yard / "target")
    assert not (yard / "target").exists()


@pytest.mark.parametrize(
    "name", [" ", "-rf", "new\nline", "\x1b[2J", "ü", "\udcff\udcfe", "x" * 255]
)
def test_a_name_that_is_only_odd_is_taken_as_it_is(tmp_path: Path, yard: Path, name: str) -> None:
    store = forged(tmp_path, ({"filename": name}, b""), ({"file_data": 1}, b"x"))
    assert extract(store, yard / "target") == 1
    raw = name.encode("utf-8", "surrogateescape")
    assert os.listdir(os.fsencode(yard / "target")) == [raw]


@pytest.mark.parametrize("target", ["../canary", "/etc/passwd", "..", ".", "self", "\udcff"])
def test_a_link_is_made_and_never_followed(tmp_path: Path, yard: Path, target: str) -> None:
    store = forged(
        tmp_path,
        ({"filename": "self", "symlink_to": target, "mode": 0o7777, "uid": 7, "mtime_ns": 5}, b""),
        ({"filename": "zz"}, b""),
        ({"file_data": 1}, b"x"),
    )
    extract(store, yard / "target")
    assert os.readlink(os.fsencode(yard / "target/self")) == os.fsencode(target)
    assert (yard / "target/zz").read_bytes() == b"x"


def test_a_link_and_then_a_file_of_that_name(tmp_path: Path, yard: Path) -> None:
    """The last that has the name has it; data never goes through the link."""
    link = ({"filename": "a", "symlink_to": "../canary"}, b"")
    file = [({"filename": "b"}, b""), ({"file_data": 4}, b"evil")]
    for number, records in enumerate(
        (
            [link, *file, ({"filename": "b", "rename_to": "a"}, b"")],
            [link, ({"filename": "a", "unlink": True}, b""), ({"filename": "a"}, b""), file[1]],
        )
    ):
        (place := tmp_path / str(number)).mkdir()
        extract(forged(place, *records), yard / "target")
        assert snapshot(yard / "target") == {"a": b"evil"}
        (yard / "target/a").unlink()
        (yard / "target").rmdir()
    (place := tmp_path / "refused").mkdir()
    with pytest.raises(CorruptShard, match="symbolic link"):
        extract(forged(place, link, file[1]), yard / "target")
    assert not (yard / "target").exists()


def test_no_program_of_the_superuser_is_made(tmp_path: Path, yard: Path) -> None:
    store = forged(tmp_path, ({"filename": "sh", "mode": 0o7755, "uid": 0, "gid": 0}, b""))
    extract(store, yard / "target")
    assert stat.S_IMODE((yard / "target/sh").stat().st_mode) == 0o755
    assert stat.S_IMODE((yard / "target").stat().st_mode) == 0o700


def test_the_target_is_not_reached_through_a_link(tmp_path: Path, yard: Path) -> None:
    store = make_checkpoint(tmp_path / "store", {"a": b"x"})
    (yard / "elsewhere").mkdir()
    (yard / "target").symlink_to("elsewhere")
    with pytest.raises(UsageError, match="cannot extract into"):
        extract(store, yard / "target")
    assert not list((yard / "elsewhere").iterdir())


def test_a_target_that_is_moved_away_meanwhile_is_still_the_target(
    tmp_path: Path, yard: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody puts a link in its place between two images."""
    store = make_checkpoint(tmp_path / "store", {"a": b"x" * 9, "canary": b"evil"})
    create = audit._create

    def swapped(root: int, image: Any) -> None:
        if image.name == "a":
            (yard / "target").rename(yard / "elsewhere")
            (yard / "target").symlink_to(".")
        create(root, image)

    monkeypatch.setattr(audit, "_create", swapped)
    extract(store, yard / "target")
    assert snapshot(yard / "elsewhere") == {"a": b"x" * 9, "canary": b"evil"}


@pytest.mark.parametrize("mode", [0o777, 0o775, 0o1777])
def test_a_target_in_which_others_can_write_is_refused(
    tmp_path: Path, yard: Path, mode: int
) -> None:
    store = make_checkpoint(tmp_path / "store", {"a": b"x"})
    (yard / "target").mkdir()
    (yard / "target").chmod(mode)
    with pytest.raises(UsageError, match="others can write"):
        extract(store, yard / "target")
    (yard / "target").chmod(0o700)
    os.chown(yard / "target", 12345, 0)
    with pytest.raises(UsageError, match="others can write"):
        extract(store, yard / "target")


def test_what_does_not_fit_is_refused_before_anything_is_written(
    tmp_path: Path, yard: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A few KiB of shard can hold a disk full of zeros."""
    store = make_checkpoint(tmp_path / "store", {"a": bytes(10 << 20)})
    there = os.statvfs(yard)
    little = os.statvfs_result((*there[:3], (9 << 20) // there.f_frsize, *there[4:]))
    monkeypatch.setattr(os, "statvfs", lambda _: little)
    with pytest.raises(StoreError, match="less is free") as refused:
        extract(store, yard / "target")
    assert refused.value.os_errno is not None
    assert not list((yard / "target").iterdir())


@contextmanager
def as_user(uid: int) -> Iterator[None]:
    """This process as *uid*, who is not root."""
    os.seteuid(uid)
    try:
        yield
    finally:
        os.seteuid(0)


def test_who_is_not_root_gets_the_files_as_his_own() -> None:
    with TemporaryDirectory() as scratch:  # where others may look, as below tmp_path they may not
        place = Path(scratch)
        store = forged(place, ({"filename": "a", "uid": 0, "gid": 0, "mode": 0o640}, b""))
        for path in (place, store):
            path.chmod(0o755)
        for shard in store.iterdir():
            shard.chmod(0o644)
        (place / "home").mkdir()
        os.chown(place / "home", 65534, 65534)
        with as_user(65534):
            extract(store, place / "home/out")
        made = (place / "home/out/a").stat()
        assert (made.st_uid, stat.S_IMODE(made.st_mode)) == (65534, 0o640)
