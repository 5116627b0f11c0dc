"""Plain images in and out again: nothing is lost, and they restore from either."""

from __future__ import annotations

import os
import random
import stat
from pathlib import Path

import pytest
from host import Host, StartWorkload

MTIME_NS = 1_234_567_890_123_456_789


def snapshot(directory: Path) -> dict[str, tuple[object, ...]]:
    """Everything that is to be kept, by name."""
    found: dict[str, tuple[object, ...]] = {}
    for path in directory.iterdir():
        at = path.lstat()
        what = os.readlink(path) if path.is_symlink() else path.read_bytes()
        mode = 0 if path.is_symlink() else stat.S_IMODE(at.st_mode)
        found[path.name] = what, mode, at.st_uid, at.st_gid, at.st_mtime_ns
    return found


@pytest.fixture
def plain(host: Host) -> Path:
    """A directory as CRIU may leave one: small and large images, holes, a link to the parent's."""
    directory = host.make("plain")
    (directory / "inventory.img").write_bytes(b"inventory")
    (directory / "empty.img").touch()
    (directory / "pages-1.img").write_bytes(random.Random(7).randbytes(24 << 20))
    with (directory / "pages-2.img").open("wb") as pages:
        pages.seek(5 << 20)
        pages.write(b"in the middle")
        pages.truncate(64 << 20)
    (directory / "parent").symlink_to("../1")
    (directory / "stats-dump").write_bytes(b"stats")
    (directory / "stats-dump").chmod(0o600)
    os.chown(directory / "stats-dump", 1000, 1001)
    for path in directory.iterdir():
        os.utime(path, ns=(MTIME_NS, MTIME_NS), follow_symlinks=False)
    return directory


@pytest.mark.parametrize(("codec", "shards"), [("zstd", 4), ("lz4:3", 1), ("none", 2)])
def test_packed_and_extracted_they_are_the_same(
    host: Host, plain: Path, codec: str, shards: int
) -> None:
    """More than may be in memory at once: it waits for room."""
    options = ("-n", shards, "-c", codec, "--memory-limit", "32M")
    (host.make("1") / "inventory.img").touch()  # the parent
    host.ok("pack", plain, host.base / "packed", *options)
    assert len(list((host.base / "packed").iterdir())) == shards
    assert "every byte is right" in host.ok("verify", host.base / "packed").stdout
    host.ok("extract", host.base / "packed", host.base / "out")
    assert snapshot(host.base / "out") == snapshot(plain)
    assert (host.base / "out/pages-2.img").stat().st_blocks * 512 < 16 << 20, "the hole was filled"
    assert sum(f.stat().st_size for f in (host.base / "packed").iterdir()) < 40 << 20


def test_a_plain_dump_is_packed_and_restored(host: Host, store: Path, start: StartWorkload) -> None:
    work = start("memory", size_mib=16)
    before = work.ask()
    path = host.ok("dump", "process", work.pid, "--dir", host.make("plain"), "--stream", 0)
    work.wait_gone()
    host.ok("pack", path.last_line, store / "packed", "--stream", 2)
    host.ok("restore", "process", "--path", store / "packed", "--stream", 2)
    work.wait_ticking()
    assert work.ask()["digest"] == before["digest"]


def test_nothing_is_overwritten_and_nothing_but_images_packed(host: Host, plain: Path) -> None:
    packed = host.base / "packed"
    host.ok("pack", plain, packed)
    before = snapshot(packed)
    host.refused(2, "pack", plain, packed, match="there already")
    assert snapshot(packed) == before
    new = host.base / "new"
    host.refused(2, "pack", packed, new, match=r"a checkpoint already: it holds img-0\.zst")
    host.refused(3, "pack", host.base / "nowhere", new, match="no such directory")
    host.refused(3, "pack", host.make("empty"), new, match=r"no inventory\.img")
    host.refused(2, "pack", plain, host.base / "no/where", match="does not exist: mkdir it")
    host.refused(2, "pack", plain, new, "-c", "rar", match="rar")
    os.mkfifo(plain / "lazy-pages.socket")
    host.refused(2, "pack", plain, new, match=r"lazy-pages\.socket is neither a file nor a link")
    assert not new.exists()


def test_behind_a_servers_back_nothing_is_packed(host: Host, store: Path, plain: Path) -> None:
    with host.mounted(store) as mnt:
        for target in (store / "packed", mnt / "packed"):
            host.refused(2, "pack", plain, target, match="cp -a")
        host.stock("cp", "-a", plain, mnt / "packed")  # what it says to do
    host.ok("extract", store / "packed", host.base / "out")
    assert {k: v[0] for k, v in snapshot(host.base / "out").items()} == {
        k: v[0] for k, v in snapshot(plain).items()
    }


def test_a_store_that_is_full_is_left_as_it_was(host: Host, plain: Path) -> None:
    with host.small_disk("small", 8) as disk:
        host.refused(4, "pack", plain, disk / "packed", match="No space left")
        assert not list(disk.iterdir())
