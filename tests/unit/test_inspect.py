"""What inspect says of images made by hand: damaged, missing, hostile."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from crafted import ARGUMENTS_AT, DATA_AT, PAGE, dump_of, image, process, run
from writing import make_checkpoint, writing

from cedanafs.cli.look import inspect
from cedanafs.cli.shown import tree
from cedanafs.look.images import Images
from cedanafs.look.processes import MAX_PROBLEMS, Dump, Process, dump_in


def looked_into(directory: Path) -> Dump:
    with Images.open(directory) as images:
        return dump_in(images)


def test_command_lines_files_and_memory(tmp_path: Path) -> None:
    images = (
        dump_of((1, 0), (2, 1))
        | process(1, command=b"serve\0--all\0", data=b"x" * (40 * PAGE))
        | process(2, command=b"")
    )
    make_checkpoint(tmp_path, images, shards=3)
    found = looked_into(tmp_path)
    first, second = found.processes
    assert first.command == ("serve", "--all")
    assert second.title == "[cooked]"
    assert (first.directory, first.root) == ("/data/file", "/data/file")
    assert [(f.fd, f.kind, f.what, f.position) for f in first.files] == [
        (0, "REG", "/data/file", 7)
    ]
    data, stack = first.mappings
    assert (data.start, data.image_bytes, stack.name) == (DATA_AT, 40 * PAGE, "[stack]")
    assert sum(cell.image_bytes for cell in data.cells) == 40 * PAGE
    assert 0 < data.stored_bytes < 40 * PAGE / 10
    assert found.problems == ("stats-dump is missing: CRIU wrote it elsewhere, or never finished",)


def test_an_image_that_is_missing_costs_only_itself(tmp_path: Path) -> None:
    whole = dump_of((1, 0)) | process(1, command=b"serve\0")
    for name in sorted(set(whole) - {"inventory.img", "fdinfo-1.img"}):  # not there: none open
        images = {other: data for other, data in whole.items() if other != name}
        found = looked_into(make_checkpoint(tmp_path / name, images))
        assert any(name.partition(".")[0] in line for line in found.problems), name
        if name != "pstree.img":
            assert [each.pid for each in found.processes] == [1]
            lost = found.processes[0].command == ()
            assert lost == (name in {"mm-1.img", "pagemap-1.img", "pages-1.img"})


@pytest.mark.parametrize("cut", [0, 3, 9, -1])
def test_an_image_that_is_damaged_is_named(tmp_path: Path, cut: int) -> None:
    whole = dump_of((1, 0)) | process(1, command=b"serve\0")
    for name in sorted(set(whole) - {"inventory.img"}):
        images = whole | {name: whole[name][:cut]}
        found = looked_into(make_checkpoint(tmp_path / name, images))
        assert any(name.partition(".")[0] in line for line in found.problems), name


def test_many_problems_are_a_few_lines(tmp_path: Path) -> None:
    pids = [(pid, 0) for pid in range(1, 200)]
    found = looked_into(make_checkpoint(tmp_path, dump_of(*pids)))
    assert len(found.processes) == 199
    assert len(found.problems) == MAX_PROBLEMS + 1
    assert found.problems[-1].startswith("and ")


def test_what_is_no_dump_is_shown_all_the_same(tmp_path: Path) -> None:
    make_checkpoint(tmp_path, {"notes.txt": b"hello"})
    done = CliRunner().invoke(inspect, [str(tmp_path), "--images"])
    assert done.exit_code == 0, done.output
    assert "notes.txt" in done.output
    assert "not shown: pstree.img is missing" in done.stdout


def test_hostile_names_and_a_circle_of_parents(tmp_path: Path) -> None:
    images = (
        dump_of((1, 2), (2, 1), (3, 3))
        | process(1, command=b"\x1b[2Jrm\0")
        | process(2, name="\n\n")
        | process(3)
    )
    make_checkpoint(tmp_path, images)
    done = CliRunner().invoke(inspect, [str(tmp_path), "--all"])
    assert done.exit_code == 0, done.output
    assert "\x1b" not in done.output
    said = json.loads(CliRunner().invoke(inspect, [str(tmp_path), "--json"]).stdout)
    assert [each["pid"] for each in said["dump"]["processes"]] == [1, 2, 3]


def test_every_process_of_a_tree_is_drawn_once() -> None:
    family = [Process(pid, parent, 1, 1, 1) for pid, parent in [(1, 0), (2, 1), (3, 2), (4, 1)]]
    drawn = [(process.pid, branch) for process, branch in tree(family)]
    assert drawn == [(1, ""), (2, "├─ "), (3, "│  └─ "), (4, "└─ ")]
    circle = [Process(pid, parent, 1, 1, 1) for pid, parent in [(1, 2), (2, 1), (2, 1), (7, 7)]]
    assert sorted(process.pid for process, _ in tree(circle)) == [1, 2, 2, 7]


def test_pages_out_of_order_or_beyond_the_image(tmp_path: Path) -> None:
    whole = dump_of((1, 0)) | process(1, command=b"serve\0")
    far = run(DATA_AT, 1 << 20, 4)
    stack = run(ARGUMENTS_AT, 1, 4)
    runs = {
        "beyond": [far, stack],
        "backwards": [stack, far],
    }
    for name, entries in runs.items():
        pagemap = image("PAGEMAP", {"pages_id": 1}, *entries)
        found = looked_into(make_checkpoint(tmp_path / name, whole | {"pagemap-1.img": pagemap}))
        assert len(found.problems) == 2, found.problems


def test_shares_of_a_base_take_nothing(tmp_path: Path) -> None:
    data = bytes(range(256)) * (16 * 32)
    images = dump_of((1, 0)) | process(1, command=b"serve\0", data=data)
    make_checkpoint(tmp_path / "a", images)
    with writing(tmp_path / "b", base="a") as writer:
        for name, content in images.items():
            writer.create(name, content)
        writer.commit()
    (process_1,) = looked_into(tmp_path / "b").processes
    assert process_1.mappings[0].base_bytes == len(data)
    assert process_1.mappings[0].stored_bytes == 0
    assert process_1.command == ("serve",)
