"""Plain images, and where the settings of commands come from."""

import json
import os
from collections.abc import Sequence
from pathlib import Path

import pytest
from host import Host, StartWorkload


def configure(host: Host, config: object) -> Path:
    """Write the user's configuration file."""
    path = host.config_home / "cedanafs" / "config.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(config if isinstance(config, str) else json.dumps(config))
    return path


def shard_names(directory: Path) -> list[str]:
    return sorted(os.listdir(directory))


def test_stream_0_makes_plain_images(
    host: Host, store: Path, start: StartWorkload, criu_binary: str
) -> None:
    work = start("memory", size_mib=16)
    before = work.ask()
    dump = ("dump", "process", work.pid, "--dir", store, "--stream", 0)
    plain = Path(host.ok(*dump, "--name", "x").last_line)
    work.wait_gone()
    names = set(os.listdir(plain))
    assert {"inventory.img", "pages-1.img", f"core-{work.pid}.img", "stats-dump"} <= names
    assert not {name for name in names if name.startswith("img-")}
    logs = host.make("logs")
    host.stock(criu_binary, "restore", "-d", "-D", plain, "-W", logs, "-o", "restore.log")
    work.wait_ticking()
    assert work.ask()["digest"] == before["digest"]

    host.refused(2, *dump, "--name", "x", match="is not empty: choose another --name")
    with host.mounted(host.make("other")) as mnt:
        host.refused(
            2, "dump", "process", work.pid, "--dir", mnt, "--stream", 0, match="in a mount"
        )
        assert os.listdir(mnt) == []
    host.refused(3, "verify", plain, match="no checkpoint here")
    host.refused(2, "restore", "process", "--path", plain, "--stream", 4, match="plain images")
    work.kill()
    work.wait_gone()
    assert host.ok("restore", "process", "--path", plain).last_line == str(work.pid)
    work.wait_ticking()
    assert work.ask()["digest"] == before["digest"]


@pytest.mark.parametrize(
    ("env", "flags", "wanted"),
    [
        ({}, [], ["img-0.lz4", "img-1.lz4"]),
        ({"CEDANAFS_CHECKPOINT_STREAM": "3"}, [], ["img-0.lz4", "img-1.lz4", "img-2.lz4"]),
        (
            {"CEDANAFS_CHECKPOINT_STREAM": "3", "CEDANAFS_CHECKPOINT_COMPRESSION": "gzip"},
            ["--streams", "1"],
            ["img-0.gz"],
        ),
        ({"CEDANAFS_CHECKPOINT_STREAMS": "1"}, ["-c", "none", "-n", "2"], ["img-0", "img-1"]),
    ],
    ids=["file", "environment", "flag over environment", "flags over file"],
)
def test_which_setting_wins(
    host: Host,
    start: StartWorkload,
    env: dict[str, str],
    flags: Sequence[str],
    wanted: list[str],
) -> None:
    store = host.base / "made by the dump" / "store"
    configure(host, {"CHECKPOINT": {"dir": str(store), "STREAMS": 2, "compression": "lz4"}})
    work = start("threads")
    path = Path(host.ok("dump", "process", work.pid, *flags, env=env).last_line)
    assert path.parent == store
    assert path.name.startswith("dump-process-python3-")
    assert shard_names(path) == wanted


def test_settings_of_a_mount(host: Host, store: Path) -> None:
    configure(host, {"Checkpoint": {"Stream": 3, "Compression": "lz4:3", "MemoryLimit": "48M"}})
    with host.mounted(store) as mnt:
        (mnt / "a").write_text("a")
    assert shard_names(store) == ["img-0.lz4", "img-1.lz4", "img-2.lz4"]
    # What a checkpoint is made of stays, whoever writes into it next.
    with host.mounted(store, "--stream", 1, "-c", "gzip") as mnt:
        (mnt / "b").write_text("b")
        (mnt / "x").mkdir()
        (mnt / "x/a").write_text("a")
    assert shard_names(store) == ["img-0.lz4", "img-1.lz4", "img-2.lz4", "x"]
    assert shard_names(store / "x") == ["img-0.gz"]
    with host.mounted(store) as mnt:
        assert (mnt / "a").read_text() + (mnt / "b").read_text() == "ab"


def test_leave_running_can_be_the_default(host: Host, store: Path, start: StartWorkload) -> None:
    configure(host, {"Checkpoint": {"Dir": str(store)}, "CRIU": {"LeaveRunning": True}})
    work = start("threads")
    host.ok("dump", "process", work.pid)
    work.wait_ticking()
    host.ok("dump", "process", work.pid, "--kill", "--name", "x")
    work.wait_gone()


@pytest.mark.parametrize(
    ("config", "complaint"),
    [
        ("{", "cannot be read"),
        ('{"Checkpoint": {"Stream": "many"}}', "Checkpoint.Stream: 'many' makes no sense"),
        ('{"Checkpoint": {"Compression": "brotli"}}', "Checkpoint.Compression: .*brotli"),
    ],
)
def test_a_file_that_makes_no_sense_is_named(
    host: Host, store: Path, start: StartWorkload, config: str, complaint: str
) -> None:
    path = configure(host, config)
    work = start("threads")
    match = f"{path}.*{complaint}"
    host.refused(2, "dump", "process", work.pid, "--dir", store, match=match)
    host.refused(2, "mount", store, host.make("mnt"), match=match)
    work.wait_ticking()


def test_a_variable_that_makes_no_sense_is_named(host: Host, store: Path) -> None:
    host.refused(
        2, "mount", store, host.make("mnt"),
        env={"CEDANAFS_CHECKPOINT_STREAM": "x"}, match="CEDANAFS_CHECKPOINT_STREAM: 'x'",
    )  # fmt: skip


def test_the_kernel_reads_far_ahead_on_a_mount(host: Host, store: Path) -> None:
    with host.mounted(store) as mnt:
        device = mnt.stat().st_dev
        knobs = Path(f"/sys/class/bdi/{os.major(device)}:{os.minor(device)}")
        assert (knobs / "read_ahead_kb").read_text() == "4096\n"
        knobs = Path(f"/sys/fs/fuse/connections/{os.minor(device)}")
        assert (knobs / "max_background").read_text() == "256\n"
        assert (knobs / "congestion_threshold").read_text() == "256\n"
