"""The benchmark suite runs, and the page shows what its results say."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_a_round_is_measured_written_and_told(tmp_path: Path) -> None:
    results = tmp_path / "results.json"
    done = run(
        "benchmarks", "--experiment", "mix", "--mib", 16, "--rounds", 1, "--dir", tmp_path,
        "--kind", "plain", "--kind", "lz4x2", "--kind", "discard", "--json", results,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (measured,) = json.loads(results.read_text())["runs"]
    (figures,) = measured["rounds"]
    assert list(figures) == ["plain", "lz4x2", "discard"]
    ours = figures["lz4x2"]
    assert 0 < ours["frozen_s"] < ours["criu_s"] < ours["durable_s"] < 60
    assert 0 < ours["restore_criu_s"] < ours["restore_s"] < 60
    assert 0 < ours["cpu_s"] < 60
    assert 10 < ours["dump_peak_mib"] < 400
    assert 5 < ours["stored_mib"] < figures["plain"]["stored_mib"] < 40
    assert set(figures["discard"]) == {"frozen_s", "criu_s", "cpu_s", "machine_cpu_s"}
    assert measured["conditions"]["criu"]
    assert [path.name for path in tmp_path.iterdir()] == ["results.json"]

    tables = run("benchmarks.report", results)
    assert tables.returncode == 0, tables.stderr
    for text in (done.stdout, tables.stdout):
        assert re.search(r"^\| lz4x2 \| \d.*\d\.\d\dx \|", text, re.MULTILINE), text

    page = tmp_path / "page.md"
    page.write_text("before\n<!-- table: dump mix -->\nold\n<!-- end -->\nafter\n")
    done = run("benchmarks.report", results, "--into", page)
    assert done.returncode == 0, done.stderr
    filled = page.read_text()
    assert filled.startswith("before\n<!-- table: dump mix -->\n| dump |")
    assert filled.endswith(" |\n<!-- end -->\nafter\n")
    assert "old" not in filled


@pytest.mark.full
def test_bases_and_lazy_restores_are_measured_and_told(tmp_path: Path) -> None:
    results, page = tmp_path / "results.json", tmp_path / "page.md"
    into = ("--mib", 32, "--rounds", 1, "--dir", tmp_path, "--json", results)
    for arguments in (("benchmarks.base", "--codec", "lz4", *into), ("benchmarks.lazy", *into)):
        done = run(*arguments)
        assert done.returncode == 0, done.stderr
    dumps, restores = (each["rounds"][0] for each in json.loads(results.read_text())["runs"])
    second, first = dumps["second, --base"], dumps["first"]
    assert second["stored_mib"] < 0.3 * first["stored_mib"]
    assert 0 < second["frozen_s"] < second["command_s"] < 60
    assert 0 < restores["lazy"]["command_s"] <= restores["lazy"]["answer_s"] < 60
    page.write_text("<!-- table: base lz4 -->\n<!-- end -->\n<!-- table: lazy -->\n<!-- end -->\n")
    assert run("benchmarks.report", results, "--into", page).returncode == 0
    filled = page.read_text()
    assert re.search(r"^\| second, --base \| \d.*\d\.\d\dx \|", filled, re.MULTILINE), filled
    assert re.search(r"^\| 32 \| local \| lazy \| \d.*\d\.\d\dx \|", filled, re.MULTILINE), filled


def test_what_cannot_be_measured_is_refused_in_one_line(tmp_path: Path) -> None:
    for arguments, match in (
        (("benchmarks", "--kind", "tape"), "no kind is named tape"),
        (("benchmarks", "--kind", "lz4x4+fast"), "no such change of lz4x4: fast"),
        (("benchmarks", "--json", tmp_path / "no/where.json"), "there is no directory"),
    ):
        done = run(*arguments)
        assert done.returncode == 2, done
        assert match in done.stderr.splitlines()[-1]


def test_the_page_shows_what_was_measured(tmp_path: Path) -> None:
    """`make figures` changes nothing: no figure in a table was typed by hand."""
    shown = ROOT / "docs/benchmarks.md"
    page = tmp_path / "page.md"
    emptied, count = re.subn(
        r"(?s)(<!-- table: .*? -->\n).*?(?=<!-- end)", r"\1", shown.read_text()
    )
    assert count > 10
    page.write_text(emptied)
    done = run("benchmarks.report", ROOT / "docs/benchmarks/results.json", "--into", page)
    assert done.returncode == 0, done.stderr
    assert page.read_text() == shown.read_text()
    for plot in re.findall(r"\]\((benchmarks/\w+\.png)\)", shown.read_text()):
        assert (ROOT / "docs" / plot).stat().st_size < 100_000
