"""s3fs, while its server fails in every way: a complete checkpoint, or a live process and one line.

s3fs itself tries again for minutes; nobody waits for that, the tasks least of all.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from fault_proxy import HttpFault, Proxy, fault_proxy
from host import Host, StartWorkload, poll
from s3 import Bucket, Server, moto_server, s3fs_mount
from scene import MIB, Scene, complaint, forget_kept_logs

SIZE_MIB = 24
TIMEOUT = ("-c", "none", "--store-timeout", "3")
IMPATIENT = ("retries=1", "connect_timeout=1", "readwrite_timeout=2")
"""How long s3fs itself goes on: what a test has to wait for at its end."""


@pytest.fixture
def proxy(s3_servers: dict[str, Server]) -> Iterator[Proxy]:
    with fault_proxy(s3_servers["moto"].port) as proxy:
        yield proxy


@pytest.fixture
def behind(s3_servers: dict[str, Server], proxy: Proxy) -> Bucket:
    return s3_servers["moto"].make_bucket().through(proxy.endpoint)


@pytest.fixture
def scene(host: Host, start: StartWorkload, behind: Bucket) -> Iterator[Scene]:
    with s3fs_mount(host, behind, *IMPATIENT) as store:
        yield Scene(host, start, store, size_mib=SIZE_MIB)


def assert_nothing_torn_is_taken_for_whole(host: Host, scene: Scene, bucket: Bucket) -> None:
    """As another machine sees it: s3fs itself may have died of the fault."""
    with s3fs_mount(host, bucket) as store:
        if (store / "x").exists():  # nobody could clean up
            host.refused(3, "restore", "process", "--path", store / "x", match="x")
        scene.assert_earlier_whole(store)


FATAL = {
    "refused before": HttpFault("refuse"),
    "500 for the data": HttpFault("status", status=500, method="PUT", where="/x/img-2"),
    "503 for all": HttpFault("status", status=503, method="P(UT|OST)", where="/x/img-"),
    "reset within the data": HttpFault(
        "reset", method="PUT", where="/x/img-1", after_bytes=2 * MIB
    ),
    "stalled within the data": HttpFault(
        "stall", method="PUT", where="/x/img-3", after_bytes=2 * MIB
    ),
}


@pytest.mark.parametrize("fault", FATAL.values(), ids=FATAL.keys())
def test_dump_into_a_bucket_that_fails(
    host: Host, scene: Scene, behind: Bucket, proxy: Proxy, fault: HttpFault
) -> None:
    proxy.fail(fault)
    with host.started(*scene.dump(*TIMEOUT)) as dump:
        try:
            line = complaint(dump)
            scene.assert_unharmed()
        finally:
            proxy.heal()
        dump.communicate(timeout=60)
    assert dump.returncode == 4, line
    assert_nothing_torn_is_taken_for_whole(host, scene, behind)


def test_dump_into_a_bucket_that_is_slow_for_a_moment(
    host: Host, start: StartWorkload, behind: Bucket, proxy: Proxy
) -> None:
    with s3fs_mount(host, behind) as store:
        scene = Scene(host, start, store, size_mib=SIZE_MIB)
        proxy.fail(HttpFault("status", status=503, method="PUT", where="/x/img-", times=2))
        host.ok(*scene.dump("-c", "none"))
        assert proxy.seen().hits == 2
        scene.assert_restores(store / "x")


def test_server_that_is_killed_in_a_dump(host: Host, start: StartWorkload) -> None:
    with moto_server() as server, fault_proxy(server.port) as proxy:
        bucket = server.make_bucket().through(proxy.endpoint)
        with s3fs_mount(host, bucket, *IMPATIENT) as store:
            scene = Scene(host, start, store, size_mib=SIZE_MIB)
            proxy.fail(HttpFault("stall", method="PUT", where="/x/img-0", after_bytes=MIB))
            with host.started(*scene.dump(*TIMEOUT)) as dump:
                poll(lambda: proxy.seen().stalled, "data on its way")
                server.kill()
                proxy.heal()
                line = complaint(dump)
                scene.assert_unharmed()
                dump.communicate(timeout=90)
            assert dump.returncode == 4, line


def test_restore_from_a_bucket_that_stalls(host: Host, scene: Scene, proxy: Proxy) -> None:
    host.ok(*scene.dump(*TIMEOUT))
    scene.process.wait_gone()
    restore = ("restore", "process", "--path", scene.store / "x", "--store-timeout", "3")
    proxy.fail(HttpFault("stall", method="GET", where="/x/img-2"))
    with host.started(*restore) as restoring:
        try:
            line = complaint(restoring)
        finally:
            proxy.heal()
        restoring.communicate(timeout=60)
    assert restoring.returncode == 4, line
    forget_kept_logs(host)
    scene.assert_restores(scene.store / "x")


def test_s3fs_without_room_for_what_it_has_not_uploaded(
    host: Host, start: StartWorkload, behind: Bucket, tmp_path: Path
) -> None:
    with (
        host.small_disk("scratch", 90) as scratch,
        s3fs_mount(host, behind, f"tmpdir={scratch}") as store,
    ):
        scene = Scene(host, start, store, size_mib=60)
        line = host.refused(4, *scene.dump("-c", "none"), match="is full, where s3fs")
        assert str(scratch) in line
        scene.assert_unharmed()
        scene.assert_earlier_whole()
