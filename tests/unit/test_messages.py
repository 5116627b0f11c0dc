"""What users read who mistyped something: one line, with the nearest right one."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from writing import make_checkpoint, shard_paths

from cedanafs import cli
from cedanafs.errors import did_you_mean

Run = Callable[..., tuple[int, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """run(…): the exit code, and the one line, without whose it is."""

    def one_line(*arguments: object) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["cedanafs", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            cli.main()
        said = capsys.readouterr()
        assert said.out == ""
        (line,) = said.err.splitlines()
        assert line.startswith("cedanafs: ")
        assert isinstance(end.value.code, int)
        return end.value.code, line.removeprefix("cedanafs: ")

    return one_line


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("dmup process 1", "No such command 'dmup'. Did you mean 'dump'?"),
        ("dump proces 1", "No such command 'proces'. Did you mean 'process'?"),
        ("dump 1234", "No such command '1234': cedanafs dump knows process, runc"),
        ("xyzzy", "No such command 'xyzzy': cedanafs knows check, commit, compact, "),
        ("list --jsn .", "No such option '--jsn'. Did you mean '--json'?"),
        ("export a b --layout cedanna", "'cedanna' is not one of 'streamer', 'cedana'"),
        ("pack . new --compression zst:3", "lz4, zstd, gzip, zlib: did you mean 'zstd'?"),
        ("list s4://bucket", "s4:// is no store that is known: a directory, or s3://, gs://, az://"),
        ("mount .", "Missing argument 'MOUNTPOINT': "),
        ("prune . --older-than 7x", "write 90m, 12h, 7d or 4w"),
        ("mount . . --memory-limit 2Q", "'2Q' is not a size: write 256M or 1G"),
        ("umount .", "is no mount of cedanafs: findmnt -t fuse.cedanafs shows them"),
        ("commit .", "is not in a mount of cedanafs: findmnt -t fuse.cedanafs shows them"),
        ("verify . --yes", "verify changes nothing: --yes goes with --repair"),
    ],
)  # fmt: skip
def test_wrong_usage(run: Run, typed: str, said: str) -> None:
    code, line = run(*typed.split())
    assert (code, said in line) == (2, True), line


def test_a_checkpoint_by_another_name(run: Run, tmp_path: Path) -> None:
    web = make_checkpoint(tmp_path / "web-monday", {"inventory.img": b"i" * 9999}, codec="none")
    (tmp_path / "empty").mkdir()
    for command in ("verify", "inspect", "rm", "compact", "flatten", "repair"):
        code, line = run(command, tmp_path / "web-mnday")
        assert code == 3
        assert line.endswith("no such directory: did you mean 'web-monday'?")
    code, line = run("verify", tmp_path)
    assert code == 3
    assert line.endswith(
        "no checkpoint here (no img-0 file): in it are empty, web-monday: name one of them"
    )
    assert run("verify", tmp_path / "empty")[1].endswith("no checkpoint here (no img-0 file)")
    assert run("list", tmp_path / "none") == (
        4, f"store {tmp_path / 'none'} is not a directory: mkdir -m 700 makes one"
    )  # fmt: skip
    (shard,) = shard_paths(web)
    data = bytearray(shard.read_bytes())
    data[5000] ^= 1
    shard.write_bytes(data)
    code, line = run("extract", web, tmp_path / "out")
    assert code == 3
    assert f"'inventory.img' at offset 0: {shard} at offset" in line
    assert line.endswith("checksum does not match; cedanafs repair shows what can be had of it")


def test_nearest() -> None:
    assert did_you_mean("tcp-clsoe", ["tcp-close", "shell-job"]) == ": did you mean 'tcp-close'?"
    assert did_you_mean("xyz", ["tcp-close"]) == ""
