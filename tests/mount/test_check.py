"""cedanafs check: what it finds on this machine, and on machines and stores that lack something."""

import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
from host import Host
from writing import make_checkpoint

from cedanafs import check
from cedanafs.check import Finding

# A namespace of our own, in which the first argument is done before the rest runs.
ELSEWHERE = ["unshare", "--mount", "sh", "-c"]


def findings(host: Host, code: int, *arguments: object, **options: object) -> dict[str, dict]:
    """What check --json says, by name; the last of each name."""
    done = host.run("check", "--json", *arguments, **options)  # type: ignore[arg-type]
    assert done.code == code, done
    assert bool(done.complaints) == bool(code), done
    return {each["name"]: each for each in json.loads(done.stdout)}


@pytest.fixture
def private(store: Path) -> Iterator[Path]:
    """A store that is nobody else's, with a checkpoint in it."""
    store.chmod(0o700)
    make_checkpoint(store / "x", {"inventory.img": b"x"}, shards=2).chmod(0o700)
    return store


def test_this_machine_is_ready(host: Host, private: Path, criu_binary: str) -> None:
    found = findings(host, 0, private, "--criu", criu_binary)
    assert {name: each["state"] for name, each in found.items()} | {
        name: "ok"
        for name in (
            "root", "/dev/fuse", "fuse mount", "pycriu", "criu", "criu check", "lazy restore",
            "pipe size", "fuse request size", "fuse background", "store access",
        )
    } == {name: each["state"] for name, each in found.items()}  # fmt: skip
    assert "4.1" in found["criu"]["message"] or "4.2" in found["criu"]["message"]
    assert found["store privacy"]["state"] == "ok"
    assert {each["state"] for each in found.values()} <= {"ok", "warning"}
    for each in found.values():  # what is wrong comes with what to do about it
        assert bool(each["advice"]) == (each["state"] != "ok")


def test_in_full_a_process_is_dumped_and_restored(host: Host, private: Path) -> None:
    found = findings(host, 0, "--full", private)
    assert found["dump and restore"]["state"] == "ok"
    assert found["auto-dedup"]["state"] == "warning"
    assert len(found) > len(findings(host, 0, private)) + 10


def test_in_full_with_a_criu_that_cannot_dump(host: Host, criu_binary: str) -> None:
    """It answers, and checks well, but a restore of it fails."""
    fake = host.base / "criu"
    fake.write_text(f'#!/bin/sh\n[ $1 = swrk ] && ulimit -f 1\nexec {criu_binary} "$@"\n')
    fake.chmod(0o755)
    assert findings(host, 0, "--criu", fake)["criu check"]["state"] == "ok"
    found = findings(host, 6, "--full", "--criu", fake)
    assert found["dump and restore"]["state"] == "error"
    for log in host.temporary.glob("cedanafs-*/*.log"):
        log.unlink()
        log.parent.rmdir()


def test_it_is_told_in_lines(host: Host, private: Path) -> None:
    done = host.ok("check", private)
    lines = [line for line in done.stdout.splitlines() if not line.startswith(" ")]
    assert all(line.split()[0] in ("ok", "warning") for line in lines)
    assert any(line.startswith("ok       fuse mount: ") for line in lines)


def test_without_criu(host: Host) -> None:
    host.refused(6, "check", "--criu", "/none/criu", match="lacks: criu")
    fake = host.base / "criu"
    fake.write_text("#!/bin/sh\nexit 0\n")
    fake.chmod(0o755)
    host.refused(6, "check", "--criu", fake, match="lacks: criu")


def test_without_root(host: Host) -> None:
    nobody = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
    env = {"XDG_CONFIG_HOME": "/none", "TMPDIR": "/tmp"}
    found = findings(host, 6, under=nobody, env=env, cwd=Path("/"))
    assert found["root"]["state"] == found["fuse mount"]["state"] == "error"


def test_a_device_that_is_not_fuse(host: Host) -> None:
    """It is there and opens: only mounting tells."""
    under = [*ELSEWHERE, 'mount --bind /dev/null /dev/fuse && exec "$@"', "sh"]
    found = findings(host, 6, under=under)
    assert found["/dev/fuse"]["state"] == "ok"
    assert found["fuse mount"]["state"] == "error"


def test_few_open_files(host: Host) -> None:
    found = findings(host, 0, under=["prlimit", "--nofile=256:256"])
    assert found["open files"]["state"] == "warning"
    assert "ulimit" in found["open files"]["advice"]


def test_a_stale_mount_is_told(host: Host, store: Path) -> None:
    with host.mounted(store) as mnt:
        for server in host.servers(mnt):
            os.kill(server, 9)
        done = host.run("check")
        assert done.code == 0
        assert f"warning  mounts: {mnt} is stale" in done.stdout
        assert f"cedanafs umount {mnt}" in done.stdout
        host.ok("umount", mnt)


def test_a_store_that_is_none(host: Host) -> None:
    host.refused(4, "check", host.base / "none", match="store")
    (host.base / "file").touch()
    host.refused(4, "check", host.base / "file", match="store")


def test_a_store_that_cannot_be_written(host: Host, private: Path) -> None:
    with host.read_only(private) as place:
        assert findings(host, 4, place)["store access"]["state"] == "error"


def test_a_store_that_is_nearly_full(host: Host) -> None:
    with host.small_disk("disk", 8) as disk:
        disk.chmod(0o700)
        found = findings(host, 0, disk)
        assert found["store space"]["state"] == "warning"
        assert "tmpfs" in found["store"]["message"]


def test_a_store_that_is_in_a_mount(host: Host, store: Path) -> None:
    with host.mounted(store) as mnt:
        assert f"cedanafs check {store}" in findings(host, 4, mnt)["store"]["advice"]
    assert not list(store.iterdir())


def of_store(store: Path) -> dict[str, Finding]:
    return {each.name: each for each in check.store(store)}


@pytest.mark.parametrize("which", [".", "x", "x/img-0.zst", "x/img-1.zst"])
@pytest.mark.parametrize("bit", [stat.S_IRGRP, stat.S_IROTH, stat.S_IWOTH, stat.S_IXGRP])
def test_a_store_that_others_can_read_is_told(
    host: Host, private: Path, which: str, bit: int
) -> None:
    place = private / which
    place.chmod(place.stat().st_mode | bit)
    found = of_store(private)["store privacy"]
    assert found.state == "warning"
    assert str(place) in found.message
    host.stock("sh", "-c", found.advice)
    assert of_store(private)["store privacy"].state == "ok"


def test_a_store_with_somebody_else_s_shards_is_told(private: Path) -> None:
    os.chown(private / "x/img-1.zst", 12345, -1)
    found = of_store(private)["store owner"]
    assert found.state == "warning"
    assert "img-1.zst" in found.message
    os.chown(private / "x/img-1.zst", 0, -1)
    (private / "x/img-1.zst").rename(private / "elsewhere")
    (private / "x/img-1.zst").symlink_to("../elsewhere")
    assert of_store(private)["store owner"].state == "warning"


def test_a_large_store_is_looked_at_in_part(private: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cedanafs.check.stores.MAX_LOOKED_AT", 10)
    for n in range(20):
        (private / f"d{n}").mkdir(mode=0o700)
    found = of_store(private)["store size"]
    assert found.state == "warning"
    assert found.advice == f"cedanafs check --full {private}"
    assert "store size" not in {each.name for each in check.store(private, full=True)}
