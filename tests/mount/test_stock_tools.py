"""A mount under tools that know nothing of cedanafs: criu, crit, cp, sync, diff."""

import json
import os
import stat
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from host import Host, StartWorkload, poll
from workloads import Workload

from cedanafs.errors import CedanaFsError
from cedanafs.shard.opening import open_checkpoint

CRIT = Path(sys.executable).parent / "crit"


@pytest.fixture
def mnt(host: Host, store: Path) -> Iterator[Path]:
    """The store, mounted with three shards."""
    with host.mounted(store, "--stream", 3) as mountpoint:
        yield mountpoint


@pytest.fixture(params=["x", "."])
def place(request: pytest.FixtureRequest) -> str:
    """Where in the mount the checkpoint is: in a directory, or the root itself."""
    name: str = request.param
    return name


def criu_dump(host: Host, criu_binary: str, work: Workload, images: Path) -> None:
    images.mkdir(exist_ok=True)
    host.stock(criu_binary, "dump", "-v4", "-o", "dump.log", "-D", images, "-t", work.pid)
    work.wait_gone()


def criu_restore(host: Host, criu_binary: str, images: Path) -> None:
    host.stock(criu_binary, "restore", "-v4", "-o", "restore.log", "-d", "-D", images)


def test_criu_dumps_and_restores(
    host: Host, store: Path, start: StartWorkload, criu_binary: str, place: str
) -> None:
    work = start("memory", size_mib=32)
    before = work.ask()
    with host.mounted(store) as mnt:
        criu_dump(host, criu_binary, work, mnt / place)
        criu_restore(host, criu_binary, mnt / place)  # in the mount where it was written
        work.wait_ticking()
        assert work.ask()["digest"] == before["digest"]
        again = work.ask()
        criu_dump(host, criu_binary, work, mnt / place)  # over the first
    host.ok("verify", store / place)
    with host.mounted(store, "--read-only") as mnt:
        # -W: CRIU wants to write its log somewhere
        images, logs = mnt / place, host.make("logs")
        host.stock(criu_binary, "restore", "-d", "-D", images, "-W", logs, "-o", "restore.log")
        work.wait_ticking()
    after = work.ask()
    assert after["digest"] == before["digest"]
    assert after["counter"] > again["counter"]


def test_crit_reads_images(
    host: Host, mnt: Path, start: StartWorkload, criu_binary: str, place: str
) -> None:
    work = start("memory", size_mib=4)
    criu_dump(host, criu_binary, work, mnt / place)
    tree = json.loads(host.stock(CRIT, "show", mnt / place / "pstree.img").stdout)
    assert [entry["pid"] for entry in tree["entries"]] == [work.pid]
    out = host.base / "inventory.json"
    host.stock(CRIT, "decode", "-i", mnt / place / "inventory.img", "-o", out)
    host.stock(CRIT, "encode", "-i", out, "-o", mnt / place / "again.img")
    assert (mnt / place / "again.img").read_bytes() == (mnt / place / "inventory.img").read_bytes()
    assert str(work.pid) in host.stock(CRIT, "x", mnt / place, "ps").stdout


def test_it_commits_by_itself_when_the_dump_is_over(
    host: Host, store: Path, mnt: Path, start: StartWorkload, criu_binary: str, place: str
) -> None:
    work = start("memory", size_mib=16)
    before = work.ask()
    criu_dump(host, criu_binary, work, mnt / place)
    poll(lambda: is_complete(store / place), "a commit")
    # What is committed can be read beside the writer, which goes on.
    with host.mounted(store, "--read-only") as other:
        for name in sorted(os.listdir(mnt / place)):
            assert (other / place / name).read_bytes() == (mnt / place / name).read_bytes()
        criu_restore_elsewhere(host, criu_binary, other / place)
        work.wait_ticking()
        assert work.ask()["digest"] == before["digest"]
    (mnt / place / "more").write_text("still taken")


def test_what_sync_has_answered_survives_the_server(
    host: Host, store: Path, start: StartWorkload, criu_binary: str
) -> None:
    work = start("memory", size_mib=16)
    before = work.ask()
    with host.mounted(store) as mnt:
        criu_dump(host, criu_binary, work, mnt / "x")
        host.stock("sync", mnt / "x")
        (mnt / "x" / "late").write_text("may be lost")
        for server in host.servers(mnt):
            os.kill(server, 9)
        host.ok("umount", mnt)
    assert is_complete(store / "x")
    host.ok("restore", "process", "--path", store / "x")
    work.wait_ticking()
    assert work.ask()["digest"] == before["digest"]


def test_copied_in_and_out_it_is_the_same(
    host: Host, store: Path, start: StartWorkload, criu_binary: str, place: str
) -> None:
    plain = host.make("plain")
    criu_dump(host, criu_binary, start("memory", size_mib=32), plain)
    (plain / "parent").symlink_to("../0")
    (plain / "empty.img").touch()
    with (plain / "sparse.img").open("wb") as sparse:
        sparse.seek(3 << 20)
        sparse.write(b"behind a hole")
        sparse.truncate(5 << 20)
    for i, path in enumerate(sorted(plain.iterdir())):
        if not path.is_symlink():
            path.chmod((0o600, 0o644, 0o640, 0o444)[i % 4])
        past = 1_600_000_000_123_456_789 + i
        os.utime(path, ns=(past, past), follow_symlinks=False)
    with host.mounted(store) as mnt:
        host.stock("cp", "-a", f"{plain}/.", f"{mnt}/{place}")
        assert snapshot(mnt / place) == snapshot(plain)
        host.stock("diff", "-r", "--no-dereference", plain, mnt / place)
    with host.mounted(store) as mnt:
        assert snapshot(mnt / place) == snapshot(plain)
        host.stock("cp", "-a", f"{mnt}/{place}/.", host.base / "out")
    assert snapshot(host.base / "out") == snapshot(plain)
    host.ok("extract", store / place, host.base / "extracted")
    assert snapshot(host.base / "extracted") == snapshot(plain)


def test_many_checkpoints_in_one_mount(host: Host, store: Path, mnt: Path) -> None:
    for name in ("a", "b/c", "b"):
        (mnt / name).mkdir(parents=True, exist_ok=True)
        (mnt / name / "inventory.img").write_text(name)
    host.ok("commit", mnt)
    listed = json.loads(host.ok("list", "--json", store).stdout)
    assert [each["path"] for each in listed] == [str(store / n) for n in ("a", "b", "b/c")]
    assert {each["shards"] for each in listed} == {3}
    assert stat.S_IMODE((store / "b/c").stat().st_mode) == 0o700
    assert {stat.S_IMODE(p.stat().st_mode) for p in store.rglob("img-*")} == {0o600}


def criu_restore_elsewhere(host: Host, criu_binary: str, images: Path) -> None:
    """Restore with logs outside of *images*, which cannot be written."""
    logs = host.make("logs")
    host.stock(criu_binary, "restore", "-d", "-D", images, "-W", logs, "-o", "restore.log")


def is_complete(directory: Path) -> bool:
    """Whether the store has a commit of a whole dump there."""
    try:
        opened = open_checkpoint(directory)
    except CedanaFsError:
        return False
    opened.close()
    return "inventory.img" in opened.contents.images


def snapshot(directory: Path) -> dict[str, tuple[object, ...]]:
    """Names, kinds, modes, owners, times to the nanosecond, and content."""
    found: dict[str, tuple[object, ...]] = {}
    for path in directory.iterdir():
        seen = path.lstat()
        content = os.readlink(path) if path.is_symlink() else path.read_bytes()
        found[path.name] = (seen.st_mode, seen.st_uid, seen.st_gid, seen.st_mtime_ns, content)
    return found
