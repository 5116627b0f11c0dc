"""A mount as a service: what systemd is told, what the journal and log files get, the unit."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from host import Host, is_mounted

UNIT = Path(__file__).parents[2] / "packaging/cedanafs@.service"


@pytest.fixture
def notified(tmp_path: Path) -> Iterator[socket.socket]:
    """The socket on which a service manager hears of its services."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(60)
        yield manager


def serve(
    host: Host, store: Path, mnt: Path, *options: object, **environment: str
) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "cedanafs", "mount", "--foreground", *options, store, mnt]
    return subprocess.Popen(
        [*map(str, command)],
        stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        env=host.environment(**environment),
    )  # fmt: skip


def test_systemd_is_told(host: Host, store: Path, notified: socket.socket) -> None:
    mnt = host.make("mnt")
    server = serve(host, store, mnt, NOTIFY_SOCKET=notified.getsockname())
    ready = notified.recv(4096).decode().splitlines()
    assert ready == ["READY=1", f"STATUS=serving {store} at {mnt}"]
    assert is_mounted(mnt)
    (mnt / "inventory.img").write_bytes(b"inventory")
    server.send_signal(signal.SIGTERM)
    assert notified.recv(4096).decode().splitlines()[0] == "STOPPING=1"
    _, stderr = server.communicate(timeout=60)
    assert server.returncode == 0, stderr
    host.ok("verify", store)


def test_systemd_is_not_told_of_what_failed(
    host: Host, store: Path, notified: socket.socket
) -> None:
    server = serve(host, store, host.base / "none", NOTIFY_SOCKET=notified.getsockname())
    _, stderr = server.communicate(timeout=60)
    assert server.returncode == 2
    assert "does not exist: mkdir it" in stderr
    notified.setblocking(False)
    with pytest.raises(BlockingIOError):
        notified.recv(1)


def test_an_abstract_socket(host: Host, store: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        name = f"cedanafs-test-{os.getpid()}"
        manager.bind(f"\0{name}")
        manager.settimeout(60)
        mnt = host.make("mnt")
        server = serve(host, store, mnt, NOTIFY_SOCKET=f"@{name}")
        assert manager.recv(4096).startswith(b"READY=1\n")
        host.ok("umount", mnt)
        assert manager.recv(4096).startswith(b"STOPPING=1\n")
        _, stderr = server.communicate(timeout=60)
        assert server.returncode == 0, stderr


def test_the_journal_gets_levels(host: Host, store: Path) -> None:
    """Where stderr is what $JOURNAL_STREAM names."""
    mnt = host.make("mnt")
    script = f"""
        export JOURNAL_STREAM=$(stat -L --format %d:%i /dev/stderr)
        exec {sys.executable} -m cedanafs mount --foreground {store} {mnt}
    """
    with host.started_program("sh", "-euc", script) as server:
        while not is_mounted(mnt):
            assert server.poll() is None
        host.ok("umount", mnt)
        _, stderr = server.communicate(timeout=60)
    lines = stderr.splitlines()
    assert "<6>cedanafs: unmounted from outside" in lines
    assert all(re.match(r"<[3-7]>cedanafs: ", line) for line in lines)


@pytest.mark.parametrize("background", [True, False])
def test_logs_in_json(host: Host, store: Path, background: bool) -> None:
    if background:
        with host.mounted(store, "--log-format", "json"):
            pass
        text = host.log.read_text()
    else:
        mnt = host.make("mnt")
        server = serve(host, store, mnt, "--log-format", "json")
        while not is_mounted(mnt):
            assert server.poll() is None
        host.ok("umount", mnt)
        _, text = server.communicate(timeout=60)
    events = [json.loads(line) for line in text.splitlines()]
    (event,) = [each for each in events if each["message"] == "unmounted from outside"]
    assert event["level"] == "info"
    assert event["logger"] == "cedanafs.fs.mount"
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT[\d:]+\.\d{3}\+00:00", event["time"])
    assert isinstance(event["pid"], int)


def test_the_unit(host: Host) -> None:
    """systemd finds nothing wrong with it, once the program is where the package has it."""
    program = Path(sys.executable).parent / "cedanafs"
    unit = host.base / "cedanafs@web.service"
    unit.write_text(UNIT.read_text().replace("/usr/bin/cedanafs", str(program)))
    done = host.shell("systemd-analyze", "verify", "--man=no", unit)
    ours = [line for line in done.stderr.splitlines() if "cedanafs" in line]
    assert done.code == 0, done
    assert not ours
