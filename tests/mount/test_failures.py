"""What goes wrong is one clear line and the right exit code, and leaves nothing behind.

Exit codes: 2 usage, 3 checkpoint, 4 store, 5 CRIU, 6 machine.
"""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from host import Host, StartWorkload, is_mounted, poll
from workloads import Workload
from writing import make_checkpoint

from cedanafs.shard.opening import open_checkpoint

FILES = {
    "core-1.img": b"core" * 100,
    "pages-1.img": random.Random(1).randbytes(6 << 20),
    "inventory.img": b"inventory",
}


# Damaged checkpoints.


@pytest.fixture
def checkpoint(store: Path) -> Path:
    """A checkpoint of four shards that nobody dumped."""
    return make_checkpoint(store / "x", FILES, shards=4)


def shard(checkpoint: Path, k: int) -> Path:
    return checkpoint / f"img-{k}.zst"


def remove(k: int) -> Callable[[Path], None]:
    return lambda checkpoint: shard(checkpoint, k).unlink()


def replace(k: int, content: bytes) -> Callable[[Path], None]:
    return lambda checkpoint: bytes_written(shard(checkpoint, k), content)


def bytes_written(path: Path, content: bytes) -> None:
    path.write_bytes(content)


def swap(checkpoint: Path) -> None:
    one, other = shard(checkpoint, 1), shard(checkpoint, 2)
    one.rename(checkpoint / "aside")
    other.rename(one)
    (checkpoint / "aside").rename(other)


def from_another(checkpoint: Path) -> None:
    other = make_checkpoint(checkpoint.parent / "other", FILES, shards=4)
    shutil.copy(shard(other, 1), shard(checkpoint, 1))


def cut(checkpoint: Path) -> None:
    opened = open_checkpoint(checkpoint)
    opened.close()
    os.truncate(shard(checkpoint, 2), opened.ends[2] - 10)


def one_too_many(checkpoint: Path) -> None:
    shutil.copy(shard(checkpoint, 3), shard(checkpoint, 4))


def two_codecs(checkpoint: Path) -> None:
    (checkpoint / "img-1.lz4").touch()


@pytest.mark.parametrize(
    ("damage", "match"),
    [
        (remove(0), r"img-0\.zst missing"),
        (remove(2), r"img-2\.zst missing"),
        (remove(3), r"img-3\.zst missing: .*4 shards"),
        (replace(1, b""), r"img-1\.zst is empty"),
        (replace(1, random.Random(2).randbytes(2 << 20)), r"img-1\.zst is not a shard"),
        (replace(0, b"some text\n" * 1000), r"img-0\.zst is not a shard"),
        (replace(3, bytes(1 << 20)), r"img-3\.zst is not a shard"),
        (swap, r"img-1\.zst is shard 2 .*swapped"),
        (from_another, r"img-1\.zst belongs to another checkpoint"),
        (cut, r"img-2\.zst.* (cut short|does not end in the file)"),
        (one_too_many, r"img-4\.zst is one too many|img-4\.zst is shard 3"),
        (two_codecs, r"img-1\.lz4"),
    ],
    ids=[
        "first missing", "one missing", "last missing", "empty", "random", "text", "zeros",
        "swapped", "of another", "cut short", "one too many", "of another codec",
    ],
)  # fmt: skip
def test_damaged_shard_is_named(
    host: Host, store: Path, checkpoint: Path, damage: Callable[[Path], None], match: str
) -> None:
    damage(checkpoint)
    host.refused(3, "verify", checkpoint, match=match)
    host.refused(3, "inspect", checkpoint, match=match)
    host.refused(3, "restore", "process", "--path", checkpoint, match=match)
    listed = host.run("list", store)
    assert listed.code == 0
    assert "damaged" in listed.stdout


def test_empty_shard_of_a_checkpoint_with_a_single_commit(host: Host, store: Path) -> None:
    checkpoint = make_checkpoint(store / "x", FILES, shards=4, seal=False)
    shard(checkpoint, 1).write_bytes(b"")
    others = [shard(checkpoint, k).read_bytes() for k in (0, 2, 3)]
    host.refused(3, "verify", checkpoint, match=r"img-1\.zst is empty")
    # Whoever writes there now must not take it for a dump that never was committed.
    with host.mounted(store) as mnt, pytest.raises(OSError, match="Input/output error"):
        (mnt / "x/more").write_text("more")
    assert [shard(checkpoint, k).read_bytes() for k in (0, 2, 3)] == others


def test_flipped_bit(host: Host, store: Path, start: StartWorkload) -> None:
    work = start("memory", size_mib=16)
    path = host.ok("dump", "process", work.pid, "--dir", store, "--name", "x").last_line
    work.wait_gone()
    opened = open_checkpoint(Path(path))
    opened.close()
    for name in ("pages-1.img", f"core-{work.pid}.img"):
        image = opened.contents.images[name]
        (frame,) = {piece.frame for piece in image.extents.slices(image.size // 2, 1)}
        assert frame is not None
        file = opened.files[frame.shard].path
        flip(file, frame.offset + frame.stored_len // 2)
        where = rf"{file.name} at offset {frame.offset}: .*damaged"
        host.refused(3, "verify", path, match=where)
        host.refused(3, "restore", "process", "--path", path, match=where, timeout_s=60)
        host.refused(3, "extract", path, host.base / f"out{frame.offset}", match=where)
        assert not work.alive()
        with host.mounted(store) as mnt:
            assert host.shell("cp", "-r", mnt / "x", host.base / f"copy{frame.offset}").code == 1
        flip(file, frame.offset + frame.stored_len // 2)
    flip(opened.files[0].path, opened.commit_ends[0] - 150)  # in the index
    host.refused(3, "verify", path, match=r"img-0\.zst at offset")
    host.refused(3, "restore", "process", "--path", path, match=r"img-0\.zst at offset")
    flip(opened.files[0].path, opened.commit_ends[0] - 150)
    host.ok("verify", path)
    host.ok("restore", "process", "--path", path)
    work.wait_ticking()


def flip(path: Path, offset: int) -> None:
    content = bytearray(path.read_bytes())
    content[offset] ^= 0x10
    path.write_bytes(content)


def test_other_number_of_shards_than_asked_for(host: Host, checkpoint: Path) -> None:
    host.refused(2, "restore", "process", "--path", checkpoint, "--stream", 3, match="has 4 shards")


def test_nothing_whole_to_restore(host: Host, store: Path) -> None:
    unfinished = make_checkpoint(store / "x", {"core-1.img": b"core"}, shards=2)
    host.refused(3, "restore", "process", "--path", unfinished, match=r"no inventory\.img")
    assert "incomplete" in host.ok("inspect", unfinished).stdout
    (store / "plain").mkdir()
    (store / "plain" / "core-1.img").write_bytes(b"core")
    host.refused(3, "restore", "process", "--path", store / "plain", match="no checkpoint here")
    host.refused(3, "restore", "process", "--path", store / "none", match="no such directory")
    for command in ("inspect", "verify"):
        host.refused(3, command, store / "none", match="no such directory")
        host.refused(3, command, store / "plain", match="no checkpoint here")
    host.refused(4, "list", store / "none", match="not a directory")


# Mounting and unmounting.


def test_second_mount_for_writing(host: Host, store: Path) -> None:
    with host.mounted(store) as mnt:
        again = host.make("again")
        host.refused(4, "mount", store, again, match="has this store mounted for writing")
        host.refused(4, "mount", "-f", store, again, match="has this store mounted for writing")
        assert not is_mounted(again)
        with host.mounted(store, "--read-only"):
            pass
        (mnt / "a").write_text("the first goes on")
    host.ok("verify", store)


def test_mount_points_that_cannot_be(host: Host, store: Path) -> None:
    file = host.base / "file"
    file.touch()
    full = host.make("full")
    (full / "something").touch()
    host.refused(2, "mount", store, file, match="is not a directory")
    host.refused(2, "mount", store, file / "below", match="is not a directory|does not exist")
    host.refused(2, "mount", store, host.base / "none", match="does not exist")
    host.refused(2, "mount", store, full, match="is not empty")
    with host.mounted(store) as mnt:
        host.refused(2, "mount", host.make("other"), mnt, match="mount point already")


def test_stale_mount_is_mended(host: Host, store: Path) -> None:
    with host.mounted(store) as mnt:
        (mnt / "a").write_text("committed")
        host.ok("commit", mnt)
        (server,) = host.servers(mnt)
        os.kill(server, signal.SIGKILL)
        poll(lambda: not host.servers(mnt), "the server's end")
        host.refused(2, "mount", store, mnt, match=f"stale.* cedanafs umount {mnt}")
        host.refused(4, "commit", mnt, match="not connected")
        host.ok("umount", mnt)
        assert not is_mounted(mnt)
    with host.mounted(store, at=mnt):
        assert (mnt / "a").read_text() == "committed"


def test_stores_that_cannot_be(host: Host, store: Path, start: StartWorkload) -> None:
    mnt = host.make("mnt")
    file = host.base / "file"
    file.touch()
    for missing in (host.base / "none", file):
        host.refused(4, "mount", missing, mnt, match="is not a directory")
    work = start("threads")
    host.refused(
        2, "dump", "process", work.pid, "--dir", host.base / "none", match="is not a directory"
    )
    make_checkpoint(store / "x", FILES)
    with host.read_only(store) as read_only:
        host.refused(4, "mount", read_only, mnt, match="no permission to write; --read-only")
        host.refused(
            4, "dump", "process", work.pid, "--dir", read_only, match="Read-only file system"
        )
        host.refused(
            4, "dump", "process", work.pid, "--dir", read_only, "--stream", 0,
            match="Read-only file system",
        )  # fmt: skip
        with host.mounted(read_only, "--read-only") as mounted:
            assert (mounted / "x/core-1.img").read_bytes() == FILES["core-1.img"]
    work.wait_ticking()


def test_unmounting_what_is_busy_or_no_mount(host: Host, store: Path) -> None:
    with host.mounted(store) as mnt:
        with (mnt / "a").open("w") as file:
            file.write("a")
            host.refused(2, "umount", mnt, match="busy: close what is open")
            assert is_mounted(mnt)
        assert (mnt / "a").read_text() == "a"
        with subprocess.Popen(["sleep", "99"], cwd=mnt) as inside:
            host.refused(2, "umount", mnt, match="busy")
            inside.kill()
        host.ok("umount", mnt)
        host.refused(2, "umount", mnt, match="no mount of cedanafs")
    host.refused(2, "umount", "/", match="no mount of cedanafs")
    host.refused(2, "umount", host.base / "none", match="no mount of cedanafs")
    host.refused(2, "commit", store, match="not in a mount of cedanafs")


def test_unmounting_what_another_namespace_still_has(host: Host, store: Path) -> None:
    with host.mounted(store) as mnt:
        (mnt / "a.img").write_bytes(b"written")
        with subprocess.Popen(["unshare", "-m", "sleep", "60"]) as other:
            try:
                ours = os.readlink("/proc/self/ns/mnt")
                poll(lambda: os.readlink(f"/proc/{other.pid}/ns/mnt") != ours, "a namespace")
                host.refused(4, "umount", mnt, match=f"durable, but process {other.pid} ")
                host.ok("verify", store)
            finally:
                other.kill()
        poll(lambda: not host.servers(mnt), "the server's end")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_server_that_is_told_to_stop_commits_and_unmounts(
    host: Host, store: Path, number: signal.Signals
) -> None:
    with host.mounted(store) as mnt:
        (mnt / "x").mkdir()
        (mnt / "x/pages-1.img").write_bytes(FILES["pages-1.img"])
        (server,) = host.servers(mnt)
        os.kill(server, number)
        poll(lambda: not host.servers(mnt), "the server's end")
        assert not is_mounted(mnt)
    opened = open_checkpoint(store / "x")
    opened.close()
    assert opened.sealed
    assert opened.contents.images["pages-1.img"].size == len(FILES["pages-1.img"])


def test_server_in_the_foreground(host: Host, store: Path) -> None:
    mnt = host.make("mnt")
    with host.started("mount", "--foreground", store, mnt) as server:
        poll(lambda: is_mounted(mnt) or server.poll() is not None, "the mount")
        (mnt / "a").write_text("a")
        server.send_signal(signal.SIGINT)
        out, err = server.communicate(timeout=30)
        assert (server.returncode, out, err) == (0, "", "")
    assert not is_mounted(mnt)
    host.ok("verify", store)


def test_unmounted_from_outside(host: Host, store: Path) -> None:
    with host.mounted(store) as mnt:
        (mnt / "a").write_text("a")
        host.stock("umount", mnt)
        poll(lambda: not host.servers(mnt), "the server's end")
    host.ok("verify", store)
    with host.mounted(store) as mnt:
        assert (mnt / "a").read_text() == "a"


# Processes that cannot be dumped or restored.


def test_processes_that_cannot_be_dumped(host: Host, store: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as gone:
        gone.wait()
        for pid, match in (
            (gone.pid, f"no process with PID {gone.pid}"),
            (2**31, "no process"),
            (os.getpid(), "its tree contains the server itself"),
            (1, "its tree contains the server itself"),
            (0, "no process|positive"),
            (-5, "no process|[Nn]o such option"),
        ):
            host.refused(2, "dump", "process", pid, "--dir", store, match=match)
    with subprocess.Popen(["sleep", "0"]) as zombie:
        os.waitid(os.P_PID, zombie.pid, os.WEXITED | os.WNOWAIT)
        host.refused(2, "dump", "process", zombie.pid, "--dir", store, match="zombie")
    assert list(store.iterdir()) == []


def test_the_server_of_the_mount_is_not_dumped_into_it(host: Host, store: Path) -> None:
    with host.mounted(store) as mnt:
        (server,) = host.servers(mnt)
        for directory in (mnt, store):
            host.refused(
                2, "dump", "process", server, "--dir", directory, match="the mount's own server"
            )
        (mnt / "a").write_text("it serves on")


def test_restore_where_the_pid_is_taken(host: Host, store: Path, start: StartWorkload) -> None:
    work = start("threads")
    path = host.ok("dump", "process", work.pid, "--dir", store, "--leave-running").last_line
    line = host.refused(5, "restore", "process", "--path", path, match="Error .*log: ")
    remove_kept_log(line)
    work.wait_ticking()


def remove_kept_log(line: str) -> None:
    """CRIU's log is kept for its reader, who has read it."""
    log = Path(line.rpartition("log: ")[2])
    assert "Error" in log.read_text()
    shutil.rmtree(log.parent)


# Who may.


@pytest.mark.parametrize(
    "arguments",
    [
        ("mount", "STORE", "MOUNTPOINT"),
        ("dump", "process", str(os.getpid()), "--dir", "STORE"),
        ("restore", "process", "--path", "STORE"),
    ],
    ids=["mount", "dump", "restore"],
)
def test_not_root(host: Host, arguments: tuple[str, ...]) -> None:
    nobody = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
    host.refused(
        6, *arguments, under=nobody, env={"XDG_CONFIG_HOME": "/none", "TMPDIR": "/tmp"},
        match="not root", cwd=Path("/"),
    )  # fmt: skip


@pytest.mark.parametrize("binary", ["/no/such/criu", "false"])
def test_criu_that_does_not_work(
    host: Host, store: Path, start: StartWorkload, binary: str
) -> None:
    work = start("threads")
    code = 6 if "/" in binary else 5
    dump = ("dump", "process", work.pid, "--dir", store, "--criu-binary", binary)
    line = host.refused(code, *dump, match="criu")
    if code == 5:
        shutil.rmtree(Path(line.rpartition("log: ")[2]).parent)
    work.wait_ticking()
    assert list(store.iterdir()) == []


# Usage.


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (["-c", "brotli"], "brotli.*none.*lz4.*zstd"),
        (["-c", "zstd:99"], "99"),
        (["-c", "zstd:fast"], "fast"),
        (["-c", "none:3"], "none"),
        (["-c", ""], "compression|codec"),
        (["--stream", "-1"], "stream"),
        (["--stream", "many"], "stream"),
        (["--stream", "1000"], "1000|shards"),
        (["--memory-limit", "much"], "'much' is not a size"),
        (["--memory-limit", "1M"], "memory"),
        (["--criu-opts", "{"], "--criu-opts is not JSON"),
        (["--criu-opts", "[]"], "not a JSON object"),
        (["--criu-opts", '{"tcp-clsoe": true}'], "did you mean 'tcp_close'"),
        (["--criu-opts", '{"images_dir": "/"}'], "set by cedanafs itself"),
        (["--criu-opts", '{"tcp_close": "perhaps"}'], "cannot be 'perhaps'"),
        (["--name", "../x"], "one path component"),
        (["--name", ""], "one path component"),
        (["--no-such-option"], "--no-such-option"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_usage_of_dump(
    host: Host, store: Path, start: StartWorkload, arguments: list[str], match: str
) -> None:
    work = start("threads")
    host.refused(2, "dump", "process", work.pid, "--dir", store, *arguments, match=match)
    work.wait_ticking()
    assert list(store.iterdir()) == []


def test_wrong_usage(host: Host, store: Path, checkpoint: Path) -> None:
    host.refused(2, "dump", "process", match="PID")
    host.refused(2, "dump", "process", "self", match="self")
    host.refused(2, "freeze", match="freeze")
    host.refused(2, "restore", "process", match="--path")
    host.refused(2, "mount", store, match="MOUNTPOINT")
    host.refused(2, "mount", store, host.make("mnt"), "-n", 0, match="shard|stream")
    host.refused(2, "extract", checkpoint, store, match="is not empty")
    host.refused(2, "extract", checkpoint, checkpoint / "img-0.zst", match="extract into")


# Stores that run full, dumps that are called off.


def assert_untouched(work: Workload, shape: dict[str, object]) -> None:
    """*work* runs on, exactly as before."""
    work.wait_ticking()
    assert {**work.fingerprint(), "State": None} == {**shape, "State": None}


@pytest.mark.parametrize("stream", [4, 0])
def test_full_disk(host: Host, start: StartWorkload, stream: int) -> None:
    work = start("memory", size_mib=64)
    shape, before = work.fingerprint(), work.ask()
    with host.small_disk("disk", 16) as store:
        for leave in ("--kill", "--leave-running"):
            host.refused(
                4 if stream else 5, "dump", "process", work.pid, "--dir", store,
                "--stream", stream, leave, match="No space left",
            )  # fmt: skip
            assert_untouched(work, shape)
            assert list(store.iterdir()) == []
    if not stream:
        for kept in host.temporary.iterdir():
            shutil.rmtree(kept)
    assert work.ask()["digest"] == before["digest"]


def test_full_disk_under_a_second_dump(host: Host, start: StartWorkload) -> None:
    small, large = start("memory", size_mib=4), start("memory", size_mib=64)
    told = small.ask()
    with host.small_disk("disk", 16) as store:
        into = ("--dir", store, "--name", "x")
        host.ok("dump", "process", small.pid, *into)
        small.wait_gone()
        room = os.statvfs(store).f_bavail
        host.refused(4, "dump", "process", large.pid, *into, match="No space left")
        large.wait_ticking()
        assert os.statvfs(store).f_bavail >= room - 4
        host.ok("verify", store / "x")
        host.ok("restore", "process", "--path", store / "x")
        small.wait_ticking()
        assert small.ask()["digest"] == told["digest"]


def test_full_disk_under_a_mount(host: Host, start: StartWorkload) -> None:
    work = start("memory", size_mib=64)
    with host.small_disk("disk", 16) as store, host.mounted(store) as mnt:
        host.refused(4, "dump", "process", work.pid, "--dir", mnt, match="No space left")
        work.wait_ticking()
        assert os.listdir(mnt) == []
        assert os.listdir(store) == []
        (mnt / "x").mkdir()
        copy = host.shell("dd", "if=/dev/urandom", f"of={mnt}/x/a", "bs=1M", "count=64")
        assert copy.code == 1
        assert "No space left" in copy.stderr
        assert host.shell("sync", mnt / "x").code == 1  # what was acknowledged is not durable
        host.refused(4, "umount", mnt, match="stays mounted, as something is not durable")
        shutil.rmtree(mnt / "x")
        # What failed is gone, so all goes on.
        small = start("memory", size_mib=4)
        path = host.ok("dump", "process", small.pid, "--dir", mnt).last_line
        small.wait_gone()
        host.ok("restore", "process", "--path", path)
        small.wait_ticking()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("written_mib", [0, 60])
def test_dump_is_called_off(
    host: Host, store: Path, start: StartWorkload, number: signal.Signals, written_mib: int
) -> None:
    work = start("memory", size_mib=300)
    shape = work.fingerprint()
    with host.started(
        "dump", "process", work.pid, "--dir", store, "--name", "x", "-c", "none"
    ) as dump:
        poll(lambda: stored_bytes(store) > written_mib << 20, "written bytes")
        dump.send_signal(number)
        out, err = dump.communicate(timeout=60)
    assert dump.returncode == 130, err
    assert out == ""
    lines = err.splitlines()
    assert lines[-1] == "cedanafs: interrupted"
    assert len(lines) <= 2, err
    assert_untouched(work, shape)
    assert list(store.iterdir()) == []


def test_dump_that_is_killed(host: Host, store: Path, start: StartWorkload) -> None:
    """Nobody can clean up; but the process lives, and the next dump is as good as ever."""
    work = start("memory", size_mib=300)
    before = work.ask()
    with host.started(
        "dump", "process", work.pid, "--dir", store, "--name", "x", "-c", "none"
    ) as dump:
        poll(lambda: stored_bytes(store) > 60 << 20, "written bytes")
        dump.kill()
        dump.communicate(timeout=60)
    work.wait_ticking()
    assert work.ask()["digest"] == before["digest"]
    host.refused(3, "restore", "process", "--path", store / "x", match="no commit ever completed")
    (stale,) = host.own_mounts()
    host.ok("umount", stale)
    stale.rmdir()
    for kept in host.temporary.iterdir():
        shutil.rmtree(kept)
    path = host.ok("dump", "process", work.pid, "--dir", store, "--name", "x").last_line
    work.wait_gone()
    host.ok("verify", path)
    host.ok("restore", "process", "--path", path)
    work.wait_ticking()
    assert work.ask()["digest"] == before["digest"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_restore_is_called_off(
    host: Host, store: Path, start: StartWorkload, number: signal.Signals
) -> None:
    work = start("memory", size_mib=200)
    host.ok("dump", "process", work.pid, "--dir", store, "--name", "x", "-c", "none")
    work.wait_gone()
    with host.started("restore", "process", "--path", store / "x") as restore:
        poll(lambda: Path(f"/proc/{work.pid}").exists(), "the process")
        restore.send_signal(number)
        out, err = restore.communicate(timeout=60)
    assert restore.returncode == 130, err
    assert "Traceback" not in err
    assert out == ""
    time.sleep(0.1)
    assert not work.alive()
    work.wait_gone()
    host.ok("restore", "process", "--path", store / "x")
    work.wait_ticking()


def stored_bytes(store: Path) -> int:
    return sum(path.stat().st_size for path in store.glob("x/img-*"))
