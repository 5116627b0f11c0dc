"""`cedanafs repair`: what it brings back, in place and into plain files; what it says is lost."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from writing import Writer, last_commit, make_checkpoint, read_checkpoint, writing

from cedanafs import cli
from cedanafs.errors import CheckpointMissing
from cedanafs.shard.opening import open_checkpoint
from cedanafs.shard.store import shard_paths

CODECS = ["none", "lz4", "zstd", "gzip", "zlib"]
NOISE = random.Random(9).randbytes(4000)
FIRST = {"inventory.img": b"inventory", "pages-1.img": NOISE[:2000], "pages-2.img": NOISE[2000:]}
SECOND = {**FIRST, "stats-dump": b"statistics", "pages-1.img": b"over it" + NOISE[7:2000]}

Repair = Callable[..., tuple[int, str]]


@pytest.fixture
def repair(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Repair:
    """repair(…): the exit code of the command line, and what it said."""

    def run(*arguments: object) -> tuple[int, str]:
        capsys.readouterr()
        monkeypatch.setattr(sys, "argv", ["cedanafs", "repair", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            sys.exit(cli.main())
        said = capsys.readouterr()
        return end.value.code or 0, said.out + said.err

    return run


def put(writer: Writer, files: dict[str, bytes]) -> None:
    for name, data in files.items():
        image = writer.images.get(name) or writer.create(name)
        writer.write(image, 0, data)
        writer.log.flush()  # a frame of its own, on the next shard in turn


def committed_twice(directory: Path, codec: str, *, seal: bool = False) -> Path:
    """FIRST, then SECOND, on three shards."""
    with writing(directory, shards=3, codec=codec) as writer:
        put(writer, FIRST)
        writer.commit()
        put(writer, {name: SECOND[name] for name in ("stats-dump", "pages-1.img")})
        writer.commit(seal=seal)
    return directory


def flip(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("seal", [False, True])
def test_nothing_to_repair(tmp_path: Path, repair: Repair, codec: str, seal: bool) -> None:
    committed_twice(tmp_path, codec, seal=seal)
    before = contents(tmp_path)
    for flags in ([], ["--yes"]):
        code, said = repair(tmp_path, *flags)
        assert (code, "nothing to repair" in said) == (0, True)
        assert contents(tmp_path) == before


@pytest.mark.parametrize("codec", CODECS)
def test_a_torn_tail_is_cut_off(tmp_path: Path, repair: Repair, codec: str) -> None:
    committed_twice(tmp_path, codec)
    whole = contents(tmp_path)
    with writing(tmp_path) as writer:
        put(writer, {"late": NOISE})
    torn = contents(tmp_path)
    assert torn != whole
    code, said = repair(tmp_path)
    assert code == 3
    assert "nothing that was committed is lost" in said
    assert "nothing was changed" in said
    assert contents(tmp_path) == torn
    assert repair(tmp_path, "--yes")[0] == 0
    assert contents(tmp_path) == whole
    assert repair(tmp_path)[0] == 0


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("seal", [False, True])
@pytest.mark.parametrize("lost", [[0], [1], [0, 1, 2]])
@pytest.mark.parametrize("how", ["cut", "damaged"])
def test_a_lost_footer_is_written_anew(
    tmp_path: Path, repair: Repair, codec: str, seal: bool, lost: list[int], how: str
) -> None:
    """Index and frames are durable before it, so nothing is lost: bit for bit as it was."""
    committed_twice(tmp_path, codec, seal=seal)
    whole = contents(tmp_path)
    paths = shard_paths(tmp_path)
    places = [last_commit(path) for path in paths]
    for k in lost:
        place = places[k]
        if how == "damaged":
            flip(paths[k], place.footer_at + 40)
        else:
            with paths[k].open("r+b") as file:
                file.truncate(place.footer_at + 3)
    damaged = contents(tmp_path)
    code, said = repair(tmp_path)
    assert code == 3
    assert "written anew" in said
    assert contents(tmp_path) == damaged
    code, said = repair(tmp_path, "--yes")
    assert code == 0, said
    assert contents(tmp_path) == whole
    assert read_checkpoint(tmp_path) == SECOND


@pytest.mark.parametrize("codec", CODECS)
def test_a_first_commit_without_a_footer_is_completed(
    tmp_path: Path, repair: Repair, codec: str
) -> None:
    with writing(tmp_path, shards=3, codec=codec) as writer:
        put(writer, FIRST)
        writer.commit()
    whole = contents(tmp_path)
    footers = {path: last_commit(path).footer_at for path in shard_paths(tmp_path)}
    for path, footer_at in footers.items():
        os.truncate(path, footer_at)
    assert read_checkpoint(tmp_path) == {}
    code, said = repair(tmp_path, "--yes")
    assert code == 0, said
    assert contents(tmp_path) == whole
    assert read_checkpoint(tmp_path) == FIRST


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("k", [0, 2])
def test_a_damaged_index_goes_back_to_the_commit_before(
    tmp_path: Path, repair: Repair, codec: str, k: int
) -> None:
    committed_twice(tmp_path, codec)
    path = shard_paths(tmp_path)[k]
    place = last_commit(path)
    flip(path, place.footer.commit_offset + 150)
    damaged = contents(tmp_path)
    code, said = repair(tmp_path)
    assert code == 3
    assert path.name in said
    assert "commit 1 of" in said
    assert "what was committed after commit 1" in said
    assert contents(tmp_path) == damaged
    code, said = repair(tmp_path, "--yes")
    assert code == 3  # something is lost
    assert "repaired" in said
    assert read_checkpoint(tmp_path) == FIRST
    assert repair(tmp_path)[0] == 0
    with writing(tmp_path) as writer:
        put(writer, {"stats-dump": b"again"})
        writer.commit(seal=True)
    assert read_checkpoint(tmp_path) == {**FIRST, "stats-dump": b"again"}


@pytest.mark.parametrize("codec", CODECS)
def test_a_damaged_seal_costs_nothing(tmp_path: Path, repair: Repair, codec: str) -> None:
    committed_twice(tmp_path, codec, seal=True)
    path = shard_paths(tmp_path)[1]
    place = last_commit(path)
    flip(path, place.footer.commit_offset + 150)
    assert repair(tmp_path)[0] == 3
    repair(tmp_path, "--yes")
    assert read_checkpoint(tmp_path) == SECOND
    assert repair(tmp_path)[0] == 0


@pytest.mark.parametrize("codec", CODECS)
def test_a_damaged_frame_costs_the_images_in_it(tmp_path: Path, repair: Repair, codec: str) -> None:
    """In place there is an earlier commit without it; into plain files goes all but the image."""
    directory = committed_twice(tmp_path / "c", codec)
    opened = open_checkpoint(directory)
    opened.close()
    (_, piece), *_ = opened.contents.images["stats-dump"].extents
    assert piece.frame is not None
    path = shard_paths(directory)[piece.frame.shard]
    flip(path, piece.frame.offset + piece.frame.stored_len // 2)
    damaged = contents(directory)

    code, said = repair(directory, "--into", tmp_path / "out")
    assert code == 3
    assert "lost: stats-dump" in said
    assert contents(tmp_path / "out") == {n: d for n, d in SECOND.items() if n != "stats-dump"}
    assert contents(directory) == damaged

    code, said = repair(directory)
    assert code == 3
    assert "lost: pages-1.img, stats-dump" in said
    assert contents(directory) == damaged
    code, said = repair(directory, "--yes")
    assert code == 3
    assert read_checkpoint(directory) == FIRST
    assert repair(directory)[0] == 0


def test_verify_goes_on_to_repair(tmp_path: Path) -> None:
    """It says what is wrong, once, and then what repair says; nothing to repair is no failure."""
    directory = committed_twice(tmp_path / "c", "zstd")

    def verify(*flags: str) -> Result:
        return CliRunner().invoke(cli.cedanafs, ["verify", str(directory), *flags])

    assert verify("--repair", "--yes").exit_code == 0
    with writing(directory) as writer:
        put(writer, {"late": NOISE})
    torn = contents(directory)
    shown = verify("--repair")
    assert "every byte is right" in shown.stdout
    assert "nothing was changed" in str(shown.exception)
    assert contents(directory) == torn
    assert verify("--repair", "--yes").exit_code == 0
    assert contents(directory) != torn

    path = shard_paths(directory)[1]
    flip(path, 400)
    damaged = contents(directory)
    shown = verify("--repair")
    assert shown.stderr.count("img-1.zst at offset") == 1, shown.stderr
    assert "no commit of it is whole" in str(shown.exception)
    assert contents(directory) == damaged
    assert "--yes goes with --repair" in str(verify("--yes").exception)

    make_checkpoint(tmp_path / "base", {"inventory.img": NOISE * 3})
    directory = tmp_path / "user"
    with writing(directory, base="base") as writer:
        writer.create("inventory.img", NOISE * 3)
        writer.commit(seal=True)
    flip(tmp_path / "base/img-0.zst", 400)
    shown = verify("--repair", "--yes")
    assert "of the base: " in str(shown.exception)
    directory = tmp_path / "none"
    missing = verify("--repair")
    assert isinstance(missing.exception, CheckpointMissing)
    assert missing.stderr == ""


@pytest.mark.parametrize("codec", CODECS)
def test_without_any_commit_what_was_written_first_is_there(
    tmp_path: Path, repair: Repair, codec: str
) -> None:
    directory = tmp_path / "c"
    with writing(directory, shards=3, codec=codec) as writer:
        put(writer, FIRST)
    code, said = repair(directory, "--yes")
    assert code == 3
    assert "--into" in said
    code, said = repair(directory, "--into", tmp_path / "all")
    assert code == 3
    assert contents(tmp_path / "all") == FIRST
    path = shard_paths(directory)[2]  # a frame for each file, one on each shard
    path.write_bytes(path.read_bytes()[:-1])
    code, said = repair(directory, "--into", tmp_path / "some")
    assert code == 3
    assert contents(tmp_path / "some") == {n: d for n, d in FIRST.items() if n != "pages-2.img"}
    shard_paths(directory)[0].write_bytes(b"")
    code, said = repair(directory, "--into", tmp_path / "none")
    assert code == 3
    assert "not one image" in said


@pytest.mark.parametrize("codec", CODECS)
def test_a_missing_shard_leaves_what_came_before_it(
    tmp_path: Path, repair: Repair, codec: str
) -> None:
    directory = committed_twice(tmp_path / "c", codec)
    last = shard_paths(directory)[2]
    last.unlink()
    assert repair(directory, "--yes")[0] == 3
    assert repair(directory, "--into", tmp_path / "out")[0] == 3
    assert contents(tmp_path / "out") == {n: FIRST[n] for n in ("inventory.img", "pages-1.img")}


@pytest.mark.parametrize("codec", CODECS)
def test_unfinished_images_are_taken_for_whole_on_request(
    tmp_path: Path, repair: Repair, codec: str
) -> None:
    with writing(tmp_path, shards=3, codec=codec) as writer:
        put(writer, FIRST)
        writer.log.prepare_commit(["pages-1.img"])
        writer.checkpoint.commit()
    before = contents(tmp_path)
    code, said = repair(tmp_path)
    assert code == 3
    assert "pages-1.img" in said
    assert "--accept" in said
    assert contents(tmp_path) == before
    code, said = repair(tmp_path, "--accept")
    assert code == 0, said
    assert read_checkpoint(tmp_path) == FIRST
    opened = open_checkpoint(tmp_path)
    opened.close()
    assert opened.contents.unfinished() == []
    assert opened.sealed
    assert repair(tmp_path)[0] == 0


def test_who_writes_is_not_repaired(tmp_path: Path, repair: Repair) -> None:
    committed_twice(tmp_path, "zstd")
    with writing(tmp_path) as writer:
        put(writer, {"late": NOISE})
        for _, piece in writer.images["late"].extents:
            if (landing := writer.log.wait_for(piece.frame)) is not None:
                landing.result()
        before = contents(tmp_path)
        code, said = repair(tmp_path, "--yes")
        assert code == 4
        assert "writing to this checkpoint" in said
        assert contents(tmp_path) == before


def test_as_a_program(tmp_path: Path) -> None:
    directory = committed_twice(tmp_path / "c", "zstd")
    with shard_paths(directory)[0].open("ab") as file:
        file.write(b"torn")

    def run(*arguments: object) -> tuple[int, str]:
        command = [sys.executable, "-m", "cedanafs", *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        return done.returncode, done.stdout + done.stderr

    code, said = run("verify", directory)
    assert (code, "4 B behind commit 2 are not part of it" in said) == (0, True)
    assert "4 B behind the last commit are not part of it" in run("inspect", directory)[1]
    assert run("repair", directory)[0] == 3
    assert run("repair", directory, "--yes")[0] == 0
    assert run("verify", directory)[0] == 0
    assert run("repair", directory, "--into", tmp_path / "o", "--yes")[0] == 2
    assert run("repair", tmp_path / "nothing")[0] == 3
