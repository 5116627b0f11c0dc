"""runc, on a mount as on any directory, and `cedanafs dump runc`, `restore runc` over it."""

from __future__ import annotations

import json
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from container import COUNT, Container
from host import Host


def goes_on(container: Container, counted: int) -> None:
    """It was restored, and counts where it was when it was dumped."""
    container.wait_counting()
    assert container.count() > counted


@pytest.fixture
def open_bundle() -> Iterator[Path]:
    """A directory that other users can reach."""
    with tempfile.TemporaryDirectory() as name:
        bundle = Path(name)
        bundle.chmod(0o755)
        yield bundle


@pytest.mark.parametrize("work_path", [True, False], ids=["work path", "no work path"])
def test_runc_itself_on_a_mount(host: Host, store: Path, criu_binary: str, work_path: bool) -> None:
    with Container(host, criu_binary, namespaces=["network"]) as container:
        with host.mounted(store) as mnt:
            first = container.checkpoint(mnt / "a", "--leave-running", work_path=work_path)
            assert first.code == 0, first
            goes_on(container, container.count())
            last = container.checkpoint(mnt / "b", work_path=work_path)
            assert last.code == 0, last
            counted = container.count()
            assert not container.state()
        for name in ("a", "b"):
            assert "every byte is right" in host.ok("verify", store / name).stdout
        with host.mounted(store) as mnt:
            assert (mnt / "b/dump.log").exists() != work_path
            container.restore(mnt / "b", work_path=work_path)
            goes_on(container, counted)


def test_user_namespace(host: Host, store: Path, criu_binary: str, open_bundle: Path) -> None:
    """Its root is nobody here, and opens the images."""
    with Container(
        host, criu_binary, namespaces=["network", "user"], bundle=open_bundle
    ) as container:
        host.ok("dump", "runc", container.id, "--dir", store, "--name", "a")
        counted = container.count()
        host.ok(
            "restore", "runc", container.id, "--path", store / "a", "--bundle", container.bundle
        )
        goes_on(container, counted)
        with host.mounted(store, "--allow-other") as mnt:
            done = container.checkpoint(mnt / "b")
            assert done.code == 0, done
            counted = container.count()
            host.stock("chmod", "711", mnt, mnt / "b")
            container.restore(mnt / "b")
            goes_on(container, counted)


@pytest.mark.parametrize("shards", [3, 0], ids=["streamed", "plain"])
def test_dump_and_restore(host: Host, store: Path, criu_binary: str, shards: int) -> None:
    logs = host.make("logs")
    options = ("--stream", shards, "--work-path", logs)
    with Container(host, criu_binary) as container:
        kept = host.ok(
            "dump", "runc", container.id, "--dir", store, "-n", shards, "--leave-running"
        )
        goes_on(container, container.count())
        first = Path(kept.last_line)
        assert first.parent == store
        assert first.name.startswith(f"dump-runc-{container.id}-")

        done = host.ok(
            "dump", "runc", container.id, "--dir", store, "--name", "x", *options,
            "--criu-opts", '{"ghost-limit": 4096}', "--link-remap", "--file-locks",
        )  # fmt: skip
        assert done.last_line == str(store / "x")
        counted = container.count()
        assert not container.state()
        assert "finished successfully" in (logs / "dump.log").read_text()
        config = (logs / "criu.conf").read_text()
        assert {"ghost-limit 4096", "link-remap"} <= set(config.splitlines())

        restored = host.ok(
            "restore", "runc", container.id, "--path", store / "x", "-b", container.bundle,
            "--pid-file", host.base / "pid", "--work-path", logs,
            "--link-remap", "--file-locks",
        )  # fmt: skip
        goes_on(container, counted)
        assert int(restored.last_line) == container.state()["pid"]
        assert (host.base / "pid").read_text() == f"{restored.last_line}\n"
        assert "finished successfully" in (logs / "restore.log").read_text()


def test_into_a_mount_that_is_there(host: Host, store: Path, criu_binary: str) -> None:
    with Container(host, criu_binary) as container, host.mounted(store) as mnt:
        for directory in (store, mnt):  # the store is written to through its mount
            path = host.ok("dump", "runc", container.id, "--dir", directory, "--name", "x")
            assert path.last_line == str(mnt / "x")
            counted = container.count()
            host.ok("restore", "runc", container.id, "--path", mnt / "x", "-b", container.bundle)
            goes_on(container, counted)


def test_what_cannot_be_is_one_line(host: Host, store: Path, criu_binary: str) -> None:
    with Container(host, criu_binary) as container:
        dump = ("dump", "runc", "--dir", store)
        host.refused(2, *dump, "nobody", match="runc knows no container 'nobody'")
        host.refused(2, *dump, container.id, "--root", host.make("r"), match="no container")
        host.refused(
            2, *dump, container.id, "--criu-opts", '{"root": "/"}', match="set by runc itself"
        )
        host.refused(2, *dump, container.id, "--work-path", "/nowhere", match="--work-path")
        assert not list(store.iterdir())
        assert container.is_running()

        host.ok(*dump, container.id, "--name", "x", "--leave-running", "--tcp-close")
        restore = ("restore", "runc", "--path", store / "x", "--bundle")
        host.refused(2, *restore, store, container.id, match="it is no bundle")
        host.refused(2, *restore, container.bundle, container.id, match="already, it is running")


def test_criu_own_reason_and_its_log(host: Host, store: Path, criu_binary: str) -> None:
    with Container(host, criu_binary) as container:
        host.ok("dump", "runc", container.id, "--dir", store, "--name", "x", "--tcp-close")
        restore = ("restore", "runc", container.id, "--path", store / "x", "-b", container.bundle)
        line = host.refused(5, *restore, match="Need to set the --tcp-close option")
        log = Path(line.rpartition("log: ")[2])
        assert log.name == "restore.log"
        assert "Error" in log.read_text()
        host.stock("rm", "-r", log.parent)
        host.ok(*restore, "--tcp-close")
        container.wait_counting()


def test_runc_own_reason_where_criu_was_not_even_started(
    host: Host, store: Path, criu_binary: str
) -> None:
    """A log of an earlier attempt in the same --work-path has nothing to say to it."""
    logs = host.make("logs")
    (logs / "dump.log").write_text("(0.1) Error (criu/x.c:1): of yesterday\n")
    broken = host.make("broken") / "criu"
    broken.write_text("#!/bin/sh\nexit 1\n")
    broken.chmod(0o755)
    with Container(host, criu_binary) as container:
        line = host.refused(
            5, "dump", "runc", container.id, "--dir", store, "--name", "x",
            "--work-path", logs, "--criu-binary", broken, match="runc failed to checkpoint",
        )  # fmt: skip
        assert line.endswith(f"log: {logs}/runc-checkpoint.log")
        assert "of yesterday" not in line
        assert container.is_running()
        assert not list(store.iterdir())
        renamed = broken.rename(broken.with_name("criu-4"))
        host.refused(
            2, "dump", "runc", container.id, "--dir", store, "--criu-binary", renamed,
            match="a program called criu",
        )  # fmt: skip


def test_onto_a_base(host: Host, store: Path, criu_binary: str) -> None:
    memory = "x=$(busybox yes | busybox head -c 8000000); "
    with Container(host, criu_binary, program=memory + COUNT) as container:
        dump = ("dump", "runc", container.id, "--dir", store, "--link-remap")
        host.ok(*dump, "--name", "a", "--page-hashes", "--leave-running")
        host.ok(*dump, "--name", "b", "--base", "a")
        counted = container.count()
        said = json.loads(host.ok("inspect", store / "b", "--json").stdout)
        assert said["base"] == "a"
        assert said["shared_bytes"] > 0.5 * said["raw_bytes"]
        host.refused(
            2, "dump", "runc", container.id, "--stream", 0, "--base", "a", match="no --base"
        )
        host.ok("restore", "runc", container.id, "--path", store / "b", "-b", container.bundle)
        goes_on(container, counted)


ECHO = "trap 'exit 7' TERM; echo ready; while read line; do echo \"[$line]\"; done"


def test_attached(host: Host, store: Path, criu_binary: str) -> None:
    """Its pipes become ours, our signals its, its exit status ours."""
    with Container(host, criu_binary, program=ECHO, attached=True) as container:
        assert container.process is not None
        assert container.process.stdout is not None
        assert container.process.stdout.readline() == "ready\n"
        host.ok("dump", "runc", container.id, "--dir", store, "--name", "x")
        container.process.wait(30)
        with host.started(
            "restore", "runc", container.id, "--path", store / "x", "-b", container.bundle,
            "--attach", stdin=subprocess.PIPE,
        ) as restore:  # fmt: skip
            assert restore.stdout is not None
            assert restore.stdin is not None
            pid = int(restore.stdout.readline())
            assert pid == container.state()["pid"]
            assert not host.own_mounts()
            restore.stdin.write("hello\n")
            restore.stdin.flush()
            assert restore.stdout.readline() == "[hello]\n"
            restore.send_signal(signal.SIGTERM)
            assert restore.wait(30) == 7
        assert not container.state()


def test_attached_restore_that_fails(host: Host, store: Path, criu_binary: str) -> None:
    with Container(host, criu_binary) as container:
        host.ok("dump", "runc", container.id, "--dir", store, "--name", "x", "--tcp-close")
        restore = ("restore", "runc", container.id, "--path", store / "x", "-b", container.bundle)
        failed = host.run(*restore, "--attach")
        assert failed.code == 5
        line = failed.complaints[-1]  # after what runc says, whose stderr is ours
        assert "Need to set the --tcp-close option" in line
        host.stock("rm", "-r", Path(line.rpartition("log: ")[2]).parent)
