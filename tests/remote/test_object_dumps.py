"""Processes dumped into an object store and restored from it; stores that fail meanwhile."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
from fault_proxy import HttpFault, fault_proxy
from host import Host, StartWorkload, poll
from s3 import Bucket, Server, free_port, moto_server
from workloads import Workload
from writing import read_checkpoint

from cedanafs.errors import CheckpointMissing
from cedanafs.shard.audit import verify
from cedanafs.shard.place import ObjectPath


@pytest.fixture
def url(objects: ObjectPath) -> str:
    """A store in a bucket, with the environment in which it is found."""
    return str(objects.parent)


def dump(work: Workload, url: str, *options: object) -> tuple[object, ...]:
    return ("dump", "process", work.pid, "--dir", url, "--name", "x", *options)


@pytest.mark.parametrize("mode", ["--kill", "--leave-running"])
def test_dump_and_restore(
    host: Host, url: str, moto_bucket: Bucket, start: StartWorkload, mode: str
) -> None:
    work = start("memory", size_mib=60)
    before = work.ask()
    assert host.ok(*dump(work, url, mode)).last_line == f"{url}/x"
    if mode == "--kill":
        work.wait_gone()
    else:
        work.wait_ticking()
        work.kill()
    assert moto_bucket.unfinished_uploads() == []
    assert " complete " in host.ok("list", url).stdout
    host.ok("verify", f"{url}/x")
    host.ok("restore", "process", "--path", f"{url}/x", "--stream", 4)
    work.wait_ticking()
    assert work.ask()["digest"] == before["digest"]
    host.ok("rm", f"{url}/x")
    assert moto_bucket.sizes() == {}


def test_a_mounted_bucket(host: Host, url: str, moto_bucket: Bucket, start: StartWorkload) -> None:
    work = start("memory", size_mib=20)
    with host.mounted(url) as mnt:  # type: ignore[arg-type]
        (mnt / "notes").mkdir()
        data = random.Random(1).randbytes(7 << 20)
        (mnt / "notes" / "a.img").write_bytes(data)
        assert (mnt / "notes" / "a.img").read_bytes() == data  # commits what is not there yet
        host.ok("commit", mnt / "notes")
        host.ok(*dump(work, str(mnt)))
        work.wait_gone()
        host.refused(4, "mount", url, host.make("other"), match="has this store mounted")
        (mnt / "empty").mkdir()
        (mnt / "empty").rmdir()
        (mnt / "gone").mkdir()
        (mnt / "gone" / "a.img").write_bytes(b"a")
        host.ok("rm", mnt / "gone")
        host.stock("mv", mnt / "notes", mnt / "renamed")
        host.ok("restore", "process", "--path", mnt / "x")
        work.wait_ticking()
    assert {key.split("/")[1] for key in moto_bucket.sizes()} == {"renamed", "x"}
    assert read_checkpoint(ObjectPath("s3", moto_bucket.name, "store/renamed")) == {"a.img": data}


def test_extract_pack_inspect_repair(host: Host, url: str, tmp_path: Path) -> None:
    plain = host.make("plain")
    (plain / "inventory.img").write_bytes(b"inventory")
    (plain / "pages-1.img").write_bytes(random.Random(2).randbytes(9 << 20))
    host.ok("pack", plain, f"{url}/x")
    host.refused(2, "pack", plain, f"{url}/x", match="is there already")
    assert "pages-1.img" in host.ok("inspect", f"{url}/x", "--images").stdout
    assert "nothing to repair" in host.ok("repair", f"{url}/x").stdout
    host.ok("extract", f"{url}/x", tmp_path / "out")
    host.stock("diff", "-r", plain, tmp_path / "out")
    host.refused(2, "prune", plain, match="--keep-last")
    assert "0 leftovers removed" in host.run("prune", url, "--yes").stderr
    host.refused(2, "dump", "process", 1, "--dir", url, "--base", "x", match="no --base")
    assert "store access: written, read in part and removed" in host.run("check", url).stdout
    host.refused(2, "mount", "ftp://x/y", host.make("m"), match="is no store that is known")


def test_a_dump_that_fails_leaves_nothing(
    host: Host,
    url: str,
    moto_bucket: Bucket,
    start: StartWorkload,
    s3_servers: dict[str, Server],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The last shard's upload cannot be completed: those of others were, and are removed."""
    work = start("memory", size_mib=60)
    with fault_proxy(s3_servers["moto"].port) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        proxy.fail(HttpFault("status", status=500, method="POST", where=r"img-0.*uploadId"))
        host.refused(4, *dump(work, url, "--store-timeout", 6), match="cannot be written|500")
        work.wait_ticking()
        proxy.heal()
    assert moto_bucket.sizes() == {}
    assert moto_bucket.unfinished_uploads() == []


@pytest.mark.parametrize("how", ["killed", "stalled"])
def test_a_server_that_goes_away_during_the_dump(
    host: Host, start: StartWorkload, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    work = start("memory", size_mib=200)
    with moto_server() as server, fault_proxy(server.port) as proxy:
        bucket = server.make_bucket().through(proxy.endpoint)
        for name, value in bucket.environment.items():
            monkeypatch.setenv(name, value)
        proxy.bytes_per_s = 20e6
        with host.started(*dump(work, bucket.url, "--store-timeout", 8)) as process:
            poll(lambda: proxy.seen().sent_bytes > 10e6, "an upload")
            if how == "killed":
                server.kill()
            else:
                proxy.fail(HttpFault("stall"))
            begun = time.monotonic()
            _, said = process.communicate(timeout=60)
            assert process.returncode == 4, said
            assert time.monotonic() - begun < 40
            proxy.heal()
    work.wait_ticking()
    assert len([line for line in said.splitlines() if line.startswith("cedanafs:")]) == 1, said


def test_what_is_wrong_is_said_before_anything_is_frozen(
    host: Host, url: str, start: StartWorkload, s3_servers: dict[str, Server]
) -> None:
    work = start("memory", size_mib=4)
    bucket = s3_servers["rclone"].make_bucket()  # it checks signatures
    wrong = {"AWS_ENDPOINT_URL": bucket.endpoint, "AWS_SECRET_ACCESS_KEY": "another"}
    host.refused(4, *dump(work, bucket.url), match="refuses these credentials", env=wrong)
    host.refused(4, *dump(work, "s3://no-such-bucket/x"), match="there is no such bucket")
    nobody = f"http://127.0.0.1:{free_port()}"
    dead = ("--endpoint-url", nobody, *dump(work, url, "--store-timeout", 5))
    host.refused(4, *dead, match=f"{nobody} does not answer")
    host.refused(4, "--endpoint-url", nobody, "list", url, match="does not answer")
    none = {"AWS_ACCESS_KEY_ID": "", "AWS_EC2_METADATA_DISABLED": "true"}
    host.refused(4, "list", url, match="no credentials", env=none)
    work.wait_ticking()


_WRITER = """
import random, sys
sys.path.insert(0, sys.argv[1])
from writing import writing
from cedanafs.shard.place import place_of
place, random = place_of(sys.argv[2]), random.Random(int(sys.argv[3]))
with writing(place, shards=3) as writer:
    for number in range(100):
        name = f"{number:03}.img"
        writer.create(name, random.randbytes(random.choice([100, 3 << 20, 20 << 20])))
        writer.commit(seal=random.random() < 0.5)
        print(name, flush=True)
"""


@pytest.mark.parametrize("seed", range(8))
def test_killed_at_any_moment_the_last_commit_is_there(
    url: str, moto_bucket: Bucket, seed: int
) -> None:
    place = ObjectPath("s3", moto_bucket.name, f"store/{seed}")
    rng = random.Random(seed)
    told: list[str] = []
    for turn in range(3):
        command = [sys.executable, "-c", _WRITER, str(Path(__file__).parents[1]), str(place)]
        with subprocess.Popen(
            [*command, str(seed)] if turn == 0 else [*_appending(command), str(seed + turn)],
            stdout=subprocess.PIPE,
            text=True,
        ) as writer:
            assert writer.stdout is not None
            for _ in range(rng.randrange(3)):
                told.append(writer.stdout.readline().strip())
            time.sleep(rng.random() * 0.4)
            writer.kill()
            told += [line.strip() for line in writer.stdout if line.endswith("\n")]
        try:
            found = read_checkpoint(place)
        except CheckpointMissing:
            assert told == []
            continue
        assert set(told) <= set(found)
        assert len(found) <= len(told) + 1
        assert verify(place).damages == ()
        told = sorted(found)


def _appending(command: list[str]) -> list[str]:
    """The same, with names of its own."""
    code = command[2].replace('f"{number:03}.img"', 'f"{sys.argv[3]}-{number:03}.img"')
    return [*command[:2], code, *command[3:]]
