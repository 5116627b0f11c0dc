"""Object stores that take their time: read once, or from a cache, and written from a spill."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from fault_proxy import HttpFault, Proxy, fault_proxy
from host import Host, StartWorkload, poll
from s3 import Bucket, Server


@pytest.fixture
def proxy(
    moto_bucket: Bucket, s3_servers: dict[str, Server], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Proxy]:
    """Between us and the bucket."""
    with fault_proxy(s3_servers["moto"].port) as between:
        for name, value in moto_bucket.through(between.endpoint).environment.items():
            monkeypatch.setenv(name, value)
        yield between


def test_a_restore_reads_all_once_and_the_next_from_the_cache(
    host: Host, moto_bucket: Bucket, proxy: Proxy, start: StartWorkload
) -> None:
    work = start("memory", size_mib=48)
    digest = work.ask()["digest"]
    url = moto_bucket.url
    host.ok("dump", "process", work.pid, "--dir", url, "--name", "x")
    work.wait_gone()
    stored = sum(moto_bucket.sizes().values())
    proxy.fail(HttpFault("delay", method="GET", delay_s=0.02))
    read = []
    for _ in range(2):
        proxy.forget()
        host.ok("restore", "process", "--path", f"{url}/x", "--cache-dir", host.base / "cache")
        read.append(proxy.seen().received_bytes)
        assert work.ask()["digest"] == digest
        work.kill()
        work.wait_gone()
    first, second = read
    assert stored // 2 < first < stored + (1 << 20), "beside the ends of shards and listings, once"
    assert second < first // 8


def test_the_tasks_go_on_while_the_bucket_takes_nothing(
    host: Host, moto_bucket: Bucket, proxy: Proxy, start: StartWorkload
) -> None:
    work = start("memory", size_mib=96)
    digest = work.ask()["digest"]
    spill = host.make("spill")
    options = ("-c", "none", "--memory-limit", "107M", "--spill", spill, "--leave-running")
    proxy.fail(HttpFault("stall", method="PUT", where="partNumber"))
    url = moto_bucket.url
    with host.started("dump", "process", work.pid, "--dir", url, "--name", "x", *options) as dump:
        poll(host.criu_wrote_all, "CRIU's last image")
        work.wait_ticking()
        assert dump.poll() is None, "it is not durable"
        proxy.heal()
        _, said = dump.communicate(timeout=100)
        assert dump.returncode == 0, said
    work.kill()
    work.wait_gone()
    host.ok("restore", "process", "--path", f"{url}/x")
    work.wait_ticking()
    assert work.ask()["digest"] == digest
