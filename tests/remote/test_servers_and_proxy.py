"""What the remote tests stand on: servers, mounts and the proxy do what their users rely on."""

from __future__ import annotations

import os
import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from botocore.exceptions import BotoCoreError, ClientError
from fault_proxy import HttpFault, Proxy, fault_proxy
from host import Host, is_mounted, poll
from s3 import Bucket, Server, rclone_mount, rclone_server, s3fs_mount

DATA = os.urandom(3 << 20)


def test_bucket_holds_what_is_put(bucket: Bucket) -> None:
    client = bucket.client()
    client.put_object(Bucket=bucket.name, Key="a/b", Body=DATA)
    assert bucket.sizes() == {"a/b": len(DATA)}
    assert client.get_object(Bucket=bucket.name, Key="a/b")["Body"].read() == DATA


def test_s3fs_mount_keeps_files_as_objects(host: Host, bucket: Bucket) -> None:
    with s3fs_mount(host, bucket) as mounted:
        (mounted / "img-0").write_bytes(DATA)
        assert bucket.sizes() == {"img-0": len(DATA)}
    assert not is_mounted(mounted)
    with s3fs_mount(host, bucket) as mounted:
        assert (mounted / "img-0").read_bytes() == DATA


def test_rclone_mount_keeps_files_as_objects(host: Host, bucket: Bucket) -> None:
    with rclone_mount(host, bucket, "writes") as mounted:
        (mounted / "img-0").write_bytes(DATA)
        poll(lambda: bucket.sizes() == {"img-0": len(DATA)}, "the upload, seconds after the close")


def test_server_comes_back_with_what_it_had(tmp_path: Path) -> None:
    with rclone_server(tmp_path) as server:
        bucket = server.make_bucket()
        bucket.client().put_object(Bucket=bucket.name, Key="k", Body=b"v")
        server.kill()
        with pytest.raises(BotoCoreError):
            bucket.sizes()
        server.start()
        assert bucket.sizes() == {"k": 1}


@pytest.fixture
def proxy(s3_servers: dict[str, Server]) -> Iterator[Proxy]:
    with fault_proxy(s3_servers["moto"].port) as proxy:
        yield proxy


@pytest.fixture
def behind(s3_servers: dict[str, Server], proxy: Proxy) -> Bucket:
    """A bucket behind the proxy."""
    return s3_servers["moto"].make_bucket().through(proxy.endpoint)


def put(bucket: Bucket, key: str, data: bytes = b"data") -> int:
    """The status of one unsigned PUT, without retries."""
    address = f"{bucket.endpoint}/{bucket.name}/{key}"
    kind = {"Content-Type": "application/octet-stream"}  # a form would be parsed
    request = urllib.request.Request(address, data, kind, method="PUT")
    try:
        with urllib.request.urlopen(request, timeout=20) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as exc:
        with exc:
            return exc.code


def test_proxy_counts_what_goes_through(behind: Bucket, proxy: Proxy) -> None:
    client = behind.client()
    client.put_object(Bucket=behind.name, Key="k", Body=DATA)
    assert client.get_object(Bucket=behind.name, Key="k")["Body"].read() == DATA
    seen = proxy.seen()
    assert seen.requests == {"PUT": 1, "GET": 1}
    assert seen.sent_bytes == seen.received_bytes == len(DATA)
    proxy.forget()
    assert proxy.seen().requests == {}


def test_proxy_answers_for_the_server(behind: Bucket, proxy: Proxy) -> None:
    proxy.fail(HttpFault("status", status=503, method="PUT", where="/k", after=1, times=1))
    keys = ["k1", "l", "k2", "k3"]
    assert [put(behind, key) for key in keys] == [200, 200, 503, 200]
    assert proxy.seen().hits == 1
    proxy.fail(HttpFault("status", status=503))
    with pytest.raises(ClientError, match="SlowDown"):
        behind.sizes()
    proxy.heal()
    assert set(behind.sizes()) == {"k1", "k3", "l"}


@pytest.mark.parametrize(
    "fault",
    [HttpFault("reset"), HttpFault("reset", after_bytes=1 << 20), HttpFault("refuse")],
    ids=["reset", "reset within", "refuse"],
)
def test_proxy_ends_connections(behind: Bucket, proxy: Proxy, fault: HttpFault) -> None:
    proxy.fail(fault)
    with pytest.raises((ConnectionError, urllib.error.URLError, TimeoutError)):
        put(behind, "k", DATA)
    if fault.kind == "refuse":
        with (
            pytest.raises(ConnectionRefusedError),
            socket.create_connection(("127.0.0.1", proxy.port)),
        ):
            pass
    proxy.heal()
    assert put(behind, "k", DATA) == 200
    assert behind.sizes() == {"k": len(DATA)}


@pytest.mark.parametrize("after_bytes", [0, 1 << 20])
def test_proxy_stalls_until_it_is_healed(behind: Bucket, proxy: Proxy, after_bytes: int) -> None:
    proxy.fail(HttpFault("stall", method="PUT", after_bytes=after_bytes))
    statuses: list[int] = []
    thread = threading.Thread(target=lambda: statuses.append(put(behind, "k", DATA)))
    thread.start()
    poll(lambda: proxy.seen().stalled, "a stalled request")
    assert statuses == []
    assert behind.sizes() == {}  # others go through
    proxy.heal()
    thread.join(20)
    assert statuses == [200]


def test_proxy_is_as_slow_as_it_is_told(behind: Bucket, proxy: Proxy) -> None:
    proxy.bytes_per_s = 10 << 20
    begun = time.monotonic()
    assert put(behind, "k", DATA) == 200
    assert time.monotonic() - begun >= len(DATA) / proxy.bytes_per_s
