"""Foreign sets through the command line, a mount and real CRIU."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from host import Host, StartWorkload
from sets import DATA, DIGESTS, SETS, digests, digests_in, streams
from stream_parser import CHUNK_LIMIT, cedana_files_of, files_of


def test_a_store_of_them_is_mounted(host: Host) -> None:
    store = Path(shutil.copytree(DATA, host.base / "store"))
    rows = host.ok("list", store).stdout
    for name in SETS:
        assert name in rows
    with host.mounted(store) as mnt:
        for name in SETS:
            assert digests_in(mnt / name) == DIGESTS
        held = mnt / SETS[0]
        for change in (
            lambda: (held / "new.img").write_bytes(b"x"),
            lambda: (held / "inventory.img").unlink(),
            lambda: (held / "inventory.img").rename(held / "other.img"),
            lambda: (held / "inventory.img").chmod(0o600),
        ):
            with pytest.raises(OSError, match="Read-only file system"):
                change()
        (mnt / "ours").mkdir()
        (mnt / "ours/inventory.img").write_bytes(b"ours")
    assert digests_in(store / SETS[0]) == digests_in(DATA / SETS[0])


def test_what_the_commands_say(host: Host) -> None:
    source = DATA / "cedana-4-lz4"
    assert "by Cedana's streamer" in host.ok("inspect", source).stdout
    assert "nothing is missing" in host.ok("verify", source).stdout
    host.ok("convert", source, host.base / "ours", "-n", 2, "-c", "gzip")
    assert "every byte is right" in host.ok("verify", host.base / "ours").stdout
    host.ok("export", "--layout", "cedana", host.base / "ours", host.base / "theirs")
    assert len(list((host.base / "theirs").glob("img-*.lz4"))) == 4
    assert digests(cedana_files_of(streams(host.base / "theirs"))) == DIGESTS
    host.refused(2, "export", "--layout", "cedana", source, host.base / "x", "-c", "zstd",
                 match="not known there")  # fmt: skip
    made = Path(shutil.copytree(source, host.base / "cut"))
    shard = made / "img-2.lz4"
    shard.write_bytes(shard.read_bytes()[:-9])
    for command in ("inspect", "verify"):
        host.refused(3, command, made, match=r"img-2\.lz4, decoded up to offset \d+: lz4 cannot")
    host.refused(3, "convert", made, host.base / "x", match=r"img-2\.lz4")
    host.refused(3, "restore", "process", "--path", made, match=r"img-2\.lz4")
    assert not (host.base / "x").exists()


@pytest.mark.parametrize(
    ("layout", "options"),
    [
        ("streamer", ("-n", 1, "-c", "none")),
        ("streamer", ("-n", 4, "-c", "zstd")),
        (
            "cedana",
            (
                "-n",
                3,
            ),
        ),
        ("cedana", ("-c", "zlib")),
    ],
)
def test_a_process_is_restored_from_it(
    host: Host, store: Path, start: StartWorkload, layout: str, options: tuple[object, ...]
) -> None:
    """A dump of real CRIU, as each streamer keeps one; and back again by their own rules."""
    work = start("memory", size_mib=24)
    before = work.ask()
    dumped = host.ok("dump", "process", work.pid, "--dir", store, "-n", 2).last_line
    work.wait_gone()
    foreign = host.base / "foreign"
    host.ok("export", "--layout", layout, dumped, foreign, *options)
    host.ok("extract", dumped, host.base / "plain")
    shards = streams(foreign)
    files = files_of(shards, chunk_limit=CHUNK_LIMIT) if layout == "streamer" else (
        cedana_files_of(shards)
    )  # fmt: skip
    assert digests(files) == digests_in(host.base / "plain")
    host.refused(2, "restore", "process", "--path", foreign, "--stream", 9, match="has . shards")
    host.ok("restore", "process", "--path", foreign)
    work.wait_ticking()
    assert work.ask()["digest"] == before["digest"]
