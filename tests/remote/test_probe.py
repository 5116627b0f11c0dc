"""What is known of a store before anything is written: gone, not there, not to be trusted."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from host import Host, StartWorkload, is_mounted, poll
from s3 import Bucket, Server, rclone_mount, s3fs_mount
from writing import make_checkpoint

from cedanafs.shard import filesystems

MODES = ("off", "minimal", "writes", "full")
IMAGES = {"inventory.img": b"inventory", "pages-1.img": os.urandom(3 << 20)}


@pytest.fixture
def bucket(s3_servers: dict[str, Server]) -> Bucket:
    """On moto, in which s3fs can make directories."""
    return s3_servers["moto"].make_bucket()


def findings(host: Host, code: int, store: Path) -> dict[str, dict[str, str]]:
    done = host.run("check", "--json", store)
    assert done.code == code, done
    return {each["name"]: each for each in json.loads(done.stdout)}


def test_check_of_an_s3fs_mount(host: Host, bucket: Bucket) -> None:
    with (
        host.small_disk("scratch", 64) as scratch,
        s3fs_mount(host, bucket, f"tmpdir={scratch}") as store,
    ):
        found = findings(host, 0, store)
        assert "fuse.s3fs" in found["store"]["message"]
        assert found["store access"]["state"] == "ok"
        assert found["s3fs space"]["state"] == "warning"
        assert str(scratch) in found["s3fs space"]["message"]
        assert os.listdir(store) == []


def test_s3fs_whose_process_died(host: Host, bucket: Bucket) -> None:
    with s3fs_mount(host, bucket) as store:
        make_checkpoint(store / "x", IMAGES)
        (served,) = host.running("s3fs")
        os.kill(served, signal.SIGKILL)
        poll(lambda: not host.running("s3fs"), "its end")
        line = host.refused(4, "mount", store, host.make("mnt"), match="does not answer")
        assert f"umount -l {store}" in line
        assert findings(host, 4, store)["store"]["state"] == "error"
        for command in (("list", store), ("verify", store / "x"), ("inspect", store / "x")):
            host.refused(4, *command, match="not connected")
        host.refused(4, "restore", "process", "--path", store / "x", match="not connected")


def test_s3fs_of_a_bucket_that_is_not_there(
    host: Host, bucket: Bucket, start: StartWorkload
) -> None:
    """It ends with 0, and the directory is what it was: nothing must be written into that."""
    secret = host.base / "secret"
    secret.write_text(f"{bucket.access_key}:{bucket.secret_key}\n")
    secret.chmod(0o600)
    mountpoint = host.make("bucket")
    options = f"passwd_file={secret},use_path_request_style,url={bucket.endpoint}"
    host.stock("s3fs", "no-such-bucket", mountpoint, "-o", options)
    poll(lambda: not host.running("s3fs"), "its end")
    assert not is_mounted(mountpoint)
    fstab = host.base / "fstab"
    fstab.write_text(f"# comment\nno-such-bucket {mountpoint} fuse.s3fs _netdev,{options} 0 0\n")
    (mountpoint / "below").mkdir()
    work = start("memory", size_mib=1)
    for command in (
        f"mount {mountpoint} {host.make('mnt')}",
        f"dump process {work.pid} --dir {mountpoint / 'below'}",
        f"dump process {work.pid} --dir {mountpoint}",
        f"check {mountpoint}",
    ):
        with_it = f"mount --bind {fstab} /etc/fstab; exec python -m cedanafs {command}"
        done = host.shell("unshare", "--mount", "sh", "-c", with_it)
        assert done.code == 4, done
        assert "is not mounted" in done.stdout + done.stderr
    assert os.listdir(mountpoint) == ["below"]
    assert os.listdir(mountpoint / "below") == []
    work.wait_ticking()


@pytest.mark.parametrize("mode", MODES)
def test_rclone_mounts_are_for_reading(host: Host, bucket: Bucket, mode: str) -> None:
    with s3fs_mount(host, bucket) as store:
        make_checkpoint(store / "x", IMAGES)
    with rclone_mount(host, bucket, mode) as store:
        host.refused(4, "mount", store, host.make("mnt"), match="rclone answers fsync before")
        host.ok("verify", store / "x")
        with host.mounted(store, "--read-only") as mnt:
            read = {path.name: path.read_bytes() for path in (mnt / "x").iterdir()}
        assert read == IMAGES
        assert findings(host, 4, store)["store"]["state"] == "error"


@pytest.mark.parametrize("mode", MODES)
def test_why_rclone_mounts_are_refused(host: Host, bucket: Bucket, mode: str) -> None:
    """Should rclone ever learn to upload at fsync, this fails, and they need not be refused."""
    with rclone_mount(host, bucket, mode, "--vfs-write-back", "1h") as store:
        fd = os.open(store / "file", os.O_RDWR | os.O_CREAT | os.O_EXCL)
        try:
            os.write(fd, b"data")
            os.fsync(fd)
            assert bucket.sizes() == {}
        finally:
            os.close(fd)
    if mode != "off":  # closed, and unmounted: it was never sent
        assert bucket.sizes() == {}


def test_where_s3fs_keeps_what_it_has_not_uploaded(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    found = filesystems.Filesystem(filesystems.S3FS, tmp_path)
    running: list[list[str]] = []

    def commands() -> Iterator[list[str]]:
        yield ["bash", "-c", f"s3fs {tmp_path}"]
        yield ["/usr/bin/s3fs", "other", "/elsewhere", "-o", "tmpdir=/wrong"]
        yield from running

    monkeypatch.setattr(filesystems, "_commands", commands)
    scratch_of = filesystems.scratch_of.__wrapped__
    for options, scratch in (
        (["-o", "rw,tmpdir=/a,url=http://x"], "/a"),
        (["-otmpdir=/a", "-o", "use_cache=/b"], "/b"),
        (["-o", "tmpdir=/a", "-o", "tmpdir=/c"], "/c"),
        ([], "/tmp"),
    ):
        running[:] = [["s3fs", "bucket", str(tmp_path), *options]]
        assert scratch_of(found) == Path(scratch)
        running[:] = [["s3fs", *options, "bucket", str(tmp_path)]]
        assert scratch_of(found) == Path(scratch)
    assert scratch_of(filesystems.Filesystem("ext4", tmp_path)) is None


def test_what_a_path_is_on(host: Host) -> None:
    assert filesystems.filesystem_of(host.base / "not/there").mountpoint in host.base.parents
    with host.small_disk("a b", 1) as disk:
        assert filesystems.filesystem_of(disk / "x") == filesystems.Filesystem("tmpfs", disk)
        with host.read_only(disk) as again:
            assert filesystems.filesystem_of(again).mountpoint == again
