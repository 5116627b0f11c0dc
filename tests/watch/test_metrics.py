"""Prometheus metrics of a mount, as Prometheus's own parser reads them."""

from __future__ import annotations

import http.client
import json
import os
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
from host import Host
from prometheus_client.parser import text_string_to_metric_families

from cedanafs.errors import UsageError
from cedanafs.watch.server import address_of


class OverUnixSocket(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=60)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(60)
        self.sock.connect(str(self._path))


def scraped(connection: http.client.HTTPConnection, path: str = "/metrics") -> tuple[int, str]:
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    finally:
        connection.close()


def samples(text: str) -> Iterator[tuple[str, float]]:
    for family in text_string_to_metric_families(text):
        assert family.documentation, family
        for sample in family.samples:
            said = ",".join(f"{name}={value}" for name, value in sample.labels.items())
            yield f"{sample.name}{{{said}}}" if said else sample.name, sample.value


def test_on_a_unix_socket(host: Host) -> None:
    store = host.make('a "store"\nwith\\all')
    path = host.base / "metrics.sock"
    with host.mounted(store, "--metrics", f"unix:{path}") as mnt:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        (mnt / "inventory.img").write_bytes(os.urandom(3 << 20))
        with open(mnt / "inventory.img", "rb"):  # so that it does not come to rest
            host.ok("commit", mnt)
            status, text = scraped(OverUnixSocket(path))
        assert status == 200
        found = dict(samples(text))
        assert found["cedanafs_written_bytes_total"] == 3 << 20
        assert found["cedanafs_commits_total"] == 1
        assert found["cedanafs_checkpoints{state=durable}"] == 1
        assert found["cedanafs_requests_total{kind=write}"] >= 3
        assert any(f"store={store}" in name for name in found)
        told = json.loads((mnt / ".cedanafs-stat").read_text())
        assert 3 << 20 < found["cedanafs_stored_bytes_total"] <= told["write"]["stored_bytes"]
        assert scraped(OverUnixSocket(path), "/")[0] == 404
        with socket.socket(socket.AF_UNIX) as silent:  # it holds up nobody, nor the unmount
            silent.connect(str(path))
            assert scraped(OverUnixSocket(path))[0] == 200
            host.ok("umount", mnt)
        assert not path.exists()


def test_on_a_port(host: Host, store: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with host.mounted(store, "--metrics", port):
        assert scraped(http.client.HTTPConnection("127.0.0.1", port, timeout=60))[0] == 200
        other = host.make("other"), host.make("mnt")
        host.refused(
            2, "mount", *other, "--metrics", f"127.0.0.1:{port}", match="somebody listens there"
        )


def test_what_is_there_already(host: Host, store: Path) -> None:
    path = host.base / "there"
    path.write_text("precious")
    mnt = host.make("mnt")
    host.refused(2, "mount", store, mnt, "--metrics", f"unix:{path}", match="is no socket")
    assert path.read_text() == "precious"
    path.unlink()
    with socket.socket(socket.AF_UNIX) as killed:  # of a server that was: nobody answers there
        killed.bind(str(path))
    with host.mounted(store, "--metrics", f"unix:{path}"):
        assert scraped(OverUnixSocket(path))[0] == 200


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("9100", "127.0.0.1:9100"),
        ("localhost:9100", "localhost:9100"),
        ("[::1]:9100", "[::1]:9100"),
        ("unix:/run/x", "unix:/run/x"),
        ("unix:", None),
        ("", None),
        (":9100", None),
        ("::1:9100", None),
        ("localhost", None),
        ("localhost:0", None),
        ("localhost:65536", None),
        ("/run/x", None),
    ],
)
def test_addresses(text: str, meant: str | None) -> None:
    if meant is None:
        with pytest.raises(UsageError, match="write unix:PATH"):
            address_of(text)
    else:
        assert str(address_of(text)) == meant
