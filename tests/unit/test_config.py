"""Settings: what is read where, and which of two wins."""

import json
import logging
from collections.abc import Callable
from pathlib import Path

import pytest

from cedanafs.config import (
    DEFAULT_COMPRESSION,
    Defaults,
    MountSettings,
    config_files,
    load_defaults,
    size_of,
)
from cedanafs.errors import UsageError
from cedanafs.shard.codec import codec_of

WriteConfig = Callable[[object], Path]


@pytest.fixture
def write(tmp_path: Path) -> WriteConfig:
    """Write a configuration file: an object as JSON, text and bytes as they are."""
    count = 0

    def write_config(content: object) -> Path:
        nonlocal count
        count += 1
        path = tmp_path / f"config{count}.json"
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            path.write_text(content if isinstance(content, str) else json.dumps(content))
        return path

    return write_config


def test_defaults_without_anything(tmp_path: Path) -> None:
    assert load_defaults({}, [tmp_path / "none"]) == Defaults()
    assert (Defaults().stream, Defaults().compression) == (4, "zstd:1")


@pytest.mark.parametrize(
    "config",
    [
        {"Checkpoint": {"Dir": "/ckpt", "Stream": 2, "Compression": "lz4"}},
        {"checkpoint": {"dir": "/ckpt", "stream": "2", "compression": "LZ4"}},
        {"CHECKPOINT": {"DIR": "/ckpt", "STREAMS": 2, "COMPRESSION": "lz4"}},
        {"Checkpoint": {"Dir": "/ckpt", "Streams": 2, "Compression": "lz4"}},
    ],
)
def test_keys_in_any_case(write: WriteConfig, config: object) -> None:
    found = load_defaults({}, [write(config)])
    assert (found.dir, found.stream) == (Path("/ckpt"), 2)
    assert codec_of(found.compression).name == "lz4"


def test_all_that_there_is(write: WriteConfig) -> None:
    config = {
        "Checkpoint": {
            "MemoryLimit": "64M",
            "Spill": "/spill",
            "CacheDir": "/cache",
            "CacheSize": "1G",
        },
        "CRIU": {"BinaryPath": "/usr/sbin/criu", "LeaveRunning": True},
    }
    found = load_defaults({}, [write(config)])
    assert found == Defaults(
        memory_limit=64 << 20,
        spill=Path("/spill"),
        cache_dir=Path("/cache"),
        cache_size=1 << 30,
        criu_binary="/usr/sbin/criu",
        leave_running=True,
    )


def test_later_files_win_then_the_environment(write: WriteConfig) -> None:
    system = write({"Checkpoint": {"Dir": "/system", "Stream": 1, "Compression": "gzip"}})
    users = write({"Checkpoint": {"Dir": "/user", "Stream": 2}})
    environ = {"CEDANAFS_CHECKPOINT_DIR": "/env", "CEDANAFS_CRIU_LEAVERUNNING": "yes"}
    found = load_defaults(environ, [system, users])
    assert (found.dir, found.stream, found.leave_running) == (Path("/env"), 2, True)
    assert codec_of(found.compression).name == "gzip"


def test_empty_and_null_are_not_there(write: WriteConfig) -> None:
    config = {"Checkpoint": {"Dir": "", "Stream": None, "Compression": ""}, "CRIU": {}}
    environ = {"CEDANAFS_CHECKPOINT_STREAM": "", "CEDANAFS_CHECKPOINT_DIR": ""}
    assert load_defaults(environ, [write(config)]) == Defaults()


def test_what_belongs_to_cedana_is_ignored(
    write: WriteConfig, caplog: pytest.LogCaptureFixture
) -> None:
    config = {
        "Connection": {"URL": "https://…", "AuthToken": "x"},
        "Daemon": True,
        "CRIU": {"ManageCgroups": "ignore"},
    }
    assert load_defaults({}, [write(config)]) == Defaults()
    assert not caplog.records


def test_a_key_that_is_misspelt_is_told(
    write: WriteConfig, caplog: pytest.LogCaptureFixture
) -> None:
    path = write({"Checkpoint": {"Stremas": 3}})
    with caplog.at_level(logging.WARNING):
        load_defaults({"CEDANAFS_CHECKPOINT_STREEM": "4", "CEDANAFS_ASK": "3"}, [path])
    assert [record.getMessage() for record in caplog.records] == [
        f"{path}: Checkpoint.Stremas is not known and ignored: did you mean 'streams'?",
        "CEDANAFS_CHECKPOINT_STREEM is not known and ignored: "
        "did you mean 'CEDANAFS_CHECKPOINT_STREAM'?",
    ]


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("{", "cannot be read"),
        (b"\xff\xfe", "cannot be read"),
        ([], "is not a JSON object"),
        ({"Checkpoint": 4}, "Checkpoint is not a JSON object"),
        ({"Checkpoint": {"Stream": "many"}}, "Checkpoint.Stream: 'many' makes no sense"),
        ({"Checkpoint": {"Stream": -1}}, "Checkpoint.Stream: -1 makes no sense"),
        ({"Checkpoint": {"Stream": True}}, "Checkpoint.Stream: True makes no sense"),
        ({"Checkpoint": {"Stream": 2.5}}, "Checkpoint.Stream: 2.5 makes no sense"),
        ({"Checkpoint": {"Compression": "brotli"}}, "Checkpoint.Compression: .*brotli"),
        ({"Checkpoint": {"MemoryLimit": "much"}}, "Checkpoint.MemoryLimit: 'much' is not a size"),
        ({"CRIU": {"LeaveRunning": "perhaps"}}, "CRIU.LeaveRunning: 'perhaps' makes no sense"),
    ],
)
def test_a_file_that_makes_no_sense_is_named(
    write: WriteConfig, content: object, complaint: str
) -> None:
    path = write(content)
    with pytest.raises(UsageError, match=f"{path}.*{complaint}"):
        load_defaults({}, [path])


def test_a_directory_in_its_place_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=f"{tmp_path} cannot be read"):
        load_defaults({}, [tmp_path])


def test_a_variable_that_makes_no_sense_is_named() -> None:
    with pytest.raises(UsageError, match="CEDANAFS_CHECKPOINT_STREAM: 'x' makes no sense"):
        load_defaults({"CEDANAFS_CHECKPOINT_STREAM": "x"}, [])


def test_where_the_files_are() -> None:
    system = Path("/etc/cedanafs/config.json")
    assert config_files({"HOME": "/home/a"}) == [
        system,
        Path("/home/a/.config/cedanafs/config.json"),
    ]
    assert config_files({"HOME": "/home/a", "XDG_CONFIG_HOME": "/conf"}) == [
        system,
        Path("/conf/cedanafs/config.json"),
    ]


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("4096", 4096),
        ("64K", 64 << 10),
        ("64kb", 64 << 10),
        (" 256 MiB ", 256 << 20),
        ("1g", 1 << 30),
        ("2TiB", 2 << 40),
    ],
)
def test_sizes(text: str, size: int) -> None:
    assert size_of(text) == size


@pytest.mark.parametrize("text", ["", "M", "-1M", "1.5G", "1X", "1 M M", "0x10"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(UsageError, match="is not a size: write 256M or 1G"):
        size_of(text)


def test_mount_settings_are_checked() -> None:
    store = Path("/store")
    assert str(MountSettings(store).codec) == DEFAULT_COMPRESSION
    for shards in (0, -1, 1000):
        with pytest.raises(UsageError, match=f"--stream {shards}: a mount has 1 to"):
            MountSettings(store, shards=shards)
    with pytest.raises(UsageError, match="--memory-limit: at least 32M"):
        MountSettings(store, memory_limit=1 << 20)


@pytest.mark.parametrize("limit", [32 << 20, 256 << 20, 1 << 40])
def test_the_parts_of_the_memory_keep_within_its_limit(limit: int) -> None:
    settings = MountSettings(Path("/store"), memory_limit=limit)
    assert 0 < settings.write_budget + settings.cache_bytes <= limit
