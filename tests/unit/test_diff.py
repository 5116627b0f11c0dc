"""diff of dumps made by hand: processes, files, and pages one by one."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from crafted import ARGUMENTS_AT, DATA_AT, PAGE, dump_of, image, process, run
from writing import make_checkpoint, writing

from cedanafs.cli.diff import diff

DATA = random.Random(3).randbytes(700 * PAGE)


def differs(first: Path, second: Path) -> dict[str, Any]:
    done = CliRunner().invoke(diff, [str(first), str(second), "--json"])
    assert done.exit_code == 0, done.exception
    said: dict[str, Any] = json.loads(done.stdout)
    return said


def test_pages_files_and_processes(tmp_path: Path) -> None:
    changed = bytearray(DATA)
    for page in (0, 255, 256, 699):
        changed[page * PAGE + 17] ^= 1
    make_checkpoint(
        tmp_path / "a",
        dump_of((1, 0), (2, 1), (3, 1))
        | process(1, command=b"serve\0", data=DATA)
        | process(2, command=b"old\0")
        | process(3, command=b"stays\0", data=DATA),
        shards=2,
    )
    make_checkpoint(
        tmp_path / "b",
        dump_of((1, 0), (3, 1), (4, 1))
        | process(1, command=b"serve\0", data=bytes(changed) + DATA[: 5 * PAGE])
        | process(3, command=b"stays\0", data=DATA)
        | process(4, command=b"fresh\0")
        | {"fdinfo-1.img": image("FDINFO", {"id": 1, "flags": 0, "type": "REG", "fd": 7})},
        codec="lz4",
    )
    said = differs(tmp_path / "a", tmp_path / "b")
    assert [each["pid"] for each in said["gone"]] == [2]
    assert [each["pid"] for each in said["new"]] == [4]
    one, three = said["both"]
    assert one["pages"] == {"same": 697, "changed": 4, "gone": 0, "new": 5}
    assert three["pages"] == {"same": 701, "changed": 0, "gone": 0, "new": 0}
    assert [each["fd"] for each in one["closed"]] == [0]
    assert [each["fd"] for each in one["opened"]] == [7]
    assert {each["start"] for each in one["mappings"]} == {DATA_AT, ARGUMENTS_AT}
    back = differs(tmp_path / "b", tmp_path / "a")
    assert back["pages"] == {"same": 1398, "changed": 4, "gone": 5, "new": 0}
    text = CliRunner().invoke(diff, [str(tmp_path / "a"), str(tmp_path / "b"), "--memory"]).stdout
    assert "1 + fd 7 /data/file" in text
    assert " 2  gone " in text
    assert f"{DATA_AT:012x}" in text


def test_a_checkpoint_and_itself(tmp_path: Path) -> None:
    make_checkpoint(tmp_path, dump_of((1, 0)) | process(1, command=b"serve\0", data=DATA))
    said = differs(tmp_path, tmp_path)
    assert said["pages"] == {"same": 701, "changed": 0, "gone": 0, "new": 0}
    assert said["gone"] == said["new"] == []


def test_pages_of_the_dump_that_it_builds_on(tmp_path: Path) -> None:
    whole = dump_of((1, 0)) | process(1, command=b"serve\0", data=DATA)
    make_checkpoint(tmp_path / "a", whole)
    runs = [
        run(DATA_AT, 600, 1),
        run(DATA_AT + 600 * PAGE, 100, 4),
        run(ARGUMENTS_AT, 1, 1),
    ]
    onto = whole | {
        "pagemap-1.img": image("PAGEMAP", {"pages_id": 1}, *runs),
        "pages-1.img": bytes(100 * PAGE),
    }
    make_checkpoint(tmp_path / "b", onto)
    said = differs(tmp_path / "a", tmp_path / "b")
    assert "needs a parent, and there is none" in " ".join(said["problems"])
    with_parent(tmp_path / "c", onto)
    said = differs(tmp_path / "a", tmp_path / "c")
    assert said["pages"] == {"same": 601, "changed": 100, "gone": 0, "new": 0}
    assert said["both"][0]["title"] == "serve"


def with_parent(directory: Path, images: dict[str, bytes]) -> None:
    """A checkpoint of *images* that builds on `../a`."""
    with writing(directory) as writer:
        for name, data in images.items():
            writer.create(name, data)
        writer.log.symlink("parent", "../a", uid=0, gid=0)
        writer.commit(seal=True)


@pytest.mark.parametrize("missing", ["pagemap-1.img", "pages-1.img"])
def test_what_cannot_be_compared_is_said(tmp_path: Path, missing: str) -> None:
    whole = dump_of((1, 0)) | process(1, command=b"serve\0", data=DATA)
    make_checkpoint(tmp_path / "a", whole)
    make_checkpoint(tmp_path / "b", {n: data for n, data in whole.items() if n != missing})
    said = differs(tmp_path / "a", tmp_path / "b")
    assert any("not compared" in line and missing in line for line in said["problems"])
