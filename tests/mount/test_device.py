"""The device is read past libfuse, or by it: a mount is the same."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

import pytest
from host import Host, poll

from cedanafs.fs.mount import CONNECTIONS

MIB = 1 << 20
WITHOUT_NET_ADMIN = ("setpriv", "--bounding-set", "-net_admin", "--inh-caps", "-net_admin")


@pytest.mark.parametrize("under", [(), WITHOUT_NET_ADMIN], ids=["past libfuse", "by libfuse"])
def test_what_is_written_is_read(
    host: Host, store: Path, tmp_path: Path, under: tuple[str, ...]
) -> None:
    content = os.urandom(5 * MIB + 12345)
    mountpoint = host.make("mnt")
    options = ["--stream", 3, "--log-file", host.log, "--memory-limit", "64M"]
    assert host.run("mount", store, mountpoint, *options, under=under).code == 0
    try:
        assert ("copies each write" in host.log.read_text()) == bool(under)
        (mountpoint / "x").mkdir()
        image = mountpoint / "x/pages-1.img"
        for step in (1000, 4096, 300_000, 600_000, MIB):
            with image.open("wb", buffering=0) as file:
                for at in range(0, len(content), step):
                    assert file.write(content[at : at + step]) == len(content[at : at + step])
            assert image.read_bytes() == content, step
        with (mountpoint / "x/log").open("ab", buffering=0) as log:
            for n in range(100):
                log.write(b"line %d\n" % n)
            host.stock("sync", mountpoint / "x")  # what the kernel has of the log comes first
            assert (mountpoint / "x/log").read_text().count("\n") == 100
    finally:
        host.ok("umount", mountpoint)
    out = tmp_path / "out"
    host.ok("extract", store / "x", out)
    assert (out / "pages-1.img").read_bytes() == content
    assert (out / "log").read_text().count("\n") == 100


def test_many_list_a_long_directory_at_a_time(host: Host, store: Path) -> None:
    names = {f"an-image-with-a-name-that-is-not-short-{n}.img" for n in range(2000)}
    with host.mounted(store) as mountpoint:
        (mountpoint / "x").mkdir()
        for name in names:
            (mountpoint / "x" / name).touch()
        listed: list[set[str]] = []
        threads = [
            threading.Thread(target=lambda: listed.append(set(os.listdir(mountpoint / "x"))))
            for _ in range(100)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert listed == [names] * len(threads)


def test_a_connection_that_is_aborted_ends_the_server_in_order(host: Host, store: Path) -> None:
    with host.mounted(store) as mountpoint:
        (mountpoint / "x").mkdir()
        (mountpoint / "x/a.img").write_bytes(b"a" * MIB)
        host.stock("sync", mountpoint / "x")
        (mountpoint / "x/b.img").write_bytes(b"b" * MIB)
        minor = os.minor(mountpoint.stat().st_dev)
        (CONNECTIONS / str(minor) / "abort").write_text("1")
        host.wait_for_servers(mountpoint)
        host.stock("umount", mountpoint)  # libfuse leaves what was aborted mounted
    host.ok("extract", store / "x", out := host.make("out") / "x")
    assert (out / "a.img").read_bytes() == b"a" * MIB
    assert (out / "b.img").read_bytes() == b"b" * MIB


def test_who_is_killed_amid_a_write_hurts_nobody(host: Host, store: Path) -> None:
    with host.mounted(store, "--memory-limit", "64M") as mountpoint:
        (mountpoint / "x").mkdir()
        for n in range(5):
            with host.started_program(
                "dd", "if=/dev/zero", f"of={mountpoint}/x/{n}.img", "bs=1M", "count=2000"
            ) as dd:
                poll(lambda n=n: (mountpoint / f"x/{n}.img").exists(), "it writes")
                time.sleep(0.02 * n)
                dd.send_signal(signal.SIGKILL)
                dd.wait()
        (mountpoint / "x/after.img").write_bytes(b"after")
        assert (mountpoint / "x/after.img").read_bytes() == b"after"
    host.ok("verify", store / "x")
